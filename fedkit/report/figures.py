"""Figures of Plotly as plain dictionaries, made without it: lines, bands and their layout.

A figure is `{"data": traces, "layout": ...}`. Texts of others pass `label`, values that are no
numbers are None. Colours of text come from the page, which knows of light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedkit.report.markup import label
from fedkit.report.plots import COLOURS as PALETTE
from fedkit.report.run_steps import Step
from fedkit.report.thin import thinned
from fedkit.tasks.task import Metric

MOST_POINTS = 1000
"""Of a line, where there are few lines."""

_ALL_POINTS = 4_000
"""Of the lines of a chart together."""

_DASHES = ("solid", "dash", "dot", "dashdot")

COLOURS = (*PALETTE[:-1], "#888888")
"""Of lines and bars; black would be lost in the dark."""

Values = Sequence[float | None]


@dataclass(frozen=True)
class Chart:
    """A figure with its heading, and what was left out of it ("" where nothing was)."""

    title: str
    figure: dict[str, Any]
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """A line of a chart: what it is called, and a value for each step."""

    name: str
    rounds: Sequence[int]
    values: Values
    phases: Sequence[str]

    @classmethod
    def of(cls, name: str, steps: Sequence[Step], values: Values) -> Curve:
        """Return the line of a value for each of some steps."""
        return cls(name, [s["round"] for s in steps], values, [s["phase"] for s in steps])


def density_axis(lines: Sequence[Curve]) -> dict[str, Any]:
    """Return a logarithmic scale where densities differ by a factor of ten."""
    values = [value for line in lines for value in line.values if value is not None]
    wide = values and min(values) > 0 and max(values) > 10 * min(values)
    return {"type": "log", "dtick": "D2"} if wide else {"rangemode": "tozero"}


def line_chart(title: str, what: str, lines: Sequence[Curve]) -> Chart:
    """Return lines over rounds, thinned where they are long; what is thinned is said."""
    most = max(10, min(MOST_POINTS, _ALL_POINTS // max(1, len(lines))))
    kept = [thinned(line.values, most) for line in lines]
    traces = [_trace(n, line, kept[n]) for n, line in enumerate(lines)]
    longest = max((len(line.values) for line in lines), default=0)
    drawn = max(map(len, kept), default=0)
    note = (
        f"Of {longest:,} steps, {drawn:,} are drawn: in each part of the line the least and the "
        "largest value."
    )
    figure = new_figure(traces, what)
    last = max((line.rounds[-1] for line in lines if line.rounds), default=0)
    figure["layout"]["xaxis"] |= whole_ticks(last)
    return Chart(title, figure, note if drawn < longest else "")


def two_by_two(chart: Chart) -> None:
    """Give every two lines one colour, the second one dotted."""
    for number, trace in enumerate(chart.figure["data"]):
        trace["line"] = style(number // 2) | {"dash": ("solid", "dot")[number % 2]}


def whole_ticks(last: int) -> dict[str, Any]:
    """Return ticks at whole numbers, which a short axis would not have by itself."""
    return {"tick0": 0, "dtick": 1} if last <= 12 else {}


def _trace(number: int, line: Curve, kept: Sequence[int]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(kept) <= 60 else "lines",
        "name": label(line.name),
        "legendgroup": label(line.name),
        "x": [line.rounds[each] for each in kept],
        "y": [line.values[each] for each in kept],
        **_phases([line.phases[each] for each in kept]),
        "connectgaps": True,
        "line": style(number),
    }


def _phases(phases: Sequence[str]) -> dict[str, Any]:
    """Return what is said of points beside their values; nothing where all are of one phase."""
    return {"text": phases} if len(set(phases)) > 1 else {}


def style(number: int) -> dict[str, Any]:
    """Return how the line of a number looks, told apart from those before it."""
    turn = number // len(COLOURS) % len(_DASHES)
    return {"color": COLOURS[number % len(COLOURS)], "dash": _DASHES[turn], "width": 2}


def metric_title(metric: Metric, versus: str) -> str:
    """Return the heading of a chart of a metric versus something."""
    lower = "" if metric.higher_is_better else " (lower is better)"
    return f"{metric.name[:1].upper()}{metric.name[1:]} {versus}{lower}"


def metric_axis(figure: dict[str, Any], metric: Metric, axis: str = "yaxis") -> None:
    """Write the numbers of an axis in per cent, where those of its metric are."""
    if metric.form.endswith("%"):
        figure["layout"][axis]["tickformat"] = ".4~%"


def band(number: int, name: str, xs: Sequence[float], low: Values, high: Values) -> dict[str, Any]:
    """Return the area between two lines, which is shown and hidden with the line `name`.

    Args:
        number: Of the line whose colour it has.
        name: Of that line: its `legendgroup`.
        xs: Places on the lying axis.
        low: Lower ends there; a place without numbers is left out.
        high: Upper ends.
    """
    there = [
        (x, a, b) for x, a, b in zip(xs, low, high, strict=True) if a is not None and b is not None
    ]
    red, green, blue = bytes.fromhex(style(number)["color"][1:])
    return {
        "type": "scatter",
        "mode": "lines",
        "fill": "toself",
        "fillcolor": f"rgba({red},{green},{blue},0.18)",
        "line": {"width": 0},
        "x": [x for x, _, _ in there] + [x for x, _, _ in reversed(there)],
        "y": [a for _, a, _ in there] + [b for _, _, b in reversed(there)],
        "legendgroup": label(name),
        "name": label(name),
        "showlegend": False,
        "hoverinfo": "skip",
    }


_GRID = {"gridcolor": "rgba(128,128,128,0.3)", "zerolinecolor": "rgba(128,128,128,0.5)"}


def new_figure(traces: list[dict[str, Any]], what: str, height: int = 360) -> dict[str, Any]:
    """Return a figure of traces over rounds; `what` names the upright axis."""
    layout = {
        "height": height,
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"bgcolor": "#222222", "font": {"color": "#ffffff"}, "namelength": 60},
        "showlegend": True,
        "legend": {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#888888", "activecolor": "#0072B2"},
        "xaxis": {**_GRID, "title": {"text": "round"}, "automargin": True},
        "yaxis": {**_GRID, "title": {"text": label(what)}, "automargin": True},
    }
    return {"data": traces, "layout": layout}
