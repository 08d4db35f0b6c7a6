"""Charts of layers: what each keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedkit.report.figures import Chart, new_figure, style
from fedkit.report.markup import label
from fedkit.report.reading import LayerDensity, Named
from fedkit.report.thin import spread

_MOST_LAYERS = 120


def layer_charts(told: Named) -> list[Chart]:
    """Return the charts of layers of some runs; none where no layer is known."""
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
        "marker": {"color": style(number)["color"]},
    }
