"""The jobs of small devices as pictures, one for each tutorial: what they reach and what they cost.

matplotlib comes with the extra `plots` and is imported when a picture is drawn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkit.report.plots import COLOURS, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_JOBS = {
    "damaged-digits": "anomaly",
    **{job: job for job in ("keywords", "keywords-kwt", "motions", "motions-gru")},
}
"""Job -> what its picture is called, its tutorial first."""

_TRAINED = {"fedtiny": "fleet, sparse", "dense": "fleet, dense", "central": "central, dense"}
_PROCESSORS = {"cortex-m4": "Cortex-M4", "cortex-a53": "Cortex-A53"}

_Row = Mapping[str, Any]


def job_plots(result: Path) -> dict[str, str]:
    """Return file name -> SVG of each job that a result of `fedkit bench jobs` has rows of."""
    rows: list[_Row] = json.loads(result.read_text(encoding="utf-8"))["rows"]
    found = {name: [row for row in rows if row["job"] == job] for job, name in _JOBS.items()}
    return {f"{result.stem}-{name}.svg": _picture(each) for name, each in found.items() if each}


def _picture(rows: Sequence[_Row]) -> str:
    return to_svg(lambda: _figure(rows))


def _figure(rows: Sequence[_Row]) -> Figure:
    from matplotlib.figure import Figure

    by_type = next((row for row in rows if "roc_auc_by_type" in row), None)
    figure = Figure(figsize=(8 if by_type is None else 11, 3), layout="constrained")
    panels = figure.subplots(1, 2 if by_type is None else 3)
    names = [f"{_TRAINED[row['trained']]}\n{row['density']:.0%} of weights" for row in rows]
    unit = rows[0]["unit"]
    _bars(panels[0], names, {key: [row[key] for row in rows] for key in ("float", "int8")}, "%.3f")
    panels[0].set_title(f"{unit} on test data", loc="left", fontsize=11)
    counts = {
        told: [row[key]["instructions"] / 1e6 for row in rows] for key, told in _PROCESSORS.items()
    }
    _bars(panels[1], names, counts, "%.2f")
    panels[1].set_title("million instructions of an inference", loc="left", fontsize=11)
    if by_type is not None:
        types = by_type["roc_auc_by_type"]
        _bars(panels[2], list(types), {_TRAINED[by_type["trained"]]: list(types.values())}, "%.2f")
        panels[2].set_title(f"{unit} by type of machine, int8", loc="left", fontsize=11)
    return figure


def _bars(
    axes: Axes, names: Sequence[str], series: Mapping[str, Sequence[float]], form: str
) -> None:
    """Draw a group of bars for each name, with their values above."""
    width = 0.8 / len(series)
    for number, ((label, values), colour) in enumerate(zip(series.items(), COLOURS, strict=False)):
        places = np.arange(len(names)) + (number - (len(series) - 1) / 2) * width
        drawn = axes.bar(places, values, width, label=label, color=colour)
        axes.bar_label(drawn, fmt=form, fontsize=7, padding=1)
    axes.set_xticks(np.arange(len(names)), names, fontsize=8)
    axes.margins(y=0.2)
    axes.legend(fontsize=8, loc="upper center", ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
