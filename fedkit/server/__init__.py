"""What runs on the server: rounds, aggregation, privacy, checkpoints."""
