"""What the networks of the zoo are built of."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Norm = Callable[[int], nn.Module]
"""Makes the norm of so many channels."""


def conv_norm(
    norm: Norm, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return a bias-free convolution ("same" padding at stride 1) and its norm."""
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, norm(cout))


def conv_bn(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a bias-free convolution ("same" padding at stride 1) and its BatchNorm."""
    return conv_norm(nn.BatchNorm2d, cin, cout, kernel, stride, groups)


def head(features: int, classes: int) -> list[nn.Module]:
    """Return the layers from the last map to the logits: the mean of it, and a linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]
