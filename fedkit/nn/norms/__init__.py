"""Norms, layers that do without one, and the registry that says how a fleet treats each."""
