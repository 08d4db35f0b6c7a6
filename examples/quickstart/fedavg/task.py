"""The model, the data and the training loop of an ordinary Flower app, on digits."""

import torch
from flwr.app import Context
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedkit.tasks import digits


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, stride=2, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.fc(x.flatten(1))


def load_data(context: Context) -> tuple[DataLoader, DataLoader]:
    """Return what this node trains on, and a fifth of its data that it does not train on."""
    nodes, batch = int(context.node_config["num-partitions"]), int(context.run_config["batch-size"])
    everything = digits.train_data()
    rows = torch.arange(int(context.node_config["partition-id"]), len(everything), nodes)
    data = TensorDataset(torch.from_numpy(everything.inputs), torch.from_numpy(everything.targets))
    held_out = len(rows) // 5
    train_set = TensorDataset(*data[rows[held_out:]])
    test_set = TensorDataset(*data[rows[:held_out]])
    return DataLoader(train_set, batch, shuffle=True), DataLoader(test_set, batch)


def test_data() -> DataLoader:
    data = digits.test_data()
    return DataLoader(
        TensorDataset(torch.from_numpy(data.inputs), torch.from_numpy(data.targets)), 100
    )


def train(net: nn.Module, loader: DataLoader, epochs: int, lr: float) -> float:
    """Train for some epochs; return the mean loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    total = 0.0
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / (epochs * len(loader))


def test(net: nn.Module, loader: DataLoader) -> tuple[float, float]:
    """Return mean loss and accuracy."""
    net.eval()
    loss, right, count = 0.0, 0, 0
    with torch.no_grad():
        for images, labels in loader:
            outputs = net(images)
            loss += nn.functional.cross_entropy(outputs, labels, reduction="sum").item()
            right += int((outputs.argmax(1) == labels).sum())
            count += len(labels)
    return loss / count, right / count
