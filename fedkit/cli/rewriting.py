"""`fedkit rewrite`: which rewrites of a float graph apply, why others do not, what they save."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Column, Table

from edge.export import rewrite
from edge.passes import Rewritten
from edge.passes.size import Size
from fedkit.cli import importing
from fedkit.cli.export import calibration, state_of
from fedkit.core.errors import ConfigError
from fedkit.core.text import terminal_text
from fedkit.server.checkpoint import RunFolder
from sim.scenario import make_scenario


def of_run(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return what rewrites do to the last model of a run.

    Raises:
        ExportError: There is no rewrite of a name, the model cannot be exported, or it was trained
            in integers.
    """
    folder = RunFolder.open(path)
    scenario = make_scenario(folder.config)
    module = scenario.module(state_of(folder, scenario, names))
    examples = calibration(scenario)
    return _about(path, rewrite(module, examples.shape[1:], names, examples))


def of_file(
    path: Path,
    names: Sequence[str],
    shapes: Sequence[str],
    examples: Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return what rewrites do to the model of an ONNX file.

    Args:
        path: The file.
        names: Of rewrites.
        shapes: As for `fedkit.cli.importing.shapes_of`.
        examples: A .npy file; None for random ones.
        say: Where warnings go.

    Raises:
        ConfigError: There is no such file.
        ExportError: There is no rewrite of a name, or the file cannot be read.
    """
    if path.suffix != ".onnx" or not path.is_file():
        raise ConfigError(f"{path} is no run folder and no .onnx file; give one of these")
    graph = importing.read(path, importing.shapes_of(shapes), (), say)
    given = None if examples is None else importing.examples_of(examples)
    return _about(path, rewrite(graph, (), names, given))


def _about(path: Path, found: Rewritten) -> dict[str, Any]:
    first, *others = found.sizes
    steps = zip(found.done, found.sizes, others, strict=False)
    rows = [
        {
            "rewrite": done.kind,
            "exact": done.exact,
            "applied": list(done.applied),
            "refused": [{"where": where, "why": why} for where, why in done.refused],
            "probe_differs": done.gap,
            "saved": _saved(before, after),
        }
        for done, before, after in steps
    ]
    return {
        "model": str(path),
        "rewrites": rows,
        "before": asdict(first),
        "after": asdict(others[-1]),
        "guards": list(found.graph.guards),
    }


def _saved(before: Size, after: Size) -> dict[str, int]:
    was, will = asdict(before), asdict(after)
    return {name: was[name] - will[name] for name in was}


_COLUMNS = {"ops": "ops", "parameters": "parameters", "int8_bytes": "int8 bytes", "macs": "MACs"}
"""Field of a size -> what it is called."""


def rewrite_table(found: Mapping[str, Any]) -> Group:
    """Return it for people: what each rewrite saved, then what was refused."""
    numbers = [Column(name, justify="right") for name in _COLUMNS.values()]
    table = Table("rewrite", Column("places", justify="right"), *numbers)
    table.title, table.title_justify = terminal_text(found["model"]), "left"
    table.add_row("before", "", *(f"{found['before'][name]:,}" for name in _COLUMNS))
    for row in found["rewrites"]:
        name = row["rewrite"] if row["exact"] else f"{row['rewrite']} (lossy)"
        saved = (f"{-row['saved'][key]:+,}" if row["saved"][key] else "" for key in _COLUMNS)
        table.add_row(name, str(len(row["applied"])), *saved)
    table.add_row("after", "", *(f"{found['after'][name]:,}" for name in _COLUMNS))
    if found["guards"]:
        table.caption = f"range guards: {len(found['guards'])}, told of by `fedkit check`"
    refused = Table("not done", "where", Column("why", overflow="fold"))
    for row in found["rewrites"]:
        for each in row["refused"]:
            where, why = (terminal_text(each[key]) for key in ("where", "why"))
            refused.add_row(row["rewrite"], where, why)
    return Group(table, refused) if refused.row_count else Group(table)
