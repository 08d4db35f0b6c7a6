"""`fedkit bench`: benchmarks, their options and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from rich.console import Group
from rich.table import Column, Table

from fedkit.bench.registry import BENCHMARKS
from fedkit.cli import tables
from fedkit.core.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """What only `fedkit bench device` takes.

    Attributes:
        target: Names of targets, with commas between.
        artifact: Path of what to measure.
        ssh: Where to measure it.
        show: List the targets instead.
    """

    target: str = ""
    artifact: str = ""
    ssh: str = ""
    show: bool = False


def bench(name: str, quick: bool, options: Options) -> dict[str, Any]:
    """Run a benchmark.

    Raises:
        ConfigError: It is unknown, or does not take an option.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {name!r}; allowed: {', '.join(BENCHMARKS)}")
    if name != "device":
        if any(astuple(options)):
            raise ConfigError(
                f"benchmark {name!r} takes none of --target, --artifact, --ssh, --list; they are "
                "for `fedkit bench device`"
            )
        return BENCHMARKS[name].run(quick)
    if options.show:
        from fedkit.bench.device import list_targets

        return list_targets()
    targets = tuple(each.strip() for each in options.target.split(",") if each.strip())
    return BENCHMARKS[name].run(quick, targets=targets, artifact=options.artifact, ssh=options.ssh)


def table(result: Mapping[str, Any]) -> Any:
    """Return the rows of a benchmark for people, of a device its layers too."""
    rows = tables.rows_table(result)
    details = [each for each in result.get("details", ()) if each["layers"]]
    return Group(rows, _layers(result, details)) if details else rows


def _layers(result: Mapping[str, Any], details: list[Mapping[str, Any]]) -> Table:
    """Return a line per layer and target, a column per model."""
    names = [f"{row['model']} {row['density']:.0%}" for row in result["rows"]]
    models = list(dict.fromkeys(names))
    found = Table(
        *(Column(head, overflow="fold") for head in ("target", "layer", *models)),
        title="instructions of each layer",
    )
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for name, detail in zip(names, details, strict=True):
        for number, layer in enumerate(detail["layers"]):
            key = detail["target"], f"{number} {layer['source']}"
            count = layer["quantities"]["instructions"]["value"]
            lines.setdefault(key, {})[name] = f"{count:,} {layer['function']}"
    for key, cells in lines.items():
        found.add_row(*key, *(cells.get(model, "") for model in models))
    return found
