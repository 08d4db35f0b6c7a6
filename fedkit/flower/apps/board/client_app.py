"""The device side: what it trains from is in the --node-config of its SuperNode."""

from fedkit.flower.device_app import app

__all__ = ["app"]
