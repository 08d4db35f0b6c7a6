"""The integer engine: forward, backward and update in integers, on kept weights only."""
