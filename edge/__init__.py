"""The model leaves the fleet: torch module -> integer graph -> artifact for one device target."""
