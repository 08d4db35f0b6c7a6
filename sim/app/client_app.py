"""The device side of the fedkit Flower app: any SuperNode that `flwr run` reaches."""

from flwr.app import Context

from fedkit.config import make_config
from fedkit.device.round import Device
from fedkit.flower import runtime
from fedkit.flower.client_app import InThreads, in_context_and_folder, make_client_app
from fedkit.flower.run_config import run_keys, with_devices
from sim.scenario import make_scenario


def device_of(context: Context) -> Device:
    """Return the device this node simulates; data and engine are made once per process."""
    node = context.node_config
    values = with_devices(run_keys(context.run_config)[0], int(node["num-partitions"]))
    return make_scenario(make_config(values)).device(int(node["partition-id"]))


runtime.install()
app = make_client_app(device_of, InThreads(in_context_and_folder))
