"""What a comparison says: means over seeds, as rows and as a table of methods by densities."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedkit.tasks.task import Metric

Result = Mapping[str, Any]
"""What `fedkit compare` wrote: `name`, `grid`, `rows` and where they come from."""

GROUP = ("task", "model", "alpha", "method", "density")
"""What the cells of a mean have in common, beside the grid's other axes; all but their seeds."""


def means(result: Result) -> list[dict[str, Any]]:
    """Average the cells that differ in their seeds alone.

    Returns:
        A row per group, in the order of the result: its keys, `metric` where it is not accuracy,
        `seeds` (how many), `accuracy` (in 0 .. 1, or that metric's value), `accuracy_sd` (n - 1
        in the denominator; None for one seed), `accuracy_least` and `accuracy_most`, `bytes` (both
        ways, all devices and rounds), `bytes_device_round` (of one device in one round) and
        `seconds`.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    keys = _group_keys(result)
    for row in result["rows"]:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [dict(zip(keys, values, strict=True)) | _mean(rows) for values, rows in groups.items()]


def _group_keys(result: Result) -> list[str]:
    others = (axis for axis in result["grid"]["axes"] if axis not in (*GROUP, "seed"))
    return [*others, *GROUP]


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    accuracies = [row["accuracy"] for row in rows]
    sent = [row["bytes_up"] + row["bytes_down"] for row in rows]
    each = [total / row["devices"] / row["rounds"] for total, row in zip(sent, rows, strict=True)]
    return {
        **({"metric": rows[0]["metric"]} if "metric" in rows[0] else {}),
        "seeds": len(rows),
        "accuracy": statistics.fmean(accuracies),
        "accuracy_sd": statistics.stdev(accuracies) if len(rows) > 1 else None,
        "accuracy_least": min(accuracies),
        "accuracy_most": max(accuracies),
        "bytes": statistics.fmean(sent),
        "bytes_device_round": statistics.fmean(each),
        "seconds": statistics.fmean(row["seconds"] for row in rows),
    }


def varying(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    """Return those of `keys` that have more than one value in `rows`."""
    return [key for key in keys if len({row[key] for row in rows}) > 1]


def series_keys(result: Result) -> list[str]:
    """Return what tells the lines of a table or plot apart: what varies, then the method."""
    keys = [key for key in _group_keys(result) if key not in ("method", "density")]
    return [*varying(result["rows"], keys), "method"]


def namer(result: Result) -> Callable[[Mapping[str, Any]], str]:
    """Return what gives the line of a row its name: its method first, then what else varies."""
    *others, method = series_keys(result)
    return lambda row: ", ".join([row[method], *(f"{key} {row[key]}" for key in others)])


def table(result: Result) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of the means: a line per method, a column per density."""
    rows, labels = means(result), series_keys(result)
    densities = sorted({row["density"] for row in rows})
    lines: dict[tuple[str, ...], dict[float, str]] = {}
    for row in rows:
        line = lines.setdefault(tuple(str(row[key]) for key in labels), {})
        line[row["density"]] = _cell(row)
    return (
        [*labels, *(f"density {density:.4g}" for density in densities)],
        [[*key, *(cells.get(d, "") for d in densities)] for key, cells in lines.items()],
    )


def _cell(row: Mapping[str, Any]) -> str:
    value, deviation = row["accuracy"], row["accuracy_sd"]
    sent = row["bytes_device_round"] / 1e6
    if "metric" in row:
        form = Metric.of(row["metric"]).text
        spread = "" if deviation is None else f" ± {form(deviation)}"
        return f"{form(value)}{spread}, {sent:.3g} MB"
    spread = "" if deviation is None else f" ± {100 * deviation:.2f}"
    return f"{100 * value:.2f}{spread} %, {sent:.3g} MB"


def metric(result: Result) -> Metric:
    """Return what the values of a comparison are."""
    return Metric.of(result["rows"][0].get("metric"))


def note(result: Result) -> str:
    """Return what stands below a table of means."""
    spread = " ± standard deviation over the seeds" if len(result["seeds"]) > 1 else ""
    name = metric(result).name
    return (
        f"{name[0].upper()}{name[1:]}, mean{spread}; what one device sends and receives per round."
    )
