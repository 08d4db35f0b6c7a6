"""What each kind of op is in integers and on each target: one file per family, as in the graph."""
