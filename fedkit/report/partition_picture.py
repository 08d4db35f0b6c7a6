"""A picture of what each device holds: its classes, or the number of its examples.

matplotlib comes with the extra `plots` and is imported when a picture is drawn.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedkit.core.errors import CheckpointError
from fedkit.core.files import write_atomic
from fedkit.report.plots import COLOURS, to_svg
from fedkit.server.checkpoint import RunFolder
from fedkit.server.shares import Shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE = "partition.svg"

_MOST_BUBBLES = 2000
"""Of devices times classes; more are drawn as a map of colours."""

_LARGEST = 200.0
"""Area of the largest bubble, in square points."""


def write_picture(folder: RunFolder) -> Path | None:
    """Draw what the devices of a simulation hold; return the picture's path.

    Returns:
        None where the run has no simulated devices, or matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return None
    try:
        shares = folder.shares()
    except CheckpointError:
        return None
    path = folder.path / PICTURE
    write_atomic(path, picture(shares, folder.config.partition).encode())
    return path


def picture(shares: Shares, kind: str) -> str:
    """Return an SVG: devices to the right, classes upwards, an area for each number of examples.

    Args:
        shares: What devices hold.
        kind: Name of the partition.
    """
    return to_svg(lambda: _figure(shares, kind))


def _figure(shares: Shares, kind: str) -> Figure:
    from matplotlib.figure import Figure

    devices, classes = shares.counts.shape
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.add_subplot()
    if not classes:
        axes.bar(np.arange(devices), shares.sizes, color=COLOURS[0])
        axes.set_ylabel("examples")
    elif devices * classes <= _MOST_BUBBLES:
        _bubbles(axes, shares)
    else:
        drawn = axes.imshow(shares.counts.T, aspect="auto", origin="lower", cmap="viridis")
        figure.colorbar(drawn, label="examples")
    if classes:
        axes.set_ylabel("class")
        _ticks(axes, shares)
    axes.set_xlabel("device")
    axes.set_title(
        f"{kind}: {devices} devices with {shares.sizes.min()} to {shares.sizes.max()} examples",
        loc="left",
        fontsize=11,
    )
    return figure


def _bubbles(axes: Axes, shares: Shares) -> None:
    device, label = np.nonzero(shares.counts)
    counts = shares.counts[device, label]
    area = _LARGEST * counts / counts.max()
    axes.scatter(device, label, s=area, color=COLOURS[0], linewidths=0, gid="bubbles")
    axes.margins(0.06)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def _ticks(axes: Axes, shares: Shares) -> None:
    """Name classes by their targets, at most a dozen of them."""
    from matplotlib.ticker import MaxNLocator

    places = np.arange(0, len(shares.classes), -(-len(shares.classes) // 12))
    axes.set_yticks(places, [str(each) for each in shares.classes[places]])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
