"""Which layers each part of the project takes, found out by trying them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fedkit.core.errors import FedkitError
from fedkit.engine.plan.capture import capture
from fedkit.graph.from_torch import lower
from fedkit.nn.norm import L1BatchNorm2d, L1LayerNorm
from fedkit.nn.norms.slab import RepBatchNorm
from fedkit.shiftquant import convert

IMAGE = (4, 8, 8)


class Layer(NamedTuple):
    """A layer in a small model: a convolution before it, a linear layer behind it."""

    name: str
    layer: Callable[[], nn.Module]
    input_shape: tuple[int, ...] = IMAGE


class _Calls(nn.Module):
    """Applies a function, as the forward pass of a user's model does."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _of_itself(x: Tensor) -> Tensor:
    return scaled_dot_product_attention(x, x, x)


def _of_those_before(x: Tensor) -> Tensor:
    return scaled_dot_product_attention(x, x, x, is_causal=True)


class _Recurrent(nn.Module):
    """Channels of an image as the steps of both layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = (kind(64, 64, batch_first=True) for kind in (nn.LSTM, nn.GRU))

    def forward(self, x: Tensor) -> Tensor:
        steps: Tensor = self.gru(self.lstm(x.flatten(2))[0])[0]
        return steps


class _Twice(nn.Module):
    """One convolution, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        twice: Tensor = self.layer(torch.relu(self.layer(x)))
        return twice


LAYERS = (
    Layer("Conv2d, stride 2", lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1)),
    Layer("Conv2d, dilation 2", lambda: nn.Conv2d(4, 4, 3, dilation=2, padding=2)),
    Layer("Conv2d, groups 2", lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2)),
    Layer("Conv2d, depthwise", lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4)),
    Layer("ConvTranspose2d", lambda: nn.ConvTranspose2d(4, 4, 2, stride=2)),
    Layer("BatchNorm2d", lambda: nn.BatchNorm2d(4)),
    Layer("L1BatchNorm2d (fedkit.nn.norm)", lambda: L1BatchNorm2d(4)),
    Layer("LayerNorm, whole example", lambda: nn.LayerNorm([4, 8, 8])),
    Layer("L1LayerNorm, whole example (fedkit.nn.norm)", lambda: L1LayerNorm([4, 8, 8])),
    Layer("LayerNorm, last axis", lambda: nn.LayerNorm(8)),
    Layer("RepBatchNorm (fedkit.nn.norms.slab)", lambda: RepBatchNorm(4)),
    Layer("GroupNorm", lambda: nn.GroupNorm(2, 4)),
    Layer("SELU, CELU", lambda: nn.Sequential(nn.SELU(), nn.CELU())),
    Layer("PReLU", lambda: nn.PReLU(4)),
    Layer("AdaptiveAvgPool2d(1)", lambda: nn.AdaptiveAvgPool2d(1)),
    Layer("AdaptiveMaxPool2d(1)", lambda: nn.AdaptiveMaxPool2d(1)),
    Layer("AdaptiveAvgPool2d, any size", lambda: nn.AdaptiveAvgPool2d((3, 5))),
    Layer("MaxPool2d, dilation 2", lambda: nn.MaxPool2d(2, dilation=2)),
    Layer("AvgPool2d, ceil_mode", lambda: nn.AvgPool2d(3, ceil_mode=True)),
    Layer("gate per channel", lambda: _Calls(lambda x: x * x.mean((2, 3), keepdim=True))),
    Layer("quotient by ReLU(x) + 1", lambda: _Calls(lambda x: x / (x.relu() + 1))),
    Layer("arithmetic with numbers", lambda: _Calls(lambda x: (2 * x - 1) / 3)),
    Layer("arithmetic with constants", lambda: _Calls(lambda x: x + torch.ones(8, 8))),
    Layer("attention, without a mask", lambda: _Calls(_of_itself)),
    Layer("attention, causal", lambda: _Calls(_of_those_before)),
    Layer("LSTM, GRU of up to 64 steps", lambda: _Recurrent()),
    Layer("a layer that is called twice", lambda: _Twice()),
    Layer("softmax of the last axis", lambda: _Calls(lambda x: x.softmax(-1))),
    Layer("padding before an average", lambda: nn.AvgPool2d(3, padding=1)),
    Layer("concat along height", lambda: _Calls(lambda x: torch.cat([x, x], 2))),
    Layer("half of the channels", lambda: _Calls(lambda x: x.chunk(2, 1)[1])),
    Layer("ReflectionPad2d, ReplicationPad2d", lambda: nn.ReflectionPad2d(1)),
    Layer("Upsample, nearest", lambda: nn.Upsample(scale_factor=2)),
    Layer("Upsample, bilinear", lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    Layer("Flatten, view, reshape", nn.Flatten),
    Layer("Dropout", lambda: nn.Dropout(0.1)),
    Layer("Identity", nn.Identity),
    Layer("Softmax as the output", lambda: nn.Softmax(1), (4,)),
)
"""Those of which the table of ops does not tell: several ops, none, or an op in a certain form."""


def _model(layer: Layer) -> nn.Module:
    torch.manual_seed(0)
    if layer.name == "Softmax as the output":
        return nn.Sequential(nn.Linear(4, 4), layer.layer())
    if len(layer.input_shape) == 1:
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), layer.layer(), nn.ReLU(), nn.Linear(4, 3))
    before = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), layer.layer())
    with torch.no_grad():
        features = before.eval()(torch.zeros(1, *layer.input_shape)).flatten(1).shape[1]
    return nn.Sequential(before, nn.Flatten(), nn.Linear(features, 3)).train()


TAKEN_BY: tuple[tuple[str, Callable[[nn.Module, tuple[int, ...]], object]], ...] = (
    ("trained, sparse engine", capture),
    ("trained, integers", convert),
    ("exported", lower),
)


def rows() -> Iterator[tuple[str, list[bool]]]:
    """Yield each layer's name and whether each part of `TAKEN_BY` takes it."""
    for layer in LAYERS:
        yield layer.name, [_takes(part, layer) for _, part in TAKEN_BY]


def _takes(part: Callable[[nn.Module, tuple[int, ...]], object], layer: Layer) -> bool:
    try:
        part(_model(layer), layer.input_shape)
    except FedkitError:
        return False
    return True
