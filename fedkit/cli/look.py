"""`fedkit check` and `inspect`: whether an artifact computes its model, and what is in it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from edge import artifact as artifacts
from edge import check as checks
from edge import inspect as layers
from edge.artifact import Artifact
from edge.export import float_graph
from edge.graph_svg import picture
from edge.quantize import guard, truth
from fedkit.cli.export import say_what_runs, task_of
from fedkit.core.errors import CheckpointError, ConfigError
from fedkit.core.files import write_atomic
from fedkit.core.text import short, terminal_text
from fedkit.graph import ir
from fedkit.report import mask_picture
from fedkit.server.checkpoint import Checkpoint, RunFolder
from sim.scenario import make_scenario

_EXAMPLES = 64  # that errors against floats are taken from


def check(
    path: Path,
    task: str,
    runtime: str,
    examples: int,
    every_layer: bool,
    changed: bool,
    log: Console,
) -> dict[str, Any]:
    """Compare an artifact with the interpreter and the float model on the test set of a task.

    Args:
        path: The artifact.
        task: By default that of its run.
        runtime: By default the usual one of its target.
        examples: How many of the test set; 0 takes all.
        every_layer: Compare every activation, not the outputs alone.
        changed: Take a folder whose files are not those of its manifest.
        log: Where it is said that the code in a folder runs here.
    """
    found = artifacts.load(path, changed)
    _, test = task_of(found, task)
    inputs = test.inputs[: examples or None]
    say_what_runs(found, runtime, log)
    report = checks.check(path, inputs, runtime, every_layer, changed)
    return {
        "artifact": str(path),
        "runtime": report.runtime,
        "rounding": report.rounding,
        "examples": report.examples,
        "integers": sum(each.integers for each in (report.outputs, *report.layers.values())),
        "mismatches": report.mismatches,
        "largest_steps": max(each.largest for each in (report.outputs, *report.layers.values())),
        "same_class": report.same_class / report.examples,
        "layers": {name: asdict(tally) for name, tally in report.layers.items()},
        "first": asdict(report.first) if report.first else None,
        "float_error": asdict(report.truth) if report.truth else None,
        "guards": [asdict(each) for each in report.guards],
        "out_of_range": guard.told(report.guards),
        "is_far": report.truth is not None and report.truth.output > truth.REFUSED,
    }


def check_table(result: Mapping[str, Any]) -> Table:
    """Return what `check` found."""
    table = Table(title=result["artifact"], title_justify="left", show_header=False)
    table.add_row("runtime, rounding policy", f"{result['runtime']}, {result['rounding']}")
    table.add_row("examples", f"{result['examples']:,}")
    table.add_row("integers compared", f"{result['integers']:,}")
    table.add_row("that differ", f"{result['mismatches']:,}")
    table.add_row("by at most, steps", f"{result['largest_steps']}")
    table.add_row("same class", f"{result['same_class']:.2%}")
    if (first := result["first"]) is not None:
        where = f"{first['tensor']} (module {first['source']!r}) at {tuple(first['position'])}"
        table.add_row("first", f"{where}: {first['actual']}, expected {first['expected']}")
    _float_rows(table, result["float_error"], bool(result["layers"]))
    if result["guards"]:
        table.add_row("range guards", terminal_text(result["out_of_range"]) or "all in range")
    return table


def _float_rows(table: Table, error: Mapping[str, Any] | None, every_layer: bool) -> None:
    if error is None:
        table.add_row("error against floats", "unknown: its graph holds no float model; export it")
        table.add_row("", "again with this version")
        return
    bounds = f"warned above {truth.WARNED:.0%}, too far above {truth.REFUSED:.0%}"
    table.add_row("error against floats", f"{error['output']:.2%} ({bounds})")
    table.add_row("same class as the floats", f"{error['same_class']:.2%}")
    for name, noise in error["layers"].items() if every_layer else ():
        table.add_row(f"error of {name}", f"{noise:.2%}")


def inspect(path: Path) -> dict[str, Any]:
    """Describe an artifact layer by layer, with its error against floats.

    That is the one on the calibration set; of a graph without float model, one on the test set if
    its run is beside it.
    """
    found = artifacts.load(path)
    graph = checks.graph_of(found)
    errors = _errors(found, graph) if graph.origin is None else None
    rows = [
        {**asdict(layer), "density": layer.density}
        for layer in layers.inspect(found, graph, errors)
    ]
    return {
        "artifact": str(path),
        "target": found.target,
        "artifact_bytes": found.size,
        "rows": rows,
    }


def _errors(found: Artifact, graph: ir.Graph) -> Mapping[str, float]:
    try:
        folder = RunFolder.open(found.path.parent)
    except CheckpointError:
        return {}
    scenario = make_scenario(folder.config)
    inputs = scenario.test.inputs[:_EXAMPLES]
    model = scenario.module(folder.load().state)
    floats = float_graph(model, inputs.shape[1:], inputs.dtype == np.int64)
    return truth.compare(graph, floats, ir.to_graph_layout(inputs)).layers


# Pictures


def draw(path: Path, out: Path) -> None:
    """Draw the integer graph of an artifact as SVG.

    Raises:
        ConfigError: `out` is no place for a picture.
    """
    _check_place("--graph", out, (".svg",))
    write_atomic(out, picture(checks.graph_of(artifacts.load(path))).encode())


def draw_timeline(path: Path, out: Path) -> None:
    """Draw as SVG when the engine of an artifact does what.

    Raises:
        ConfigError: `out` is no place for a picture.
        ExportError: A processor runs the artifact.
    """
    _check_place("--timeline", out, (".svg",))
    found = artifacts.load(path)
    write_atomic(out, layers.timeline(found, checks.graph_of(found)).encode())


def draw_mask(path: Path, layer: str, out: Path) -> None:
    """Draw which weights of a layer are kept, as SVG or PNG.

    Args:
        path: An artifact, or a run folder.
        layer: Name of a torch module.
        out: The picture.

    Raises:
        ConfigError: `out` is no place for a picture, no layer is called so, or matplotlib is not
            installed.
    """
    _check_place("--mask", out, (".svg", ".png"))
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--mask draws with matplotlib: pip install 'fedkit[plots]'")
    if is_run(path):
        found = _kept(RunFolder.open(path).load())
    else:
        found = layers.masks(checks.graph_of(artifacts.load(path)))
    name = layer.removesuffix(".weight")
    if name not in found:
        named = ", ".join(found) or "none"
        raise ConfigError(f"--mask {short(layer)}: no such layer; layers with weights: {named}")
    write_atomic(out, mask_picture.picture(name, found[name], out.suffix))


def _check_place(flag: str, out: Path, endings: tuple[str, ...]) -> None:
    if out.suffix not in endings:
        raise ConfigError(
            f"{flag} {out} is a picture; give a name that ends in {' or '.join(endings)}"
        )
    if out.exists() or not out.parent.is_dir():
        raise ConfigError(f"{flag} {out} is there, or its folder is not; give another name")


# Runs


def is_run(path: Path) -> bool:
    """Whether a path is a run folder, not an artifact."""
    return (path / "config.toml").is_file()


def inspect_run(path: Path) -> dict[str, Any]:
    """Say what a run's last checkpoint keeps of each layer."""
    last = RunFolder.open(path).load()
    rows = [
        {"source": name, "shape": mask.shape, "weights": mask.size, "kept": int(mask.sum())}
        for name, mask in _kept(last).items()
    ]
    return {"run": str(path), "round": last.round, "rows": rows}


def _kept(last: Checkpoint) -> dict[str, NDArray[np.bool_]]:
    return {name.removesuffix(".weight"): mask for name, mask in last.state.masks.items()}


def kept_table(result: Mapping[str, Any]) -> Table:
    """Return the layers of a run, a line each, and their sums."""
    title = f"{result['run']}, after round {result['round']}"
    table = Table("module", "shape", "kept", "of weights", "density", title=title, show_footer=True)
    for row in result["rows"]:
        shape, share = "x".join(map(str, row["shape"])), row["kept"] / row["weights"]
        table.add_row(
            row["source"], shape, f"{row['kept']:,}", f"{row['weights']:,}", f"{share:.2%}"
        )
    kept, weights = (sum(row[key] for row in result["rows"]) for key in ("kept", "weights"))
    footers = ("all", "", f"{kept:,}", f"{weights:,}", f"{kept / max(1, weights):.2%}")
    for column, text in zip(table.columns, footers, strict=True):
        column.footer = text
    return table


def inspect_table(result: Mapping[str, Any]) -> Table:
    """Return the layers of an artifact, a line each, and their sums."""
    names = ("module", "op", "output", "density", "MACs", "of dense", "bytes", "error")
    table = Table(*names, title=result["artifact"], title_justify="left", show_footer=True)
    rows = result["rows"]
    for row in rows:
        table.add_row(
            row["source"],
            row["kind"],
            "x".join(map(str, row["shape"][1:])),
            f"{row['density']:.2%}" if row["weights"] else "",
            f"{row['macs_kept']:,}" if row["weights"] else "",
            f"{row['macs_kept'] / row['macs']:.2%}" if row["macs"] else "",
            f"{row['bytes']:,}" if row["bytes"] else "",
            "" if row["error"] is None else f"{row['error']:.2%}",
        )
    total = {key: sum(row[key] for row in rows) for key in ("macs", "macs_kept", "bytes")}
    kept, weights = (sum(row[key] for row in rows) for key in ("kept", "weights"))
    footers = ("all", "", "", f"{kept / max(1, weights):.2%}", f"{total['macs_kept']:,}")
    share = total["macs_kept"] / max(1, total["macs"])
    for column, text in zip(
        table.columns, (*footers, f"{share:.2%}", f"{total['bytes']:,}", ""), strict=True
    ):
        column.footer = text
    return table
