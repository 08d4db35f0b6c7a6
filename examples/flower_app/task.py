"""The model, the data and the training loop: as in Flower's quickstart, on digits."""

import torch
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


def load_data(partition_id: int, num_partitions: int) -> TensorDataset:
    everything = digits.train_data()
    rows = slice(partition_id, None, num_partitions)
    return TensorDataset(
        torch.from_numpy(everything.inputs[rows]), torch.from_numpy(everything.targets[rows])
    )


def train(net: nn.Module, data: TensorDataset, epochs: int, lr: float) -> float:
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(epochs):
        for images, labels in DataLoader(data, batch_size=32, shuffle=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


def test(net: nn.Module) -> float:
    data = digits.test_data()
    net.eval()
    with torch.no_grad():
        found = net(torch.from_numpy(data.inputs)).argmax(1).numpy()
    return float((found == data.targets).mean())
