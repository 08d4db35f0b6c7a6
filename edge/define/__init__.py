"""What an int8 graph computes, integer by integer: the definition that every target is held to."""
