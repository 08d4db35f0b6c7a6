"""Models of people whose layers are over the last axis: tokens, and maps with channels last."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mixer(nn.Module):
    """Patches of an image as tokens; layers over tokens and over channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 6, 4, 4)
        self.token_in, self.token_out = nn.Linear(6, 5), nn.Linear(5, 6)
        self.channel_in, self.channel_out = nn.Linear(6, 9), nn.Linear(9, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.token_out(F.gelu(self.token_in(x.transpose(1, 2)))).transpose(1, 2)
        x = x + self.channel_out(F.relu(self.channel_in(x)))
        logits: Tensor = self.head(x.mean(1))
        return logits


class Next(nn.Module):
    """A block of a ConvNeXt: filters per channel, then layers with channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 4, 4)
        self.filters = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.grow, self.shrink = nn.Linear(6, 11), nn.Linear(11, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.shrink(F.gelu(self.grow(self.filters(x).permute(0, 2, 3, 1))))
        logits: Tensor = self.head((x + y.permute(0, 3, 1, 2)).mean((-2, -1)))
        return logits


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mixer": (Mixer, (1, 8, 12)),
    "next": (Next, (1, 12, 8)),
}


def made(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a model with weights of its own, and the shape of an example."""
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    return make(), shape
