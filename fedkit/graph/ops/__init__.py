"""What each kind of op is in the float graph: one file per family, found by the registry."""
