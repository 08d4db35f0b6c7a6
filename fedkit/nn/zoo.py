"""The model zoo: each network under the name of the paper or benchmark it comes from.

All are plain torch modules with BatchNorm, GroupNorm or LayerNorm. What a model takes, float32
[n, channels, height, width], series [n, channels, length], features [n, features] or int64 tokens
[n, tokens], and what it returns, its row in `MODELS` says: logits [n, classes] most of them. A
width other than the published one is part of the name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fedkit.core import moved
from fedkit.core.errors import ConfigError
from fedkit.nn.blocks import Norm, conv_bn, conv_norm, head
from fedkit.nn.dense_outputs import ad_autoencoder, unet_w8
from fedkit.nn.gated import char_lstm, har_gru
from fedkit.nn.mobile import (
    efficientnet_lite0,
    mobilenetv1,
    mobilenetv2,
    mobilenetv3_small,
)
from fedkit.nn.series import har_cnn, tc_resnet8
from fedkit.nn.transformers import char_gpt, kwt1, slab_vit_tiny, vit_tiny

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


class ZooModel(NamedTuple):
    """A row of the zoo; the first two are what a row was until 0.1.

    Attributes:
        build: (channels or features, outputs) -> the module; the former is the whole shape of an
            example where the model is built for one size.
        smallest: Least height and width of maps, length of series, or number of features or tokens.
        takes: What its inputs are.
        returns: A logit per class, one of each pixel or step, or what it was given.
        of_one_size: Whether it is built for one height and width, or length.
    """

    build: Callable[[Any, int], nn.Module]
    smallest: int
    takes: Literal["maps", "series", "features", "tokens"] = "maps"
    returns: Literal["logits", "logits of pixels", "logits of steps", "its inputs"] = "logits"
    of_one_size: bool = False


MODELS: dict[str, ZooModel] = {
    "resnet8": ZooModel(resnet8, 4),
    "resnet18": ZooModel(resnet18, 8),
    "resnet18-w16": ZooModel(resnet18_w16, 8),
    "resnet18-gn": ZooModel(resnet18_gn, 8),
    "resnet18-gn-w16": ZooModel(resnet18_gn_w16, 8),
    "vgg11": ZooModel(vgg11, 32),
    "ds-cnn": ZooModel(ds_cnn, 10),
    "vww-mobilenetv1-0.25": ZooModel(partial(mobilenetv1, 0.25), 28),
    "mobilenetv2-w0.25": ZooModel(partial(mobilenetv2, 0.25), 8),
    "mobilenetv2-w0.5": ZooModel(partial(mobilenetv2, 0.5), 8),
    "mobilenetv2-w1.0": ZooModel(partial(mobilenetv2, 1.0), 8),
    "mobilenetv3-small-w0.5": ZooModel(partial(mobilenetv3_small, 0.5), 8),
    "mobilenetv3-small": ZooModel(partial(mobilenetv3_small, 1.0), 8),
    "efficientnet-lite0": ZooModel(efficientnet_lite0, 8),
    "vit-tiny": ZooModel(vit_tiny, 4, of_one_size=True),
    "slab-vit-tiny": ZooModel(slab_vit_tiny, 4, of_one_size=True),
    "unet-w8": ZooModel(unet_w8, 4, returns="logits of pixels"),
    "tc-resnet8": ZooModel(tc_resnet8, 8, "series"),
    "har-cnn": ZooModel(har_cnn, 4, "series"),
    "kwt-1": ZooModel(kwt1, 2, "series", of_one_size=True),
    "char-gpt": ZooModel(char_gpt, 2, "tokens", "logits of steps", of_one_size=True),
    "char-lstm": ZooModel(char_lstm, 2, "tokens", "logits of steps"),
    "har-gru": ZooModel(har_gru, 2, "series"),
    "ad-autoencoder": ZooModel(ad_autoencoder, 8, "features", "its inputs"),
}
"""Every model by its name."""


def smallest_shape(name: str, channels: int) -> tuple[int, ...]:
    """Return the shape of the smallest inputs of a model, with so many channels if it has some."""
    row = MODELS[name]
    sizes = {"maps": 2, "series": 1, "features": 0, "tokens": 0}[row.takes]
    return (channels, *[row.smallest] * sizes) if sizes else (row.smallest,)


def build_model(name: str, input_shape: Sequence[int], classes: int) -> nn.Module:
    """Build a zoo model for inputs of one shape.

    Args:
        name: A key of `MODELS`.
        input_shape: (channels, height, width) of one example, (channels, length), (features,) or
            (tokens,).
        classes: Number of logits, or of those of a pixel; what returns its inputs has as many
            outputs as these are.

    Raises:
        ConfigError: Unknown name, or inputs of another kind than the model takes, or smaller ones
            than its strides allow.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}; allowed: {', '.join(MODELS)}")
    row, shape = MODELS[name], tuple(input_shape)
    wanted, sizes = _TAKEN[row.takes]
    if len(shape) != len(smallest_shape(name, 1)) or min(shape[-sizes:]) < row.smallest:
        raise ConfigError(
            f"model {name!r} cannot take inputs of shape {shape}; it needs "
            f"{wanted.format(row.smallest)}{_hint(row, shape)}"
        )
    outputs = shape[0] if row.returns == "its inputs" else classes
    return row.build(shape if row.of_one_size else shape[0], outputs)


_TAKEN = {
    "maps": ("(channels, height, width) with height and width of at least {}", 2),
    "series": ("(channels, length) with a length of at least {}", 1),
    "features": ("(features,), at least {} of them", 1),
    "tokens": ("(tokens,), at least {} of them", 1),
}
"""What a model takes -> that in words, and how many sizes at the end of a shape may be small."""


def _hint(row: ZooModel, shape: tuple[int, ...]) -> str:
    """Say how inputs that a model does not take become such."""
    is_map = len(shape) == 3
    if row.takes == "maps" and is_map and shape[2] in (1, 3, 4) and min(shape[:2]) > 4:
        return ": channels are last here, transpose(0, 3, 1, 2) puts them first"
    if row.takes == "series" and is_map:
        return ": inputs.reshape(n, channels, -1) makes a series of an image"
    if row.takes == "features" and len(shape) > 1:
        return ": inputs.reshape(n, -1) makes features of any"
    return ""
