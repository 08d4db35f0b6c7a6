"""Parts of a report beside its charts and numbers: overview, configuration, origin."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from fedkit.report.markup import folded, safe, table
from fedkit.report.reading import Named, Run
from fedkit.report.run_steps import Step, counted, last_value


def section(title: str, content: str) -> str:
    """Return a section of the page."""
    return f"<section>\n<h2>{safe(title)}</h2>\n{content}</section>\n"


# Overview --------------------------------------------------------------------------------------

_OVERVIEW = ("run", "state", "round", "of", "metric", "value", "density", "bytes down", "bytes up")


def overview(told: Named) -> str:
    """Return how far each run came, and why one ended early."""
    rows = [_overview_row(run, name) for run, name in told]
    errors = "".join(_error(run, name) for run, name in told if run.error)
    return section("Overview", table("Runs", (*_OVERVIEW, "seconds"), rows) + errors)


def _overview_row(run: Run, name: str) -> list[object]:
    value, key = last_value(run.steps), counted(run.steps)
    last: Step = run.steps[-1] if run.steps else {}
    return [
        *(name, run.state, last.get("round"), run.config.get("rounds"), run.metric.name),
        None if value is None else run.metric.text(value),
        f"{last['density']:.2%}" if run.steps else None,
        *(sum(step.get(f"{key}_{way}", 0) for step in run.steps) for way in ("down", "up")),
        last.get("seconds"),
    ]


def _error(run: Run, name: str) -> str:
    lines = "\n".join(safe(line, 1000) for line in run.error.split("\n")[:40])
    return f"<h3>Why {safe(name)} ended early</h3>\n<pre>{lines}</pre>\n"


def missing(told: Sequence[tuple[str, str]]) -> str:
    """Return what is not there, of whom and what; "" where all is there."""
    items = "".join(f"<li>{safe(name)}: {safe(what, 400)}</li>\n" for name, what in told)
    return section("What is missing", f"<ul>\n{items}</ul>\n") if items else ""


# Configuration and origin ----------------------------------------------------------------------

_ORIGIN = ("command", "commit", "processor", "engine", "seconds_total", "export_refused")


def origin(told: Named) -> str:
    """Return the configuration of the runs, and what made them."""
    keys = list(dict.fromkeys(key for run, _ in told for key in run.config))
    values = {key: [run.config.get(key) for run, _ in told] for key in keys}
    differ = [key for key in keys if len(set(map(str, values[key]))) > 1]
    rows = [[key, *values[key]] for key in [*differ, *(k for k in keys if k not in differ)]]
    head = ["key", *(name for _, name in told)]
    config = table("Configuration; keys that differ stand first", head, rows)
    origin = table("Where the runs come from", head, _origin_rows(told))
    return section("Configuration and origin", origin + folded("Configuration", config))


def _origin_rows(told: Named) -> list[list[object]]:
    get: dict[str, Callable[[Run], object]] = {
        "folder": lambda run: str(run.path),
        **{key.replace("_", " "): functools.partial(_of_summary, key) for key in _ORIGIN},
        "versions": _versions,
        "warnings": _warnings,
    }
    rows = [[name, *(of(run) for run, _ in told)] for name, of in get.items()]
    return [row for row in rows if any(value not in ("", None) for value in row[1:])]


def _of_summary(key: str, run: Run) -> object:
    return run.summary.get(key)


def _versions(run: Run) -> str:
    found: dict[str, Any] = {}
    for made in run.manifests.values():
        provenance, versions = made.get("provenance"), made.get("versions")
        if isinstance(provenance, dict) and "fedkit" in provenance:
            found["fedkit"] = provenance["fedkit"]
        found |= versions if isinstance(versions, dict) else {}
    return ", ".join(f"{key} {value}" for key, value in found.items())


def _warnings(run: Run) -> str:
    told = run.summary.get("warnings")
    return "; ".join(map(str, told)) if isinstance(told, list) else ""
