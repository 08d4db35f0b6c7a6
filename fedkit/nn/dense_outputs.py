"""Networks that return as much as they read: classes of each pixel, or the inputs themselves."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkit.nn.blocks import conv_bn


def _twice(cin: int, cout: int) -> nn.Sequential:
    layers = [conv_bn(cin, cout, 3), nn.ReLU(), conv_bn(cout, cout, 3), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """U-Net (Ronneberger et al., 2015) of any width and number of levels.

    Each level halves height and width and has twice the channels. On the way back the smaller map
    is resized to the nearest pixel (in the paper a transposed convolution learns it) and joined to
    the level's own. Convolutions are padded and have BatchNorm, so that the logits are of the
    input's size; sizes need not be even.
    """

    def __init__(self, channels: int, classes: int, width: int, levels: int = 3) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(_twice(*each) for each in pairwise([channels, *widths]))
        self.up = nn.ModuleList(_twice(low + high, low) for low, high in pairwise(widths))
        self.pool, self.logits = nn.MaxPool2d(2), nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, classes, height, width] of inputs [n, channels, height, width]."""
        levels = [self.down[0](x)]
        for block in list(self.down)[1:]:
            levels.append(block(self.pool(levels[-1])))
        y = levels.pop()
        for block, own in zip(reversed(self.up), reversed(levels), strict=True):
            y = block(torch.cat([own, functional.interpolate(y, size=own.shape[2:])], 1))
        logits: Tensor = self.logits(y)
        return logits


def unet_w8(channels: int, classes: int) -> nn.Module:
    """U-Net of three levels with 8, 16 and 32 channels: 29 k parameters."""
    return UNet(channels, classes, width=8)


def ad_autoencoder(features: int, outputs: int) -> nn.Module:
    """The autoencoder of MLPerf Tiny (anomaly detection): 267,928 parameters at 640 features.

    Four layers of 128, a bottleneck of 8, four layers of 128, each with BatchNorm1d and ReLU, and
    one back to the features. What it cannot reconstruct is an anomaly.
    """
    widths = (features, *[128] * 4, 8, *[128] * 4)
    layers: list[nn.Module] = []
    for before, width in pairwise(widths):
        layers += [nn.Linear(before, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))
