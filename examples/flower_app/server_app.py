"""The quickstart's ServerApp, with FedTiny in place of FedAvg."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from task import Net, test

from fedkit.flower.strategy import FedTiny

app = ServerApp()


def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
    model = Net()
    model.load_state_dict(arrays.to_torch_state_dict())
    accuracy = test(model)
    print(f"round {number}: accuracy {accuracy:.4f}", flush=True)
    return MetricRecord({"accuracy": accuracy})


@app.main()
def main(grid: Grid, context: Context) -> None:
    run = context.run_config
    strategy = FedTiny(Net, density=run["density"], fraction_evaluate=0.0)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        train_config=ConfigRecord({"lr": run["lr"]}),
        num_rounds=int(run["num-server-rounds"]),
        evaluate_fn=evaluate,
    )
    torch.save(result.arrays.to_torch_state_dict(), str(run["model"]))
