"""A picture of a layer's mask: a mark for each weight that is kept.

matplotlib comes with the extra `plots` and is imported when a picture is drawn.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedkit.core.text import cut
from fedkit.report.plots import COLOURS, to_png, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Mask = NDArray[np.bool_]

_MOST_ROWS, _MOST_COLUMNS = 96, 192
"""Of marks; of a larger layer a cell is the share that is kept of a block of weights."""

_AREA = 400.0, 250.0
"""Width and height of the axes in points, roughly, which marks fill."""


def picture(name: str, mask: Mask, ending: str) -> bytes:
    """Draw a mask: filters downwards, what they read to the right.

    Args:
        name: Of the layer.
        mask: [out, in, ...], True where a weight is kept; what follows the inputs is the kernel.
        ending: ".svg" or ".png".
    """

    def draw() -> Figure:
        return _figure(name, mask)

    return to_png(draw) if ending == ".png" else to_svg(draw).encode()


def blocks(cells: Mask) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Return the kept shares of blocks of a matrix that is too large to draw, and their size.

    Blocks at the lower and right edge may hold fewer weights, and count those alone.
    """
    size = -(-cells.shape[0] // _MOST_ROWS), -(-cells.shape[1] // _MOST_COLUMNS)
    sums, counts = cells.astype(np.float64), np.ones(cells.shape)
    for axis, step in enumerate(size):
        starts = np.arange(0, cells.shape[axis], step)
        sums, counts = (np.add.reduceat(each, starts, axis) for each in (sums, counts))
    return sums / counts, size


def _figure(name: str, mask: Mask) -> Figure:
    from matplotlib.figure import Figure

    cells = mask.reshape(len(mask), -1) if mask.ndim > 1 else mask[None]
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.add_subplot()
    shares, size = blocks(cells)
    note = ""
    if size == (1, 1):
        _marks(axes, cells)
    else:
        extent = (-0.5, cells.shape[1] - 0.5, len(cells) - 0.5, -0.5)
        drawn = axes.imshow(
            shares, aspect="auto", cmap="viridis", vmin=0, interpolation="none", extent=extent
        )
        figure.colorbar(drawn, label="kept share")
        note = f"\nsampled down: a cell is {size[0]} x {size[1]} weights"
    _labels(axes, cells, math.prod(mask.shape[2:]), mask.shape[2:])
    shape = " x ".join(map(str, mask.shape))
    kept = f"{int(mask.sum()):,} of {mask.size:,} kept ({mask.mean():.2%})"
    title = f"{cut(name, 40)}: {shape}, {kept}{note}"
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    return figure


def _marks(axes: Axes, cells: Mask) -> None:
    rows, columns = np.nonzero(cells)
    side = min(_AREA[0] / cells.shape[1], _AREA[1] / cells.shape[0], 20)
    axes.scatter(columns, rows, s=side**2, marker="s", color=COLOURS[0], linewidths=0, gid="kept")
    axes.set_xlim(-0.5, cells.shape[1] - 0.5)
    axes.set_ylim(len(cells) - 0.5, -0.5)


def _labels(axes: Axes, cells: Mask, kernel: int, window: tuple[int, ...]) -> None:
    """Number filters and channels; a channel's number stands where its kernel begins."""
    from matplotlib.ticker import MaxNLocator

    channels = cells.shape[1] // kernel
    every = -(-channels // 12)
    starts = np.arange(0, channels, every)
    axes.set_xticks(starts * kernel - (0.5 if kernel > 1 else 0), [str(each) for each in starts])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    of_each = f", {' x '.join(map(str, window))} weights each" if kernel > 1 else ""
    axes.set_xlabel(f"input channel{of_each}")
    axes.set_ylabel("output channel")
