"""A ClientApp as Flower's quickstart has it: load the model, train it by torch, send it back."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedkit.bench.simulate_task import share, task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this node's data for some epochs of one batch."""
    torch.set_num_threads(1)
    model, keys = task.build_model(1, ""), context.run_config
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    data = share(int(context.node_config["partition-id"]))
    inputs, targets = torch.from_numpy(data.inputs), torch.from_numpy(data.targets)
    lr, momentum = float(keys["lr"]), float(keys["momentum"])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    model.train()
    for _ in range(int(keys["epochs"])):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(data)})
    return Message(
        RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}),
        reply_to=message,
    )
