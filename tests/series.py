"""Models of series, and the same over maps of height 1: what people write for either."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float32]
SHAPE = (3, 24)
CLASSES = 5


class Series(nn.Module):
    """Every layer of series that is taken, by smooth functions of one value.

    Args:
        over: 1 for series, 2 for maps of height 1; both draw the same weights.
    """

    def __init__(self, over: int = 1) -> None:
        super().__init__()
        self.over = over

        def size(length: int, height: int = 1) -> Any:
            return length if over == 1 else (height, length)

        conv: Any = nn.Conv1d if over == 1 else nn.Conv2d
        norm = nn.BatchNorm1d if over == 1 else nn.BatchNorm2d
        most: Any = nn.MaxPool1d if over == 1 else nn.MaxPool2d
        average: Any = nn.AvgPool1d if over == 1 else nn.AvgPool2d
        torch.manual_seed(0)
        self.stem = conv(3, 8, size(5), size(2), size(2, 0), bias=False)
        self.norm = norm(8)
        self.depthwise = conv(8, 16, size(3), padding="same", groups=8)
        self.grouped: nn.Module = conv(16, 6, size(3), padding=size(1, 0), groups=2)
        self.groups = nn.GroupNorm(2, 6)
        self.dilated: nn.Module = conv(6, 8, size(3), padding=size(2, 0), dilation=size(2))
        self.most, self.average = most(size(3), size(2), size(1, 0)), average(size(2))
        self.norm2 = norm(8)
        self.instance = (nn.InstanceNorm1d if over == 1 else nn.InstanceNorm2d)(8, affine=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.silu(self.norm(self.stem(x)))
        y = torch.tanh(self.groups(self.grouped(self.depthwise(y))))
        y = self.average(self.most(self.instance(self.dilated(y))))
        axes = [2] if self.over == 1 else [2, 3]
        y = self.norm2(y) * torch.sigmoid(y.mean(axes, keepdim=True))
        out: Tensor = self.head(y.mean(axes))
        return out


def inputs(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Floats:
    """Return random series, float32 [n, channels, length]."""
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)
