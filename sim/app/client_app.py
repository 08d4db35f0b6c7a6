"""The device side of the fedkit Flower app: any SuperNode that `flwr run` reaches."""

import functools

from flwr.app import Context

from fedkit.config import make_config
from fedkit.device import Device
from fedkit.flower.client_app import make_client_app
from sim.run import run_keys
from sim.scenario import make_scenario


@functools.lru_cache(maxsize=64)
def _device(items: tuple[tuple[str, str | int | float | bool], ...], index: int) -> Device:
    return make_scenario(make_config(dict(items))).device(index)


def device_of(context: Context) -> Device:
    """Build (once per process) the device this node simulates."""
    config, _ = run_keys(context.run_config)
    return _device(tuple(config.items()), int(context.node_config["partition-id"]))


app = make_client_app(device_of)
