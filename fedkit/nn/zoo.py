"""The model zoo: each network under the name of the paper or benchmark it comes from.

All are plain torch modules with BatchNorm or GroupNorm, take float32 [n, channels, height, width],
or of series [n, channels, length], and return logits [n, classes]. A width other than the published
one is part of the name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedkit.core import moved
from fedkit.core.errors import ConfigError
from fedkit.nn.blocks import Norm, conv_bn, conv_norm, head
from fedkit.nn.mobile import (
    efficientnet_lite0,
    mobilenetv1,
    mobilenetv2,
    mobilenetv3_small,
)
from fedkit.nn.series import har_cnn, tc_resnet8

if not TYPE_CHECKING:
    __getattr__ = moved.names(__name__)  # what was here until 0.1


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, cin: int, cout: int, stride: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.first = conv_norm(norm, cin, cout, 3, stride)
        self.second = conv_norm(norm, cout, cout, 3)
        same_shape = stride == 1 and cin == cout
        self.shortcut = nn.Identity() if same_shape else conv_norm(norm, cin, cout, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.second(self.relu(self.first(x))) + self.shortcut(x))
        return out


def _resnet(
    channels: int,
    classes: int,
    widths: Sequence[int],
    blocks: int,
    norm: Norm = nn.BatchNorm2d,
) -> nn.Module:
    layers: list[nn.Module] = [conv_norm(norm, channels, widths[0], 3), nn.ReLU()]
    cin = widths[0]
    for stage, cout in enumerate(widths):
        for block in range(blocks):
            layers.append(ResidualBlock(cin, cout, 2 if stage > 0 and block == 0 else 1, norm))
            cin = cout
    return nn.Sequential(*layers, *head(cin, classes))


def resnet8(channels: int, classes: int) -> nn.Module:
    """ResNet-8 of MLPerf Tiny (image classification): 78 k parameters at 3 channels."""
    return _resnet(channels, classes, (16, 32, 64), blocks=1)


def resnet18(channels: int, classes: int) -> nn.Module:
    """ResNet-18 in its CIFAR form (3x3 stem, no max-pool): 11.17 M parameters at 10 classes."""
    return _resnet(channels, classes, (64, 128, 256, 512), blocks=2)


def resnet18_w16(channels: int, classes: int) -> nn.Module:
    """ResNet-18 at a quarter of its width (16 to 128 channels): 0.70 M parameters."""
    return _resnet(channels, classes, (16, 32, 64, 128), blocks=2)


def two_groups(channels: int) -> nn.GroupNorm:
    """Return a norm over two groups of channels, which takes BatchNorm's place in fleets."""
    return nn.GroupNorm(2, channels)


def resnet18_gn(channels: int, classes: int) -> nn.Module:
    """ResNet-18 with group norms, as Reddi et al., "Adaptive Federated Optimization" (2021)."""
    return _resnet(channels, classes, (64, 128, 256, 512), blocks=2, norm=two_groups)


def resnet18_gn_w16(channels: int, classes: int) -> nn.Module:
    """The same at a quarter of its width: 0.70 M parameters."""
    return _resnet(channels, classes, (16, 32, 64, 128), blocks=2, norm=two_groups)


def vgg11(channels: int, classes: int) -> nn.Module:
    """VGG-11 with BatchNorm and one linear layer, the CIFAR form; input of 32x32 or more."""
    layers: list[nn.Module] = []
    cin = channels
    for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [conv_bn(cin, width, 3), nn.ReLU()]
            cin = width
    return nn.Sequential(*layers, *head(cin, classes))


def ds_cnn(channels: int, classes: int) -> nn.Module:
    """DS-CNN of MLPerf Tiny (keyword spotting): four depthwise-separable blocks of 64."""
    width = 64
    stem = nn.Conv2d(channels, width, (10, 4), 2, (5, 1), bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(width), nn.ReLU()]
    for _ in range(4):
        layers += [conv_bn(width, width, 3, groups=width), nn.ReLU()]
        layers += [conv_bn(width, width, 1), nn.ReLU()]
    return nn.Sequential(*layers, *head(width, classes))


def seeded(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Call a model factory with weights drawn from `seed`; torch's generator stays untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return factory()


MODELS: dict[str, tuple[Callable[[int, int], nn.Module], int]] = {
    "resnet8": (resnet8, 4),
    "resnet18": (resnet18, 8),
    "resnet18-w16": (resnet18_w16, 8),
    "resnet18-gn": (resnet18_gn, 8),
    "resnet18-gn-w16": (resnet18_gn_w16, 8),
    "vgg11": (vgg11, 32),
    "ds-cnn": (ds_cnn, 10),
    "vww-mobilenetv1-0.25": (partial(mobilenetv1, 0.25), 28),
    "mobilenetv2-w0.25": (partial(mobilenetv2, 0.25), 8),
    "mobilenetv2-w0.5": (partial(mobilenetv2, 0.5), 8),
    "mobilenetv2-w1.0": (partial(mobilenetv2, 1.0), 8),
    "mobilenetv3-small-w0.5": (partial(mobilenetv3_small, 0.5), 8),
    "mobilenetv3-small": (partial(mobilenetv3_small, 1.0), 8),
    "efficientnet-lite0": (efficientnet_lite0, 8),
}
"""Name -> (factory of (channels, classes), smallest height and width it takes)."""

SERIES_MODELS: dict[str, tuple[Callable[[int, int], nn.Module], int]] = {
    "tc-resnet8": (tc_resnet8, 8),
    "har-cnn": (har_cnn, 4),
}
"""Name -> (factory of (channels, classes), smallest length of a series that it takes)."""


def smallest_shape(name: str, channels: int) -> tuple[int, ...]:
    """Return the smallest (channels, height, width) or (channels, length) that a model takes."""
    if name in SERIES_MODELS:
        return channels, SERIES_MODELS[name][1]
    return channels, MODELS[name][1], MODELS[name][1]


def build_model(name: str, input_shape: Sequence[int], classes: int) -> nn.Module:
    """Build a zoo model for inputs of one shape.

    Args:
        name: A key of `MODELS` or `SERIES_MODELS`.
        input_shape: (channels, height, width) of one example, or (channels, length).
        classes: Number of logits.

    Raises:
        ConfigError: Unknown name, or the examples are smaller than the network's strides allow.
    """
    if name in SERIES_MODELS:
        return _build_series_model(name, input_shape, classes)
    if name not in MODELS:
        allowed = ", ".join((*MODELS, *SERIES_MODELS))
        raise ConfigError(f"unknown model {name!r}; allowed: {allowed}")
    factory, smallest = MODELS[name]
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        last = len(input_shape) == 3 and input_shape[2] in (1, 3, 4) and min(input_shape[:2]) > 4
        hint = ": channels are last here, transpose(0, 3, 1, 2) puts them first" if last else ""
        raise ConfigError(
            f"model {name!r} cannot take inputs of shape {tuple(input_shape)}; it needs "
            f"(channels, height, width) with height and width of at least {smallest}{hint}"
        )
    return factory(input_shape[0], classes)


def _build_series_model(name: str, input_shape: Sequence[int], classes: int) -> nn.Module:
    factory, smallest = SERIES_MODELS[name]
    if len(input_shape) != 2 or input_shape[1] < smallest:
        is_map = len(input_shape) == 3
        hint = ": inputs.reshape(n, channels, -1) makes a series of an image" if is_map else ""
        raise ConfigError(
            f"model {name!r} cannot take inputs of shape {tuple(input_shape)}; it needs "
            f"(channels, length) with a length of at least {smallest}{hint}"
        )
    return factory(input_shape[0], classes)
