"""The server side of the fedkit Flower app."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedkit.config import make_config
from fedkit.flower.fleet import FlowerFleet
from fedkit.rounds import Report
from sim.run import record, run_keys
from sim.scenario import make_scenario

app = ServerApp()


def _print(step: Report) -> None:
    """Print one line per step, for who follows `flwr run --stream`."""
    print(
        f"{step.phase} {step.round}: accuracy {step.accuracy:.4f}, loss {step.loss}, "
        f"density {step.density:.4f}, bytes down {step.bytes_down}, up {step.bytes_up}",
        flush=True,
    )


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds over the connected nodes and record them in a run folder."""
    values, folder = run_keys(context.run_config)
    config = make_config(values)
    scenario = make_scenario(config)
    scenario.check()
    print(f"run folder: {folder}", flush=True)
    record(scenario, FlowerFleet(grid, config.devices), Path(folder), _print)
