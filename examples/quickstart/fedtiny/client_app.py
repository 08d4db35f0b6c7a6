"""A ClientApp: it trains the model of the round on the data of its node."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from task import Net, load_data
from task import test as test_fn
from task import train as train_fn

from fedkit.flower.sparse_client import sparse_client


def train(model, config, context) -> float:
    """Train on this node's data."""
    loader, _ = load_data(context)
    epochs = int(context.run_config["local-epochs"])
    return train_fn(model, loader, epochs, config["lr"])


app = sparse_client(Net, train, lambda context: load_data(context)[0].dataset)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Measure on data that this node does not train on."""
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    _, loader = load_data(context)
    loss, accuracy = test_fn(model, loader)
    found = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(loader.dataset)}
    return Message(RecordDict({"metrics": MetricRecord(found)}), reply_to=msg)
