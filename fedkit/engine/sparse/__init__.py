"""Training at the cost of the kept weights, planned ahead."""
