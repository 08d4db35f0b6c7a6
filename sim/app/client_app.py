"""The device side of the fedkit Flower app: any SuperNode that `flwr run` reaches."""

from flwr.app import Context

from fedkit.config import make_config
from fedkit.device.round import Device
from fedkit.flower.client_app import in_context_and_folder, make_client_app
from fedkit.flower.run_config import run_keys
from sim.scenario import make_scenario


def device_of(context: Context) -> Device:
    """Return the device this node simulates; data and engine are made once per process."""
    values, _ = run_keys(context.run_config)
    scenario = make_scenario(make_config(values))
    return scenario.device(int(context.node_config["partition-id"]))


app = make_client_app(device_of, in_context_and_folder)
