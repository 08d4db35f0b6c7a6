"""The quickstart's ClientApp: what it did around `train` is fedkit's now."""

from collections.abc import Mapping
from typing import Any

from flwr.app import Context
from task import Net, load_data
from task import train as train_fn
from torch import nn
from torch.utils.data import TensorDataset

from fedkit.flower.sparse_client import sparse_client
from fedkit.tasks import sources


def data_of(context: Context) -> TensorDataset:
    node = context.node_config
    return load_data(int(node["partition-id"]), int(node["num-partitions"]))


def train(model: nn.Module, config: Mapping[str, Any], context: Context) -> float:
    return train_fn(model, data_of(context), epochs=2, lr=config["lr"])


app = sparse_client(Net, train, lambda context: sources.torch_dataset(data_of(context)))
