"""Artifacts in a report: what manifests tell, what each layer is and costs, and on which processor.

What a layer is, the artifact's graph tells. Who reads a graph is handed in (`Look` of
`fedkit.report.reading`), as the fleet's side knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedkit.report.downloads import File
from fedkit.report.figures import COLOURS, Chart, new_figure
from fedkit.report.markup import folded, label, plain, safe, table
from fedkit.report.reading import ArtifactLayer, Named
from fedkit.report.run_steps import is_count, is_number
from fedkit.report.thin import spread

_MOST_ROWS, _MOST_BARS = 400, 60

_LAYER_HEAD = (
    *("module", "op", "output", "density", "kept", "weights"),
    *("MACs", "MACs of dense", "bytes", "error against float"),
)


def artifacts(told: Named) -> str:
    """Return tables of the artifacts of runs, or "" where there are none."""
    rows = [
        [artifact, name, *map(made.get, ("target", "size")), _digest(made), *_told(made)]
        for run, name in told
        for artifact, made in run.manifests.items()
    ]
    head = ("artifact", "run", "target", "bytes", "sha256", "integers that differ", "measured")
    content = table("Artifacts, as their manifests tell", head, rows) if rows else ""
    return content + _layer_tables(told) + _cost_table(told)


def files(told: Named) -> list[File]:
    """Return the layers of all artifacts as one file, if any are known."""
    cells = [
        [name, artifact, *_layer_cells(layer)]
        for run, name in told
        for artifact, layers in run.artifacts.items()
        for layer in layers
    ]
    head = ("run", "artifact", *_LAYER_HEAD)
    return [File("artifacts", "layers of artifacts", head, len(cells), cells.__getitem__)]


def _digest(manifest: Mapping[str, Any]) -> str:
    """Return what tells artifacts apart: the beginning of the digest, as a whole one is wide."""
    return str(manifest.get("sha256", ""))[:16]


def _told(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Return how exact an artifact is and what else was measured of it."""
    measured = manifest.get("measured")
    if not isinstance(measured, dict):
        return "", ""
    flat = _numbers_of(measured)
    words = ", ".join(f"{key.replace('_', ' ')} {value:.6g}" for key, value in flat.items())
    return _exactness(measured.get("exact")), words


def _exactness(exact: object) -> str:
    """Say how many integers differed from their definition when the artifact was made."""
    if not isinstance(exact, dict) or not all(is_count(exact.get(key)) for key in _COUNTED):
        return "not compared when it was made; fedkit check compares"
    return (
        f"{exact['differ']:,} of {exact['integers']:,}, of {exact['examples']:,} examples in "
        f"{plain(exact.get('runtime', ''), 40)}"
    )


_COUNTED = ("differ", "integers", "examples")


def _numbers_of(told: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in told.items() if is_number(value)}


# Layers ----------------------------------------------------------------------------------------


def _layer_tables(told: Named) -> str:
    found = [(n, a, layers) for run, n in told for a, layers in run.artifacts.items() if layers]
    most = max(20, _MOST_ROWS // max(1, len(found)))
    return "".join(_layer_table(f"{name}, {a}", layers, most) for name, a, layers in found)


def _layer_table(name: str, layers: Sequence[ArtifactLayer], most: int) -> str:
    shown = [layers[each] for each in spread(len(layers), most)]
    part = f" ({len(shown):,} of {len(layers):,} layers)" if len(shown) < len(layers) else ""
    title, rows = f"Layers of {plain(name)}{part}", [_shown_cells(layer) for layer in shown]
    total = ("all", "", "", *_sums(layers), "")
    return folded(title, table(f"Layers of {plain(name)}", _LAYER_HEAD, [*rows, total]))


def _layer_cells(layer: ArtifactLayer) -> list[object]:
    shape = "x".join(map(str, layer.shape[1:]))
    weights = layer.weights or None
    kept = None if weights is None else layer.kept
    density = None if weights is None else layer.kept / layer.weights
    share = layer.macs_kept / layer.macs if layer.macs else None
    macs = layer.macs_kept if layer.macs else None
    size = layer.bytes or None
    named = (layer.source, layer.kind, shape, density, kept, weights)
    return [*named, macs, share, size, layer.error]


def _shown_cells(layer: ArtifactLayer) -> list[object]:
    cells = _layer_cells(layer)
    return [*cells[:3], _share(cells[3]), *cells[4:7], _share(cells[7]), cells[8], _share(cells[9])]


def _share(value: object) -> str | None:
    return f"{value:.2%}" if isinstance(value, float) else None


def _sums(layers: Sequence[ArtifactLayer]) -> list[object]:
    kept, weights = sum(each.kept for each in layers), sum(each.weights for each in layers)
    macs, dense = sum(each.macs_kept for each in layers), sum(each.macs for each in layers)
    size = sum(each.bytes for each in layers)
    return [
        *(_share(kept / max(1, weights)), kept, weights),
        *(macs, _share(macs / max(1, dense)), size),
    ]


# On processors ---------------------------------------------------------------------------------


def _costs(told: Named) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for run, name in told:
        for row in run.costs:
            yield name, row


def _cost_table(told: Named) -> str:
    rows = list(_costs(told))
    if not rows:
        return ""
    keys = list(dict.fromkeys(key for _, row in rows for key in row))
    shown = [[name, *map(row.get, keys)] for name, row in rows[:_MOST_ROWS]]
    head = ("run", *(key.replace("_", " ") for key in keys))
    note = "From `fedkit bench device`. Instructions of an emulated processor are not a time."
    return table("One inference on processors", head, shown) + f"<p>{safe(note)}</p>\n"


def cost_charts(told: Named) -> list[Chart]:
    """Return the instructions of an inference on each processor, where they were counted."""
    bars: dict[str, dict[str, float]] = {}
    for name, row in _costs(told):
        count: Any = row.get("instructions")
        if is_number(count):
            bars.setdefault(f"{name}, {row.get('model')}", {})[str(row.get("target"))] = count
    if not bars:
        return []
    traces = [
        {
            "type": "bar",
            "name": label(name),
            "x": [label(target) for target in counts],
            "y": list(counts.values()),
            "marker": {"color": COLOURS[number % len(COLOURS)]},
        }
        for number, (name, counts) in enumerate(list(bars.items())[:_MOST_BARS])
    ]
    figure = new_figure(traces, "instructions of one inference")
    figure["layout"]["xaxis"] |= {"type": "category", "title": {"text": "processor, emulated"}}
    return [Chart("Instructions of one inference", figure)]
