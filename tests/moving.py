"""Models of people that put values elsewhere: they cut, split, turn, reflect and enlarge."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SkippedLevels(nn.Module):
    """Down, up by the nearest, and both joined; borders are reflected."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="reflect")
        self.inner = nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate")
        self.up = nn.Upsample(scale_factor=2)
        self.join = nn.Conv2d(7, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.inner(F.relu(self.down(x))))
        return self.join(torch.cat([x, self.up(inner)], 1)).flatten(1)


class Tcn(nn.Module):
    """A causal convolution padded on both sides, whose end is cut off; its last step counts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, padding=4, dilation=2)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        last: Tensor = self.out(F.relu(self.conv(x)[..., :-4])[:, :, -1])
        return last


class Halves(nn.Module):
    """Half of the channels go past a convolution, and all are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.first(x)).chunk(2, 1)
        both = torch.cat([left, F.relu(self.other(right))], 1)
        return nn.ChannelShuffle(2)(both).mean((2, 3))


def pools() -> nn.Module:
    """Return pools whose windows are of unequal sizes, or have holes."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.MaxPool2d(2, 2, 1, dilation=2),
        nn.ReLU(),
        nn.Conv2d(4, 6, 1),
        nn.AdaptiveAvgPool2d((3, 4)),
        nn.AdaptiveMaxPool2d((2, 3)),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(12, 2),
    )


class Normalised(nn.Module):
    """Brings its inputs into shape itself, by numbers that nothing trains."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, -0.25, 0.0]).view(3, 1, 1))
        self.std = 0.5
        self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv((x - self.mean) / self.std))
        logits: Tensor = self.out((2 * y - 1).mean((2, 3)))
        return 0.5 * logits


class Torus(nn.Module):
    """Borders come from the other end, by slices that are joined; both halves of a row count."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[..., -1:], x, x[..., :1]], -1)
        x = F.relu(self.conv(torch.cat([x[:, :, -1:], x, x[:, :, :1]], 2)))
        both = torch.cat([F.max_pool2d(x, (1, 5)), x[..., ::4]], 3)
        return both.mean((2, 3))


class Shuffled(nn.Module):
    """Channels are shuffled by views, and a convolution sees height, width and channels turned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.turned = nn.Conv2d(3, 4, 3), nn.Conv2d(6, 2, 1)
        self.grown = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        x = self.turned(x.reshape(n, 6, 2, -1)).permute(0, 2, 3, 1)
        return self.grown(x.mean((2, 3)).repeat(1, 2)).unflatten(1, (2, 2, 2)).mT.flatten(1)


class Reduced(nn.Module):
    """Means, sums and maxima over all sorts of dimensions, of a convolution that reads one more."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.both = nn.Conv2d(3, 4, 3), nn.Conv2d(6, 4, 1)
        self.last = nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.relu(self.first(x)), (0, 1, 2, 0))
        x = self.both(torch.cat([x, x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1))
        lines = torch.cat([x.sum(2), x.mean(2), x.max(3).values], 2).flatten(1)
        ends = self.last(lines) + x.sum((1, 3))[:, :2], x.mean((2, 3)).sum(1, True)
        return torch.cat(ends, 1)


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "U-Net": (SkippedLevels, (3, 8, 8)),
    "TCN": (Tcn, (3, 12)),
    "pools": (pools, (3, 13, 14)),
    "halves": (Halves, (3, 6, 6)),
    "torus": (Torus, (3, 5, 5)),
    "shuffled": (Shuffled, (3, 6, 5)),
    "reduced": (Reduced, (3, 4, 5)),
}

TRAINED = {**KINDS, "normalised": (Normalised, (3, 6, 6))}
"""Those, and one that computes with numbers."""
