"""Small models of every kind of op, and images for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Images = NDArray[np.float32]


def images(*shape: int, n: int = 12) -> Images:
    return np.random.default_rng(0).standard_normal((n, *shape)).astype(np.float32)


class Residual(nn.Module):
    """Two branches whose sizes differ a hundredfold."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 1, 2)
        nn.init.normal_(self.large.weight, 0, 5.0)
        nn.init.normal_(self.small.weight, 0, 0.05)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.large(x) + self.small(x)).flatten(1)


class DenseBlock(nn.Module):
    """Layers that read all that came before, of sizes far apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(7, 2, 3, padding=1)
        nn.init.normal_(self.first.weight, 0, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, torch.relu(self.first(x))], 1)
        return torch.cat([y, self.second(y)], 1)


class JoinedLinears(nn.Module):
    """Features that are joined and read again."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(240, 5), nn.Linear(240, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        y: Tensor = self.last(torch.cat([self.left(x), torch.relu(self.right(x))], 1))
        return y


class Branches(nn.Module):
    """A concat of a convolution, pools, a sum, and of one of them once more."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = self.branch(x)
        pooled = torch.max_pool2d(x, 3, 1, 1), nn.functional.avg_pool2d(y, 3, 1, 1)
        return torch.cat([torch.cat([y, *pooled], 1), x + y, y], 1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolution that TFLite pads alike": lambda: nn.Conv2d(3, 4, 3, padding=1),
    "convolution with stride 2": lambda: nn.Conv2d(3, 4, 3, 2, 1),
    "convolution with wide padding": lambda: nn.Conv2d(3, 4, (10, 4), 2, (5, 1)),
    "convolution with dilation": lambda: nn.Conv2d(3, 4, 3, dilation=2, padding=2),
    "depthwise convolution": lambda: nn.Conv2d(3, 6, 3, 2, 1, groups=3),
    "relu6": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6()),
    "relu alone": lambda: nn.Sequential(nn.MaxPool2d(2), nn.ReLU()),
    "relu6 alone": lambda: nn.Sequential(nn.MaxPool2d(2), nn.ReLU6()),
    "max-pooling": lambda: nn.MaxPool2d(2),
    "max-pooling with padding": lambda: nn.MaxPool2d(3, 2, 1),
    "average pooling": lambda: nn.AvgPool2d(2),
    "average pooling with padding": lambda: nn.AvgPool2d(3, 2, 1),
    "average pooling, padding not counted": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "mean": lambda: nn.AdaptiveAvgPool2d(1),
    "zero padding": lambda: nn.ZeroPad2d((1, 2, 0, 3)),
    "batch norm": lambda: nn.BatchNorm2d(3),
    "flatten, linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 10, 5), nn.ReLU()),
    "residual": Residual,
    "dense block": DenseBlock,
    "branches": Branches,
    "concat of features": JoinedLinears,
}


class Flat(nn.Module):
    """Let every value of a feature map be an output."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).flatten(1)


class Sums(nn.Module):
    """Sums of what others read too, of one tensor with itself, and of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e = self.convs
        y = x + a(x)
        z = torch.relu(b(y) + c(y))
        read_twice = d(z)
        both = (read_twice + z) + e(read_twice)
        return torch.relu(both + both) + y + x


class Strides(nn.Module):
    """Windows of one stride and unlike sizes over one tensor."""

    def __init__(self) -> None:
        super().__init__()
        windows = ((3, 1), (1, 0), (5, 2), (2, 0))
        self.convs = nn.ModuleList(nn.Conv2d(3, 6, k, 2, padding=p) for k, p in windows)
        self.depthwise = nn.Conv2d(3, 6, 3, 2, 1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = (conv(x) for conv in self.convs)
        return a + b + c + d + self.depthwise(x)


OWN: dict[str, Callable[[], nn.Module]] = {
    "sums": Sums,
    "strides": Strides,
    "mean of single pixels": lambda: nn.Sequential(
        nn.AvgPool2d((8, 10)), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    ),
    "depthwise convolution with a multiplier": lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3),
    "grouped convolutions": lambda: nn.Sequential(
        nn.Conv2d(3, 12, (2, 3), 2, (1, 0), groups=3),
        nn.ReLU(),
        nn.Conv2d(12, 6, 3, padding=2, dilation=2, groups=2),
    ),
    "linear layers": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 7)
    ),
    "stride 3": lambda: nn.Conv2d(3, 5, (2, 5), 3, (0, 2)),
}


def pruned(model: nn.Module, density: float) -> nn.Module:
    """Leave some weights of each layer, larger, so that a signal still comes through."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                kept = torch.rand_like(layer.weight) < density
                layer.weight.mul_(kept / density**0.5)
    return model


def small(density: float = 1.0) -> nn.Module:
    """Two convolutions and a head, for images of 3 channels."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
    head = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    return pruned(nn.Sequential(*layers, *head), density).eval()
