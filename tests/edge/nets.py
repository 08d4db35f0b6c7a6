"""Small networks, generated: what a code generator for any shape of layer must be right about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Images = NDArray[np.float32]
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class Sum(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x)
        return y


class Joined(nn.Module):
    """x and what layers make of it, one behind the other."""

    def __init__(self, *bodies: nn.Module) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, *(body(x) for body in self.bodies)], 1)


@dataclass
class _Net:
    """Layers, and the shape of what they give so far."""

    rng: np.random.Generator
    channels: int
    height: int
    width: int
    layers: list[nn.Module] = field(default_factory=list)

    def one_of(self, *choices: int) -> int:
        return int(self.rng.choice(choices))

    def add(self, layer: nn.Module) -> None:
        """Add a layer, unless nothing would be left of the map."""
        try:
            with torch.no_grad():
                shape = layer(torch.zeros(1, self.channels, self.height, self.width)).shape
        except RuntimeError:
            return
        if shape[2] * shape[3] > 0 and shape[1] * shape[2] * shape[3] < 6000:
            self.layers.append(layer)
            self.channels, self.height, self.width = (int(size) for size in shape[1:])

    def conv(self, out: int, kernel: int, stride: int, padding: int, groups: int = 1) -> nn.Conv2d:
        layer = nn.Conv2d(self.channels, out, kernel, stride, padding, groups=groups)
        return pruned(layer, self.rng)

    def any_conv(self) -> None:
        kernel = self.one_of(1, 1, 2, 3, 3, 5, 7)
        # Often larger than the map, which then is padded.
        padding = int(self.rng.integers(0, kernel // 2 + 1))
        short = max(0, kernel - min(self.height, self.width) - 2 * padding)
        padding += -(-short // 2)
        self.add(
            self.conv(self.one_of(1, 2, 3, 6, 9, 16), kernel, self.one_of(1, 1, 2, 3), padding)
        )
        self.activation()

    def in_groups(self) -> None:
        """Add a depthwise convolution, or, less often, one of larger groups."""
        out, kernel = self.channels * self.one_of(1, 1, 2), self.one_of(1, 3, 5)
        fitting = [n for n in range(2, self.channels) if self.channels % n == 0]
        groups = self.one_of(self.channels, self.channels, *fitting)
        self.add(self.conv(out, kernel, self.one_of(1, 2), kernel // 2, groups))
        self.activation()

    def activation(self) -> None:
        kinds: list[Callable[[], nn.Module]] = [nn.ReLU, nn.ReLU6, nn.Identity]
        self.layers.append(kinds[self.one_of(0, 0, 1, 2)]())

    def max_pool(self) -> None:
        self.add(nn.MaxPool2d(*self.window()))

    def average_pool(self) -> None:
        self.add(nn.AvgPool2d(*self.window(), count_include_pad=bool(self.one_of(0, 1))))

    def window(self) -> tuple[int, int, int]:
        kernel = self.one_of(1, 2, 2, 3, 5)
        return kernel, self.one_of(1, 2, 2, 3, 4), int(self.rng.integers(0, kernel // 2 + 1))

    def whole_pool(self) -> None:
        size = self.height, self.width
        pools = nn.MaxPool2d(size), nn.AvgPool2d(size), nn.AdaptiveAvgPool2d(1)
        self.add(pools[self.one_of(0, 1, 2)])

    def sum(self) -> None:
        kernel = self.one_of(1, 3)
        self.add(Sum(self.conv(self.channels, kernel, 1, kernel // 2)))

    def join(self) -> None:
        bodies: list[nn.Module] = [self.conv(self.one_of(1, 3, 8), 3, 1, 1)]
        if self.one_of(0, 1):
            bodies.append(nn.MaxPool2d(3, 1, 1))
        self.add(Joined(*bodies))

    def head(self) -> None:
        kind = self.one_of(0, 0, 1, 2)
        if kind == 2:
            self.whole_pool()
        self.layers.append(nn.Flatten())
        features = self.channels * self.height * self.width
        sizes = {0: (5,), 1: (13, 4), 2: (3,)}[kind]
        for number, size in enumerate(sizes):
            self.layers += [nn.ReLU()] * bool(number)
            self.layers.append(pruned(nn.Linear(features, size), self.rng))
            features = size


_LAYERS = (
    *(_Net.any_conv, _Net.any_conv, _Net.in_groups, _Net.max_pool, _Net.max_pool),
    *(_Net.average_pool, _Net.whole_pool, _Net.sum, _Net.join),
)


def small_net(seed: int) -> tuple[nn.Module, Images]:
    """Return a network of 1 to 6 layers and a head, and 12 inputs for it."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    size = rng.choice([1, 2, 3, 4, 7, 8, 11, 16], 2)
    net = _Net(rng, int(rng.choice([1, 1, 2, 3, 5, 8])), int(size[0]), int(size[1]))
    shape = net.channels, net.height, net.width
    for _ in range(int(rng.integers(1, 7))):
        _LAYERS[int(rng.integers(len(_LAYERS)))](net)
    net.head()
    inputs = rng.standard_normal((12, *shape)).astype(np.float32)
    if seed % 4 == 0:
        inputs = -np.abs(inputs) - np.float32(0.1)
    elif seed % 4 == 1:
        inputs = np.abs(inputs)
    return nn.Sequential(*net.layers).eval(), inputs


def pruned(layer: Layer, rng: np.random.Generator) -> Layer:
    """Prune a layer to some density; sometimes whole filters, or all of it."""
    kept = rng.random(layer.weight.shape) < rng.choice([1.0, 1.0, 0.5, 0.1, 0.01])
    if rng.random() < 0.3:
        kept[rng.random(len(kept)) < 0.5] = False
    with torch.no_grad():
        layer.weight.mul_(torch.from_numpy(kept))
        layer.get_parameter("bias").mul_(float(rng.choice([0, 1, 20])))
    return layer
