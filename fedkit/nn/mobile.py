"""The networks of the zoo that are made for phones: MobileNets and EfficientNet-Lite.

All are in the form for small images: the stem and the first stage that shrinks the map keep its
size, so that images of 32x32 end as 4x4. Every number of channels is multiplied by the width and
rounded to a multiple of 8.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fedkit.nn.blocks import conv_bn, head

Activation = Callable[[], nn.Module]


def multiple_of_8(channels: float) -> int:
    """Round to the nearest multiple of 8, which is 8 at least and no less than 90 % of it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class SqueezeExcite(nn.Module):
    """A gate per channel: the mean of the map, two 1x1 convolutions, hard-sigmoid, product."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = multiple_of_8(channels / 4)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(x)
        return out


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise and linear 1x1 convolution, and x itself where it fits.

    Args:
        cin: Channels of the input.
        inner: Channels behind the expansion, which is left out where they are no more.
        cout: Channels of the output.
        kernel: Height and width of the depthwise convolution.
        stride: Of the depthwise convolution.
        activation: Behind the expansion and the depthwise convolution.
        gated: Whether the depthwise convolution's map goes through a `SqueezeExcite`.
    """

    def __init__(
        self,
        cin: int,
        inner: int,
        cout: int,
        kernel: int = 3,
        stride: int = 1,
        activation: Activation = nn.ReLU6,
        gated: bool = False,
    ) -> None:
        super().__init__()
        expand = [] if inner == cin else [conv_bn(cin, inner, 1), activation()]
        depthwise = [conv_bn(inner, inner, kernel, stride, groups=inner), activation()]
        gate = [SqueezeExcite(inner)] if gated else []
        self.layers = nn.Sequential(*expand, *depthwise, *gate, conv_bn(inner, cout, 1))
        self.has_shortcut = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.has_shortcut else out


# (channels, stride) of each depthwise-separable block; table 1 of the paper.
_MOBILENETV1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5)
_MOBILENETV1_END = ((1024, 2), (1024, 1))


def mobilenetv1(width: float, channels: int, classes: int) -> nn.Module:
    """MobileNetV1 as published, stem of stride 2: MLPerf Tiny's visual wake words at width 0.25."""
    cin = multiple_of_8(32 * width)
    layers: list[nn.Module] = [conv_bn(channels, cin, 3, 2), nn.ReLU()]
    for published, stride in (*_MOBILENETV1, *_MOBILENETV1_END):
        cout = multiple_of_8(published * width)
        layers += [conv_bn(cin, cin, 3, stride, groups=cin), nn.ReLU()]
        layers += [conv_bn(cin, cout, 1), nn.ReLU()]
        cin = cout
    return nn.Sequential(*layers, *head(cin, classes))


# (expansion, channels, blocks, stride of the first block); table 2 of the paper has stride 2 in
# the second row and in the stem, which for 32x32 images is 1.
_MOBILENETV2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenetv2(width: float, channels: int, classes: int) -> nn.Module:
    """MobileNetV2: 2.24 M parameters at width 1, 3 channels and 10 classes.

    The last number of channels, 1280, becomes no less at widths below 1.
    """
    cin = multiple_of_8(32 * width)
    layers: list[nn.Module] = [conv_bn(channels, cin, 3), nn.ReLU6()]
    for expansion, published, blocks, first_stride in _MOBILENETV2:
        cout = multiple_of_8(published * width)
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            layers.append(InvertedResidual(cin, cin * expansion, cout, stride=stride))
            cin = cout
    last = multiple_of_8(1280 * max(1.0, width))
    layers += [conv_bn(cin, last, 1), nn.ReLU6()]
    return nn.Sequential(*layers, *head(last, classes))


# (kernel, inner channels, channels, squeeze-excite, hard-swish, stride); table 2 of the paper has
# stride 2 in the first row and in the stem, which for 32x32 images is 1.
_MOBILENETV3_SMALL = (
    (3, 16, 16, True, False, 1),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)


def mobilenetv3_small(width: float, channels: int, classes: int) -> nn.Module:
    """MobileNetV3-Small: 1.53 M parameters at width 1, 3 channels and 10 classes.

    Without the dropout before the last layer.
    """
    cin = multiple_of_8(16 * width)
    layers: list[nn.Module] = [conv_bn(channels, cin, 3), nn.Hardswish()]
    for kernel, inner, cout, gated, hard_swish, stride in _MOBILENETV3_SMALL:
        wide, out = multiple_of_8(inner * width), multiple_of_8(cout * width)
        activation = nn.Hardswish if hard_swish else nn.ReLU
        layers.append(InvertedResidual(cin, wide, out, kernel, stride, activation, gated))
        cin = out
    last, hidden = 6 * cin, multiple_of_8(1024 * width)
    layers += [conv_bn(cin, last, 1), nn.Hardswish()]
    return nn.Sequential(*layers, *head(last, hidden), nn.Hardswish(), nn.Linear(hidden, classes))


# (expansion, channels, blocks, kernel, stride of the first block); table 1 of EfficientNet's paper
# has stride 2 in the second row and in the stem, which for 32x32 images is 1.
_EFFICIENTNET_B0 = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 1),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)


def efficientnet_lite0(channels: int, classes: int) -> nn.Module:
    """EfficientNet-Lite0, B0 with ReLU6 and no gates: 3.38 M parameters at 3 channels, 10 classes.

    Without the dropout before the last layer.
    """
    cin = 32
    layers: list[nn.Module] = [conv_bn(channels, cin, 3), nn.ReLU6()]
    for expansion, cout, blocks, kernel, first_stride in _EFFICIENTNET_B0:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            layers.append(InvertedResidual(cin, cin * expansion, cout, kernel, stride))
            cin = cout
    layers += [conv_bn(cin, 1280, 1), nn.ReLU6()]
    return nn.Sequential(*layers, *head(1280, classes))
