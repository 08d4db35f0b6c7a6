"""Statistics that devices compute apart and a server merges."""
