"""Models that return maps and series, and what torch gives for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.edge.models import DenseBlock, Images, Sums


class Segments(nn.Module):
    """Classes of each pixel, from a map and from one of half its size."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, 2, 1)
        self.classes = nn.Conv2d(9, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fine(x))
        y = F.interpolate(torch.relu(self.coarse(x)), scale_factor=2.0)
        logits: Tensor = self.classes(torch.cat([x, y], 1))
        return logits


class Columns(nn.Module):
    """A series that is made of a map: what each column holds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, (8, 3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x).squeeze(2)
        return y


class Softmax(nn.Module):
    """Probabilities of each pixel's classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(3 * self.conv(x), 1)


SHAPE = (3, 8, 10)
MAPPED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "segments": (Segments, SHAPE),
    "a sum": (Sums, SHAPE),
    "what a concat joins": (DenseBlock, SHAPE),
    "a maximum": (lambda: nn.MaxPool2d(3, 2, 1), SHAPE),
    "probabilities": (Softmax, SHAPE),
    "one channel": (lambda: nn.Conv2d(3, 1, 3), SHAPE),
    "one row": (lambda: nn.Conv2d(3, 4, (8, 3)), SHAPE),
    "primes": (lambda: nn.Conv2d(5, 7, 3, 2, 1), (5, 13, 23)),
    "one pixel": (lambda: nn.Conv2d(3, 4, 3), (3, 3, 3)),
    "a mean": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1)), SHAPE),
    "a series": (lambda: nn.Sequential(nn.Conv1d(3, 5, 3, padding=1), nn.ReLU()), (3, 11)),
    "a series of one": (lambda: nn.Conv1d(3, 5, 11), (3, 11)),
    "a series of columns": (Columns, SHAPE),
    "features as a series": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Unflatten(1, (2, 4))),
        (6,),
    ),
}


def mapped(name: str) -> tuple[nn.Module, Images]:
    """Return a model and inputs for it."""
    make, shape = MAPPED[name]
    torch.manual_seed(0)
    inputs = np.random.default_rng(0).standard_normal((12, *shape)).astype(np.float32)
    return make().eval(), inputs


def of_torch(model: nn.Module, inputs: Images) -> Images:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(inputs)).numpy())
