"""A ServerApp as Flower's quickstart has it, which notes when each round has ended."""

import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedkit.bench.simulate_task import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg over all nodes; keep the final model beside the times."""
    keys = context.run_config
    times, nodes = Path(str(keys["times"])), int(keys["nodes"])

    def note(number: int, arrays: ArrayRecord) -> MetricRecord:
        if number:
            with times.open("a") as file:
                file.write(f"{time.time()}\n")
        return MetricRecord({"round": number})

    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=nodes)
    start = ArrayRecord(task.build_model(1, "").state_dict())
    result = strategy.start(grid, start, num_rounds=int(keys["rounds"]), evaluate_fn=note)
    found = {name: array.numpy() for name, array in result.arrays.items()}
    np.savez(times.with_name("model.npz"), **found)
