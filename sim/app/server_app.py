"""The server side of the fedkit Flower app."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedkit.flower.run_config import errors_first, read_run_config

app = ServerApp()


@app.main()
@errors_first()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds over the simulated nodes and record them in a run folder."""
    config, place = read_run_config(context.run_config, grid)
    # What takes seconds to import is not needed to say that a key is wrong.
    from fedkit.flower.serve import serve
    from sim.scenario import make_scenario

    serve(make_scenario(config), grid, place)
