"""A report: one HTML page about some runs, which opens from a disk and asks no network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkit.core.errors import ConfigError
from fedkit.core.version import __version__
from fedkit.report import plotly_html
from fedkit.report.charts import Chart, charts, partitions
from fedkit.report.markup import download, folded, plain, safe, table
from fedkit.report.reading import Run, read_run
from fedkit.report.run_steps import Step, counted, last_value
from fedkit.report.thin import spread
from fedkit.server.shares import Shares

MOST_RUNS = 100
"""Of a report; lines of more could not be told apart."""

MARK = '<meta name="generator" content="fedkit report">'
"""Stands near the beginning of every report."""

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
"""What a browser may load for the page: nothing that is not in it."""

_CSV_ROWS, _TABLE_ROWS, _DEVICE_ROWS, _CLASS_COLUMNS = 15_000, 1_500, 200, 20
_NAMED = Sequence[tuple[Run, str]]


def report(paths: Sequence[Path]) -> str:
    """Return a page about the runs in some folders.

    Raises:
        ConfigError: plotly is not installed, or there are too many runs.
        CheckpointError: A folder is no run folder.
    """
    plotly_html.require()
    paths = list({path.resolve(): path for path in paths}.values())
    if not 1 <= len(paths) <= MOST_RUNS:
        raise ConfigError(f"a report is of 1 to {MOST_RUNS} runs, and these are {len(paths)}")
    return page([read_run(path) for path in paths])


def page(runs: Sequence[Run]) -> str:
    """Return a page about runs that were read; plotly must be installed."""
    names = names_of([run.path for run in runs])
    told = list(zip(runs, names, strict=True))
    title = f"Report of {names[0]}" if len(runs) == 1 else f"Report of {len(runs)} runs"
    body = "".join(part(told) for part in _PARTS)
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'{MARK}\n<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{safe(title)}</title>\n<style>\n{css}</style>\n"
        f"<script>{plotly_html.library()}</script>\n</head>\n<body>\n<main>\n"
        f"<h1>{safe(title)}</h1>\n{body}</main>\n"
        f'<footer><p class="note">Written by fedkit {safe(__version__)}.</p></footer>\n'
        "</body>\n</html>\n"
    )


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return a short name for each run: that of its folder, or the path where two are the same."""
    short = [plain(path.resolve().name, 60) for path in paths]
    return [
        name if short.count(name) == 1 else f"{plain(path, 60)} ({number})"
        for number, (name, path) in enumerate(zip(short, paths, strict=True), 1)
    ]


# Overview --------------------------------------------------------------------------------------

_OVERVIEW = ("run", "state", "round", "of", "metric", "value", "density", "bytes down", "bytes up")


def _overview(told: _NAMED) -> str:
    rows = [_overview_row(run, name) for run, name in told]
    errors = "".join(_error(run, name) for run, name in told if run.error)
    return _section("Overview", table("Runs", (*_OVERVIEW, "seconds"), rows) + errors)


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


def _missing(told: _NAMED) -> str:
    items = [
        f"<li>{safe(name)}: {safe(what, 400)}</li>\n" for run, name in told for what in run.missing
    ]
    return _section("What is missing", f"<ul>\n{''.join(items)}</ul>\n") if items else ""


# Charts ----------------------------------------------------------------------------------------


def _charts(told: _NAMED) -> str:
    runs, names = zip(*told, strict=True)
    drawn = [chart for chart in charts(runs, names) if chart.figure["data"]]
    return _section("Charts", "".join(_chart(n, chart) for n, chart in enumerate(drawn)))


def _chart(number: int, chart: Chart) -> str:
    note = f"<p>{safe(chart.note)}</p>" if chart.note else ""
    return (
        f'<h3 id="title-{number}">{safe(chart.title)}</h3>\n'
        f'<figure aria-labelledby="title-{number}">\n'
        f"{plotly_html.embed(chart.figure, f'chart-{number}')}\n"
        f"<figcaption>{note}<p>The numbers are in the tables below.</p></figcaption>\n</figure>\n"
    )


# Numbers ---------------------------------------------------------------------------------------

_STEP_KEYS = ("phase", "round", "accuracy", "loss", "density", "bytes_down", "bytes_up")
_MORE_KEYS = (
    *("message_bytes_down", "message_bytes_up", "seconds", "epsilon"),
    *("devices_mean", "devices_spread", "devices_worst", "devices_measured"),
)


def _numbers(told: _NAMED) -> str:
    steps = "".join(_step_table(run, name, len(told)) for run, name in told if run.steps)
    layers = folded("Density of each layer", _layer_table(told)) if _layer_rows(told) else ""
    shares = "".join(_share_table(*group) for group in partitions(told))
    return _section("Numbers", _csv(told) + steps + layers + shares)


def _csv(told: _NAMED) -> str:
    total, most = sum(len(run.steps) for run, _ in told), _CSV_ROWS // len(told)
    head = ("run", "metric", *_STEP_KEYS, *_MORE_KEYS)
    rows = [
        (name, run.metric.name, *(run.steps[each].get(key) for key in head[2:]))
        for run, name in told
        for each in spread(len(run.steps), most)
    ]
    part = f" ({len(rows):,} of {total:,} steps)" if len(rows) < total else ""
    return download("steps.csv", f"Download all steps as CSV{part}", head, rows)


def _step_table(run: Run, name: str, runs: int) -> str:
    shown = spread(len(run.steps), max(10, _TABLE_ROWS // runs))
    more = [key for key in _MORE_KEYS if any(key in step for step in run.steps)]
    keys = (*_STEP_KEYS, *more)
    head = [run.metric.name if key == "accuracy" else key.replace("_", " ") for key in keys]
    rows = [[run.steps[each].get(key) for key in keys] for each in shown]
    part = f" ({len(shown):,} of {len(run.steps):,})" if len(shown) < len(run.steps) else ""
    return folded(f"Steps of {name}{part}", table(f"Steps of {name}", head, rows))


def _layer_table(told: _NAMED) -> str:
    there = [name for run, name in told if run.layers]
    head = ["layer", "shape", *(f"{each}, {what}" for each in there for what in ("kept", "share"))]
    return table("Kept weights of each layer in the last checkpoint", head, _layer_rows(told))


def _layer_rows(told: _NAMED) -> list[list[object]]:
    found = [{layer.name: layer for layer in run.layers} for run, _ in told if run.layers]
    layers = {name: layer for each in reversed(found) for name, layer in each.items()}
    kept = spread(len(layers), 300)
    return [
        [name, " x ".join(map(str, layer.shape)), *_kept(found, name)]
        for number, (name, layer) in enumerate(layers.items())
        if number in set(kept)
    ]


def _kept(found: Sequence[Mapping[str, Any]], name: str) -> list[object]:
    there = [each.get(name) for each in found]
    return [v for layer in there for v in ((layer.kept, layer.density) if layer else (None, None))]


def _share_table(shares: Shares, names: Sequence[str]) -> str:
    devices = spread(len(shares.devices), _DEVICE_ROWS)
    classes = spread(len(shares.classes), _CLASS_COLUMNS)
    head = ["device", "examples", *(f"class {shares.classes[each]}" for each in classes)]
    rows = [
        [str(each), int(shares.sizes[each]), *shares.counts[each, classes].tolist()]
        for each in devices
    ]
    whole = len(devices) == len(shares.devices) and len(classes) == len(shares.classes)
    part = "" if whole else f" ({len(devices):,} devices and {len(classes):,} classes of them)"
    title = f"Examples on each device: {', '.join(names)}{part}"
    return folded(title, table(title, head, rows))


# Artifacts and devices -------------------------------------------------------------------------


def _artifacts(told: _NAMED) -> str:
    rows = [
        [artifact, name, *map(made.get, ("target", "size")), _digest(made), _measured(made)]
        for run, name in told
        for artifact, made in run.manifests.items()
    ]
    head = ("artifact", "run", "target", "bytes", "sha256", "measured")
    content = table("Artifacts, as their manifests tell", head, rows)
    return _section("Artifacts", content) if rows else ""


def _digest(manifest: Mapping[str, Any]) -> str:
    """Return what tells artifacts apart: the beginning of the digest, as a whole one is wide."""
    return str(manifest.get("sha256", ""))[:16]


def _measured(manifest: Mapping[str, Any]) -> str:
    measured = manifest.get("measured")
    flat = _numbers_of(measured) if isinstance(measured, dict) else {}
    return ", ".join(f"{key.replace('_', ' ')} {value:.6g}" for key, value in flat.items())


def _numbers_of(told: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in told.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    }


_DEVICE_KEYS = ("answers", "refused", "failed", "absent", "bytes_up", "peak_bytes", "quarantined")


def _devices(told: _NAMED) -> str:
    content = "".join(_device_table(run, name) for run, name in told if run.devices)
    return _section("Devices", content) if content else ""


def _device_table(run: Run, name: str) -> str:
    numbers = list(run.devices)
    rows = [
        [str(numbers[each]), *(vars(run.devices[numbers[each]])[key] for key in _DEVICE_KEYS)]
        for each in spread(len(numbers), _DEVICE_ROWS)
    ]
    part = f" ({len(rows):,} of {len(numbers):,})" if len(rows) < len(numbers) else ""
    head = ("device", *(key.replace("_", " ") for key in _DEVICE_KEYS))
    found = folded(f"Devices of {name}{part}", table(f"Devices of {name}", head, rows))
    if not run.told:
        return found
    last = [[e["event"], e.get("device"), e.get("phase"), e.get("reason")] for e in run.told]
    told = table("Last refusals and failures", ("event", "device", "phase", "reason"), last)
    return found + folded(f"What devices of {name} were refused for", told)


# Configuration and origin ----------------------------------------------------------------------

_ORIGIN = ("command", "commit", "processor", "engine", "seconds_total", "export_refused")


def _origin(told: _NAMED) -> str:
    keys = list(dict.fromkeys(key for run, _ in told for key in run.config))
    values = {key: [run.config.get(key) for run, _ in told] for key in keys}
    differ = [key for key in keys if len(set(map(str, values[key]))) > 1]
    rows = [[key, *values[key]] for key in [*differ, *(k for k in keys if k not in differ)]]
    head = ["key", *(name for _, name in told)]
    config = table("Configuration; keys that differ stand first", head, rows)
    origin = table("Where the runs come from", head, _origin_rows(told))
    return _section("Configuration and origin", origin + folded("Configuration", config))


def _origin_rows(told: _NAMED) -> list[list[object]]:
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


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{safe(title)}</h2>\n{content}</section>\n"


_PARTS = (_overview, _missing, _charts, _artifacts, _devices, _numbers, _origin)
