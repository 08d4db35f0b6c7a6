"""The server side of the fedkit Flower app."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedkit.config import make_config
from fedkit.flower.run_config import run_keys
from sim.run import serve
from sim.scenario import make_scenario

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds over the simulated nodes and record them in a run folder."""
    values, place = run_keys(context.run_config)
    serve(make_scenario(make_config(values)), grid, place)
