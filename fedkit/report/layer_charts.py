"""Charts of layers: what each keeps, how that came, and which weights moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fedkit.report.figures import (
    Chart,
    Curve,
    density_axis,
    line_chart,
    new_figure,
    style,
    two_by_two,
)
from fedkit.report.markup import label
from fedkit.report.mask_history import MaskHistory
from fedkit.report.reading import LayerDensity, Named
from fedkit.report.thin import spread

_MOST_LAYERS = 120
"""Of the last checkpoint, as bars."""

_MOST_LINES = 24
_MOST_MOVING, _MOST_ADJUSTMENTS = 60, 200
_MOST_RUNS = 4
"""Runs that have charts of their own."""


def layer_charts(told: Named) -> list[Chart]:
    """Return the charts of layers of some runs; none where no layer is known."""
    moved = [(MaskHistory(run), name) for run, name in told]
    those = [(each, name) for each, name in moved if each.is_told]
    return [
        *_last_densities(told),
        *_first_of(those, "runs with layers", _density_chart),
        *_kept_chart(those),
        *_first_of([(m, n) for m, n in those if m.adjustments], "runs that move", _moved_chart),
    ]


def _first_of(
    those: Sequence[tuple[MaskHistory, str]], what: str, draw: Callable[[MaskHistory, str], Chart]
) -> list[Chart]:
    found = [draw(moved, name) for moved, name in those[:_MOST_RUNS]]
    if len(found) < len(those):
        note = f"Of {len(those)} {what}, the first {len(found)} are drawn."
        found[-1] = replace(found[-1], note=f"{found[-1].note} {note}".strip())
    return found


def _density_chart(moved: MaskHistory, name: str) -> Chart:
    shown = [moved.layers[each] for each in spread(len(moved.layers), _MOST_LINES)]
    lines = [Curve.of(layer, *moved.density(layer)) for layer in shown]
    chart = line_chart(f"Density of each layer over rounds: {name}", "kept share", lines)
    for trace in chart.figure["data"]:
        trace["line"]["shape"] = "hv"  # a layer stays as it is until it is changed
    chart.figure["layout"]["yaxis"] |= {"tickformat": ".3~%"} | density_axis(lines)
    return replace(chart, note=f"{chart.note} {_part(len(shown), len(moved.layers))}".strip())


def _part(shown: int, count: int) -> str:
    return f"Of {count:,} layers, {shown:,} are drawn." if shown < count else ""


def _kept_chart(those: Sequence[tuple[MaskHistory, str]]) -> list[Chart]:
    """Return how much of their masks runs keep, from step to step and since training began."""
    lines = [
        Curve.of(f"{name}, {what}", moved.kept.steps, values)
        for moved, name in those
        for what, values in (
            ("of the step before", moved.kept.of_before),
            ("of the first mask", moved.kept.of_first),
        )
    ]
    chart = line_chart("Share of the kept weights that stay kept", "share", lines)
    two_by_two(chart)
    chart.figure["layout"]["yaxis"]["tickformat"] = ".3~%"
    return [chart] if any(line.rounds for line in lines) else []


def _moved_chart(moved: MaskHistory, name: str) -> Chart:
    """Return a map of layers by adjustments: how many weights were pruned and grown."""
    steps = [moved.adjustments[n] for n in spread(len(moved.adjustments), _MOST_ADJUSTMENTS)]
    layers = [moved.layers[n] for n in spread(len(moved.layers), _MOST_MOVING)]
    none = {"pruned": 0, "grown": 0}
    cells = [[step["layers"].get(layer, none) for step in steps] for layer in layers]
    trace = {
        "type": "heatmap",
        "x": [str(step["round"]) for step in steps],
        "y": list(range(len(layers))),
        "z": [[cell["pruned"] + cell["grown"] for cell in row] for row in cells],
        "customdata": [[[cell["pruned"], cell["grown"]] for cell in row] for row in cells],
        "colorscale": "Viridis",
        "colorbar": {"title": {"text": "weights", "side": "right"}},
        "hovertemplate": "round %{x}, %{y}: %{customdata[0]} pruned, "
        "%{customdata[1]} grown<extra></extra>",
    }
    figure = new_figure([trace], "", 140 + min(1200, 24 * len(layers)))
    figure["layout"]["xaxis"] |= {"type": "category", "title": {"text": "round of the adjustment"}}
    figure["layout"]["yaxis"] |= _names(layers)
    figure["layout"]["showlegend"] = False
    notes = [_part(len(layers), len(moved.layers))]
    if len(steps) < len(moved.adjustments):
        notes.append(f"Of {len(moved.adjustments):,} adjustments, {len(steps):,} are drawn.")
    title = f"Weights pruned and grown in each adjustment: {name}"
    return Chart(title, figure, " ".join(filter(None, notes)))


def _names(layers: Sequence[str]) -> dict[str, Any]:
    """Return an upright axis of layers by their numbers, the first one on top."""
    return {
        "tickvals": list(range(len(layers))),
        "ticktext": [label(name, 40) for name in layers],
        "autorange": "reversed",
    }


def _last_densities(told: Named) -> list[Chart]:
    those = [(run, name) for run, name in told if run.layers]
    if not those:
        return []
    names = list(dict.fromkeys(layer.name for run, _ in those for layer in run.layers))
    kept = [names[each] for each in spread(len(names), _MOST_LAYERS)]
    rows = {name: row for row, name in enumerate(kept)}
    traces = [_bars(n, name, run.layers, rows) for n, (run, name) in enumerate(those)]
    height = 120 + min(2000, len(kept) * (14 + 6 * min(len(those), 6)))
    figure = new_figure(traces, "", height)
    figure["layout"]["xaxis"] |= {"title": {"text": "kept share"}, "tickformat": ".3~%"}
    figure["layout"]["yaxis"] |= _names(kept)
    figure["layout"]["legend"] = {"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0}
    title = "Density of each layer in the last checkpoint"
    return [Chart(title, figure, _part(len(kept), len(names)))]


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
        "marker": {"color": style(number)["color"]},
    }
