"""Results as tables for people; every figure in them is also in the JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from fedkit.report import comparison
from fedkit.tasks.task import Metric


def size(count: float) -> str:
    """Write a number of bytes for people."""
    for unit, length in (("TB", 1e12), ("GB", 1e9)):
        if count >= length:
            return f"{count / length:.2f} {unit}"
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def run_table(run: Mapping[str, Any]) -> Table:
    """Return the table that ends a run; rows without a figure are left out."""
    table = _table(f"{run['run']}: {run['task']}, {run['devices']} devices, {run['rounds']} rounds")
    metric = Metric.of(run.get("metric"))
    lower = "" if metric.higher_is_better else " (lower is better)"
    for name, what in _MODELS.items():
        if (value := run.get(f"{metric.key}_{name}")) is not None:
            table.add_row(f"{metric.name}{what}{lower}", metric.text(value))
    if "devices_mean" in run:
        for key, what in _OF_DEVICES.items():
            table.add_row(f"{metric.name}{what}{lower}", metric.text(run[f"devices_{key}"]))
    table.add_row("density (kept / prunable weights)", f"{run['density']:.2%}")
    if "kept_of_all_weights" in run:
        share = run["prunable_weights"] / run["weights"]
        kept = f"{run['kept_of_all_weights']:.2%} ({share:.1%} can be pruned)"
        table.add_row("kept / all weights", kept)
    table.add_row("bytes down, measured", size(run["bytes_down"]))
    table.add_row("bytes up, measured", size(run["bytes_up"]))
    dense = run["bytes_dense_fedavg"]
    how = "measured" if run["bytes_dense_fedavg_measured"] else "float32 payload, counted"
    if dense:
        saved = dense / (run["bytes_up"] + run["bytes_down"])
        table.add_row(f"bytes of dense FedAvg, both ways ({how})", f"{size(dense)} ({saved:.1f}x)")
    table.add_row("seconds of the rounds", f"{run['seconds']:.1f}")
    if "artifact" in run:
        _artifact_rows(table, run)
    for warning in run.get("warnings", ()):
        table.add_row("warning", warning)
    if not run["finished"]:
        table.caption = f"ended after {run['rounds']} of {run['rounds_planned']} rounds"
    return table


_MODELS = {
    "dense_start": " of the dense start",
    "selected": " of the selected candidate",
    "sparse": ", final sparse model",
    "int8": " of the int8 artifact",
    "dense_fedavg": ", dense FedAvg of the same length",
}
"""Models of a run that are measured, and how a row begins after the metric's name."""


_OF_DEVICES = {
    "mean": " on devices' own data, mean",
    "spread": " on devices' own data, deviation",
    "worst": " on devices' own data, worst tenth",
}
"""What devices measured, and how a row goes on after the metric's name."""


def artifact_table(measured: Mapping[str, Any]) -> Table:
    """Return what was measured of one artifact."""
    table = _table(measured["artifact"])
    metric = Metric.of(measured.get("metric"))
    for key in measured:
        if key.startswith(f"{metric.key}_int"):
            text = f"{metric.name} of the {key.removeprefix(f'{metric.key}_')} artifact"
            table.add_row(text, metric.text(measured[key]))
    _artifact_rows(table, measured)
    return table


def artifacts_table(made: Mapping[str, Any]) -> Group:
    """Return what was measured of several artifacts, a table each."""
    return Group(*map(artifact_table, made["artifacts"]))


def trainer_table(made: Mapping[str, Any]) -> Table:
    """Return what a trainer for a microcontroller needs."""
    table = _table(f"{made['artifact']}: trains {made['density']:.2%} of the weights")
    table.add_row("memory beside the stack", f"{made['ram_bytes']:,} bytes")
    table.add_row("weights that move", f"{made['values']:,}")
    table.add_row("examples of a step", f"{made['batch']}")
    table.add_row("bits of a stored value", f"{made['stored_bits']}")
    table.add_row("sources", size(made["source_bytes"]))
    return table


def _artifact_rows(table: Table, measured: Mapping[str, Any]) -> None:
    table.add_row("test examples", f"{measured['test_examples']}")
    table.add_row("artifact", f"{measured['artifact']} ({size(measured['artifact_bytes'])})")
    if "cycles_per_inference" in measured:
        table.add_row("cycles per inference, simulated", f"{measured['cycles_per_inference']:,}")
        return
    if "latency_median_us" not in measured:
        return
    latency = f"{measured['latency_median_us']:.0f} us (p95 {measured['latency_p95_us']:.0f})"
    table.add_row(f"latency in {measured['runtime']}, 1 thread, this machine", latency)


def spark(values: Sequence[float | None], width: int = 30) -> str:
    """Draw a line of values in characters: a bar from the least to the largest; a gap for none.

    Args:
        values: In their order; what is None, NaN or infinite is not drawn.
        width: Characters at most; of more values, the means of equal parts are drawn.
    """
    array = np.array([math.nan if each is None else each for each in values], np.float64)
    array[~np.isfinite(array)] = math.nan
    parts = [part[~np.isnan(part)] for part in np.array_split(array, min(width, len(array)) or 1)]
    means = [float(part.mean()) if len(part) else None for part in parts]
    there = [each for each in means if each is not None]
    if not there:
        return ""
    least, span = min(there), max(there) - min(there)
    steps = len(_BARS) - 1
    return "".join(
        " " if each is None else _BARS[round(steps * (each - least) / span) if span else 0]
        for each in means
    )


_BARS = "▁▂▃▄▅▆▇█"


def shown_table(run: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of a run, with its metric and loss over the rounds as lines of bars."""
    table = run_table(run)
    for name, key in ((Metric.of(run.get("metric")).name, "accuracy"), ("loss", "loss")):
        if line := spark([step[key] for step in steps if step[key] is not None]):
            table.add_row(f"{name} over rounds", line)
    return table


def compare_table(result: Mapping[str, Any]) -> Table:
    """Return the means of a comparison: a line per method, a column per density."""
    head, lines = comparison.table(result)
    table = Table(*head, title=f"{result['name']}: {len(result['rows'])} cells")
    for line in lines:
        table.add_row(*line)
    table.caption = comparison.note(result)
    return table


def rows_table(result: Mapping[str, Any]) -> Table:
    """Return the rows of a benchmark, a column per key; not every row must have every key."""
    rows = result["rows"]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*(key.replace("_", " ") for key in keys), title=result["benchmark"])
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in keys))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_cell(each)}" for key, each in value.items())
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("figure")
    return table
