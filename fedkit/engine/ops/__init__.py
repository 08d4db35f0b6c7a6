"""Ops that train, a file per family: what a plan says of one, and how each engine computes it."""
