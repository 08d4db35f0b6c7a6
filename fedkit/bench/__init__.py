"""Benchmarks: each a module with a function of `quick` that returns one JSON object with `rows`."""
