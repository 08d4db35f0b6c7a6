"""The Flower side: the only modules of fedkit that import flwr."""
