"""Models of people that enlarge maps: by transposed convolutions and by shuffles of pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Decoder(nn.Module):
    """Down and up again, with norms, as generators and autoencoders are; a mean at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())
        self.up = nn.Sequential(
            nn.ConvTranspose2d(6, 5, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.ConvTranspose2d(5, 4, 3, stride=2, padding=1, output_padding=1),
            nn.ReLU6(),
            nn.ConvTranspose2d(4, 3, 2, stride=2),
        )
        self.last = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.up(self.down(x)).mean((2, 3)))
        return found


def _odd() -> nn.Module:
    """Kernels below, above and beside the stride, gaps in them, and a result that is cut off."""
    return nn.Sequential(
        nn.ConvTranspose2d(2, 4, (1, 5), stride=(2, 3), padding=(0, 4), output_padding=(1, 2)),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 3, (3, 2), stride=1, padding=1, dilation=(1, 3)),
        nn.Flatten(),
        nn.LazyLinear(2),
    )


def _separable() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 1),
        nn.ConvTranspose2d(6, 6, 4, stride=2, padding=1, groups=6),
        nn.ReLU(),
        nn.Conv2d(6, 2, 1),
        nn.Flatten(),
        nn.LazyLinear(2),
    )


def _series() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, stride=2),
        nn.ReLU(),
        nn.ConvTranspose1d(4, 3, 5, stride=3, padding=2, output_padding=1, bias=False),
        nn.BatchNorm1d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(2),
    )


def _shuffles() -> nn.Module:
    """Superresolution: pixels from channels; and the reverse, by another block."""
    return nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.PixelShuffle(2),
        nn.PixelUnshuffle(3),
        nn.Conv2d(27, 2, 1),
        nn.Flatten(),
        nn.LazyLinear(2),
    )


class Segmented(nn.Module):
    """Two scales joined, the smaller one enlarged between its pixels, and a map twice as large."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
        self.last = nn.Linear(8 * 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        fine = F.relu(self.fine(x))
        coarse = F.relu(self.coarse(fine))
        near = F.interpolate(coarse, scale_factor=2, mode="bilinear")
        joined = torch.cat([fine, near], 1)
        large = F.interpolate(joined, size=(8, 8), mode="bilinear", align_corners=True)
        found: Tensor = self.last(large.flatten(1))
        return found


def _stretched() -> nn.Module:
    """A series of a length and a half, and shrunk again."""
    return nn.Sequential(
        nn.Conv1d(2, 4, 3),
        nn.Upsample(scale_factor=1.5, mode="linear"),
        nn.ReLU(),
        nn.Upsample(size=6, mode="linear"),
        nn.Flatten(),
        nn.LazyLinear(2),
    )


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "decoder": (Decoder, (3, 8, 8)),
    "odd": (_odd, (2, 3, 5)),
    "separable": (_separable, (2, 4, 3)),
    "series": (_series, (2, 9)),
    "shuffles": (_shuffles, (2, 6, 3)),
    "segments": (Segmented, (2, 4, 6)),
    "stretched": (_stretched, (2, 10)),
}


def built(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a model, with statistics as if it had seen something, and the shape that it takes."""
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    model = make()
    model(torch.randn(16, *shape))
    return model.eval(), shape
