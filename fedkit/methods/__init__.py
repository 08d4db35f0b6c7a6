"""Federated methods: the interface, the registry, and one module each."""
