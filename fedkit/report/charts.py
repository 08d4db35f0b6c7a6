"""The charts of a report, as figures of Plotly: plain dictionaries, made without it.

A figure is `{"data": traces, "layout": ...}`. Texts of others pass `label`, values that are no
numbers are None. Colours of text come from the page, which knows of light and dark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from fedkit.report.markup import label
from fedkit.report.plots import COLOURS
from fedkit.report.reading import LayerDensity, Run
from fedkit.report.run_steps import Step, counted, is_number
from fedkit.report.thin import spread, thinned
from fedkit.server.shares import Shares

MOST_POINTS = 1000
"""Of a line, where there are few lines."""

_ALL_POINTS = 4_000
"""Of the lines of a chart together."""

_MOST_LAYERS = 120
_MOST_DEVICES, _MOST_CLASSES = 300, 100
_MOST_PARTITIONS = 8
_DASHES = ("solid", "dash", "dot", "dashdot")
_COLOURS = (*COLOURS[:-1], "#888888")  # black would be lost in the dark

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


def charts(runs: Sequence[Run], names: Sequence[str]) -> list[Chart]:
    """Return the charts of some runs, laid over each other; names tell their lines apart."""
    told = list(zip(runs, names, strict=True))
    return [
        *_metric_charts(told),
        *_own_data_charts(told),
        _lines("Loss over rounds", "loss", [_line(run, name, "loss") for run, name in told]),
        _bytes_chart(told),
        _lines("Seconds over rounds", "seconds", [_line(r, n, "seconds") for r, n in told]),
        _density_chart(told),
        *_layer_charts(told),
        *_device_charts(told),
        *_answer_charts(told),
    ]


_Named = Sequence[tuple[Run, str]]


def _metric_charts(told: _Named) -> list[Chart]:
    """Return a chart for each metric that runs have: values of two metrics share no axis."""
    found = []
    for name in dict.fromkeys(run.metric.name for run, _ in told):
        those = [(run, each) for run, each in told if run.metric.name == name]
        lower = "" if those[0][0].metric.higher_is_better else " (lower is better)"
        lines = [_line(run, each, "accuracy") for run, each in those]
        chart = _lines(f"{name[:1].upper()}{name[1:]} over rounds{lower}", name, lines)
        if those[0][0].metric.form.endswith("%"):
            chart.figure["layout"]["yaxis"]["tickformat"] = ".3~%"
        found.append(chart)
    return found


def _own_data_charts(told: _Named) -> list[Chart]:
    """Return a chart of what devices measured themselves, if any did: mean and worst tenth."""
    those = [(run, name) for run, name in told if any("devices_mean" in s for s in run.steps)]
    lines = [
        _line(run, f"{name}, {what}", key)
        for run, name in those
        for what, key in (("mean", "devices_mean"), ("worst tenth", "devices_worst"))
    ]
    what = ", ".join(dict.fromkeys(run.metric.name for run, _ in those))
    chart = _lines("On devices' own data", what, lines)
    for number, trace in enumerate(chart.figure["data"]):
        trace["line"] = _style(number // 2) | {"dash": ("solid", "dot")[number % 2]}
    return [chart] if those else []


def _bytes_chart(told: _Named) -> Chart:
    lines = [line for run, name in told for line in _bytes_lines(run, name)]
    chart = _lines("Bytes sent so far, all devices", "bytes", lines)
    for number, trace in enumerate(chart.figure["data"]):
        trace["line"] = _style(number // 2) | {"dash": ("solid", "dot")[number % 2]}
    return chart


def _bytes_lines(run: Run, name: str) -> list[Curve]:
    key = counted(run.steps)
    sums = {
        way: list(accumulate(step.get(f"{key}_{way}", 0) for step in run.steps))
        for way in ("down", "up")
    }
    return [_line_of(run, f"{name}, {way}", values) for way, values in sums.items()]


def _density_chart(told: _Named) -> Chart:
    lines = [_line(run, name, "density") for run, name in told]
    chart = _lines("Density over rounds", "kept share of the prunable weights", lines)
    chart.figure["layout"]["yaxis"] |= {"tickformat": ".3~%"} | _scale(lines)
    return chart


def _scale(lines: Sequence[Curve]) -> dict[str, Any]:
    """Return a logarithmic scale where densities differ by a factor of ten."""
    values = [value for line in lines for value in line.values if value is not None]
    wide = values and min(values) > 0 and max(values) > 10 * min(values)
    return {"type": "log", "dtick": "D2"} if wide else {"rangemode": "tozero"}


def _line(run: Run, name: str, key: str) -> Curve:
    return _line_of(run, name, [_number(step, key) for step in run.steps])


def _line_of(run: Run, name: str, values: Values) -> Curve:
    rounds, phases = [s["round"] for s in run.steps], [s["phase"] for s in run.steps]
    return Curve(name, rounds, values, phases)


def _number(step: Step, key: str) -> float | None:
    value = step.get(key)
    return value if is_number(value) else None


def _lines(title: str, what: str, lines: Sequence[Curve]) -> Chart:
    most = max(10, min(MOST_POINTS, _ALL_POINTS // max(1, len(lines))))
    kept = [thinned(line.values, most) for line in lines]
    traces = [_trace(n, line, kept[n]) for n, line in enumerate(lines)]
    longest = max((len(line.values) for line in lines), default=0)
    drawn = max(map(len, kept), default=0)
    note = (
        f"Of {longest:,} steps, {drawn:,} are drawn: in each part of the line the least and the "
        "largest value."
    )
    figure = _figure(traces, what)
    last = max((line.rounds[-1] for line in lines if line.rounds), default=0)
    figure["layout"]["xaxis"] |= _whole_ticks(last)
    return Chart(title, figure, note if drawn < longest else "")


def _whole_ticks(last: int) -> dict[str, Any]:
    """Return ticks at whole numbers, which a short axis would not have by itself."""
    return {"tick0": 0, "dtick": 1} if last <= 12 else {}


def _trace(number: int, line: Curve, kept: Sequence[int]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(kept) <= 60 else "lines",
        "name": label(line.name),
        "x": [line.rounds[each] for each in kept],
        "y": [line.values[each] for each in kept],
        **_phases([line.phases[each] for each in kept]),
        "connectgaps": True,
        "line": _style(number),
    }


def _phases(phases: Sequence[str]) -> dict[str, Any]:
    """Return what is said of points beside their values; nothing where all are of one phase."""
    return {"text": phases} if len(set(phases)) > 1 else {}


def _style(number: int) -> dict[str, Any]:
    turn = number // len(_COLOURS) % len(_DASHES)
    return {"color": _COLOURS[number % len(_COLOURS)], "dash": _DASHES[turn], "width": 2}


_GRID = {"gridcolor": "rgba(128,128,128,0.3)", "zerolinecolor": "rgba(128,128,128,0.5)"}


def _figure(traces: list[dict[str, Any]], what: str, height: int = 360) -> dict[str, Any]:
    layout = {
        "uirevision": "same",  # what a reader hid stays hidden when new values come
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


# Layers ----------------------------------------------------------------------------------------


def _layer_charts(told: _Named) -> list[Chart]:
    those = [(run, name) for run, name in told if run.layers]
    if not those:
        return []
    names = list(dict.fromkeys(layer.name for run, _ in those for layer in run.layers))
    kept = [names[each] for each in spread(len(names), _MOST_LAYERS)]
    rows = {name: row for row, name in enumerate(kept)}
    traces = [_bars(n, name, run.layers, rows) for n, (run, name) in enumerate(those)]
    height = 120 + min(2000, len(kept) * (14 + 6 * min(len(those), 6)))
    figure = _figure(traces, "", height)
    figure["layout"]["xaxis"] |= {"title": {"text": "kept share"}, "tickformat": ".3~%"}
    figure["layout"]["yaxis"] |= {
        "tickvals": list(rows.values()),
        "ticktext": [label(name, 40) for name in rows],
        "autorange": "reversed",
    }
    figure["layout"]["legend"] = {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0}
    note = f"Of {len(names):,} layers, {len(kept):,} are drawn." if len(kept) < len(names) else ""
    return [Chart("Density of each layer in the last checkpoint", figure, note)]


def _bars(
    number: int, name: str, layers: Sequence[LayerDensity], rows: dict[str, int]
) -> dict[str, Any]:
    drawn = [layer for layer in layers if layer.name in rows]
    return {
        "type": "bar",
        "orientation": "h",
        "name": label(name),
        "x": [layer.density for layer in drawn],
        "y": [rows[layer.name] for layer in drawn],
        "marker": {"color": _style(number)["color"]},
    }


# Devices ---------------------------------------------------------------------------------------


def _device_charts(told: _Named) -> list[Chart]:
    groups = partitions(told)
    drawn = groups[:_MOST_PARTITIONS]
    most = min(_MOST_DEVICES, 2 * _MOST_DEVICES // max(1, len(drawn)))
    found = [_device_chart(shares, names, most) for shares, names in drawn]
    if len(drawn) < len(groups):
        note = f"Of {len(groups)} ways to share data out, the first {len(drawn)} are drawn."
        found[-1] = replace(found[-1], note=f"{found[-1].note} {note}".strip())
    return found


def partitions(told: _Named) -> list[tuple[Shares, list[str]]]:
    """Return each way in which data is shared out, with the names of the runs that have it."""
    groups: list[tuple[Shares, list[str]]] = []
    for run, name in told:
        if run.shares is None:
            continue
        same = [names for shares, names in groups if _equal(shares, run.shares)]
        if same:
            same[0].append(name)
        else:
            groups.append((run.shares, [name]))
    return groups


def _equal(one: Shares, other: Shares) -> bool:
    return np.array_equal(one.sizes, other.sizes) and np.array_equal(one.counts, other.counts)


def _device_chart(shares: Shares, names: Sequence[str], most: int) -> Chart:
    devices = spread(len(shares.devices), most)
    classes = spread(len(shares.classes), _MOST_CLASSES)
    draw: Callable[..., dict[str, Any]] = _heat_map if len(shares.classes) else _size_bars
    figure = draw(shares, devices, classes)
    figure["layout"]["xaxis"] |= {"title": {"text": "device"}, **_whole_ticks(len(devices))}
    figure["layout"]["showlegend"] = False
    title = "Classes on each device" if len(shares.classes) else "Examples on each device"
    return Chart(f"{title}: {', '.join(names)}", figure, _left_out(shares, devices, classes))


def _left_out(shares: Shares, devices: Sequence[int], classes: Sequence[int]) -> str:
    parts = []
    if len(devices) < len(shares.devices):
        parts.append(f"Of {len(shares.devices):,} devices, {len(devices):,} are drawn.")
    if len(classes) < len(shares.classes):
        parts.append(f"Of {len(shares.classes):,} classes, {len(classes):,} are drawn.")
    return " ".join(parts)


def _heat_map(shares: Shares, devices: Sequence[int], classes: Sequence[int]) -> dict[str, Any]:
    trace = {
        "type": "heatmap",
        "x": devices,
        "y": [str(each) for each in shares.classes[classes]],
        "z": shares.counts[np.ix_(devices, classes)].T.tolist(),
        "colorscale": "Viridis",
        "colorbar": {"title": {"text": "examples", "side": "right"}},
        "hovertemplate": "device %{x}, class %{y}: %{z} examples<extra></extra>",
    }
    figure = _figure([trace], "class")
    figure["layout"]["yaxis"]["type"] = "category"
    return figure


def _size_bars(shares: Shares, devices: Sequence[int], _: Sequence[int]) -> dict[str, Any]:
    sizes = shares.sizes[list(devices)].tolist()
    trace = {"type": "bar", "x": devices, "y": sizes, "marker": {"color": _COLOURS[0]}}
    return _figure([trace], "examples")


_ENDS = {"answers": 2, "refused": 1, "failed": 3, "absent": 4}
"""What became of a request to a device -> the number of its colour."""

_MOST_FLEETS = 8


def _answer_charts(told: _Named) -> list[Chart]:
    fleets = [(run, name) for run, name in told if run.devices]
    found = [_answer_chart(run, name) for run, name in fleets[:_MOST_FLEETS]]
    if len(found) < len(fleets):
        note = f"Of {len(fleets)} fleets, the first {len(found)} are drawn."
        found[-1] = replace(found[-1], note=f"{found[-1].note} {note}".strip())
    return found


def _answer_chart(run: Run, name: str) -> Chart:
    numbers = list(run.devices)
    shown = [numbers[each] for each in spread(len(numbers), _MOST_DEVICES)]
    traces = [
        {
            "type": "bar",
            "name": end,
            "x": shown,
            "y": [getattr(run.devices[each], end) for each in shown],
            "marker": {"color": _COLOURS[colour]},
        }
        for end, colour in _ENDS.items()
    ]
    figure = _figure(traces, "requests")
    figure["layout"]["barmode"] = "stack"
    figure["layout"]["xaxis"] |= {"title": {"text": "device"}, **_whole_ticks(len(shown))}
    part = f"Of {len(numbers):,} devices, {len(shown):,} are drawn."
    note = part if len(shown) < len(numbers) else ""
    return Chart(f"What became of requests to each device: {name}", figure, note)
