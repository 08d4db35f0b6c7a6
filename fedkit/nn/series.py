"""Networks over series, float32 [n, channels, length]: what microphones and sensors give."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


def conv_bn1d(cin: int, cout: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return a bias-free convolution ("same" padding at stride 1) and its BatchNorm."""
    conv = nn.Conv1d(cin, cout, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm1d(cout))


def _head(features: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(features, classes)]


class TemporalBlock(nn.Module):
    """Two convolutions of 9 steps and a shortcut, a 1x1 convolution, at half the length."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.first = conv_bn1d(cin, cout, 9, stride=2)
        self.second = conv_bn1d(cout, cout, 9)
        self.shortcut = conv_bn1d(cin, cout, 1, stride=2)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.relu(self.shortcut(x))
        out: Tensor = self.relu(self.second(self.relu(self.first(x))) + shortcut)
        return out


def tc_resnet8(channels: int, classes: int) -> nn.Module:
    """TC-ResNet8 (Choi et al., 2019; keyword spotting): 65 k parameters at 40 channels.

    Channels are the coefficients of a spectrum, 40 in the paper, so that a convolution along time
    sees all of them. The dropout before its linear layer is left out: plans hold none.
    """
    widths = (16, 24, 32, 48)
    layers: list[nn.Module] = [conv_bn1d(channels, widths[0], 3), nn.ReLU()]
    layers += [TemporalBlock(cin, cout) for cin, cout in pairwise(widths)]
    return nn.Sequential(*layers, *_head(widths[-1], classes))


def har_cnn(channels: int, classes: int) -> nn.Module:
    """Three convolutions of 5 steps, halved twice: 53 k parameters at 9 channels, 6 activities.

    It is of no paper: it is the form in which activities are usually told from accelerometers and
    gyroscopes, with a mean over the length in place of large linear layers.
    """
    layers: list[nn.Module] = []
    cin = channels
    for width in (32, 64, 128):
        layers += [nn.MaxPool1d(2)] if layers else []
        layers += [conv_bn1d(cin, width, 5), nn.ReLU()]
        cin = width
    return nn.Sequential(*layers, *_head(cin, classes))
