"""The server side: what it measures on, and what it trains the dense start on, is its task's."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedkit.config import make_config
from fedkit.flower.run_config import errors_first, run_keys
from fedkit.flower.serve import serve
from fedkit.server.scenario import server_scenario

app = ServerApp()


@app.main()
@errors_first()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds over the connected devices and record them in a run folder."""
    values, place = run_keys(context.run_config)
    serve(server_scenario(make_config(values)), grid, place)
