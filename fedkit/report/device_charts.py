"""Charts of devices: what each holds, and what became of the requests to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedkit.report.figures import COLOURS, Chart, new_figure, whole_ticks
from fedkit.report.markup import label
from fedkit.report.reading import Named, Run
from fedkit.report.thin import spread
from fedkit.server.shares import Shares

_MOST_DEVICES, _MOST_CLASSES = 300, 100
_MOST_PARTITIONS = 8


def partition_charts(told: Named) -> list[Chart]:
    """Return a chart of what devices hold for each way in which data is shared out."""
    groups = partitions(told)
    drawn = groups[:_MOST_PARTITIONS]
    most = min(_MOST_DEVICES, 2 * _MOST_DEVICES // max(1, len(drawn)))
    found = [_partition_chart(shares, names, most) for shares, names in drawn]
    if len(drawn) < len(groups):
        note = f"Of {len(groups)} ways to share data out, the first {len(drawn)} are drawn."
        found[-1] = replace(found[-1], note=f"{found[-1].note} {note}".strip())
    return found


def partitions(told: Named) -> list[tuple[Shares, list[str]]]:
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


def _partition_chart(shares: Shares, names: Sequence[str], most: int) -> Chart:
    devices = spread(len(shares.devices), most)
    classes = spread(len(shares.classes), _MOST_CLASSES)
    draw: Callable[..., dict[str, Any]] = _heat_map if len(shares.classes) else _size_bars
    figure = draw(shares, devices, classes)
    figure["layout"]["xaxis"] |= {"title": {"text": "device"}, **whole_ticks(len(devices))}
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
    figure = new_figure([trace], "class")
    figure["layout"]["yaxis"]["type"] = "category"
    return figure


def _size_bars(shares: Shares, devices: Sequence[int], _: Sequence[int]) -> dict[str, Any]:
    sizes = shares.sizes[list(devices)].tolist()
    trace = {"type": "bar", "x": devices, "y": sizes, "marker": {"color": COLOURS[0]}}
    return new_figure([trace], "examples")


def participation_charts(told: Named) -> list[Chart]:
    """Return how often devices of simulations took part, where not every one always does."""
    those = [(run, name) for run, name in told if run.took_part]
    most = max((len(run.took_part) for run, _ in those), default=0)
    shown = spread(most, max(10, _MOST_DEVICES // max(1, len(those))))
    traces = [
        {
            "type": "bar",
            "name": label(name),
            "x": shown,
            "y": [run.took_part.get(device) for device in shown],
            "marker": {"color": COLOURS[number % len(COLOURS)]},
        }
        for number, (run, name) in enumerate(those)
    ]
    figure = new_figure(traces, "rounds")
    figure["layout"]["xaxis"] |= {"title": {"text": "device"}, **whole_ticks(len(shown))}
    note = f"Of {most:,} devices, {len(shown):,} are drawn." if len(shown) < most else ""
    return [Chart("Rounds in which each device took part", figure, note)]


_ENDS = {"answers": 2, "refused": 1, "failed": 3, "absent": 4}
"""What became of a request to a device -> the number of its colour."""

_MOST_FLEETS = 8


def answer_charts(told: Named) -> list[Chart]:
    """Return a chart for each fleet that logged what became of requests."""
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
            "marker": {"color": COLOURS[colour]},
        }
        for end, colour in _ENDS.items()
    ]
    figure = new_figure(traces, "requests")
    figure["layout"]["barmode"] = "stack"
    figure["layout"]["xaxis"] |= {"title": {"text": "device"}, **whole_ticks(len(shown))}
    part = f"Of {len(numbers):,} devices, {len(shown):,} are drawn."
    note = part if len(shown) < len(numbers) else ""
    return Chart(f"What became of requests to each device: {name}", figure, note)
