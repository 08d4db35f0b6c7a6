"""What runs on a device: its data, its memory, its answer to a message."""
