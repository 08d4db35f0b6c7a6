"""Parts of pages that are made from the code when the site is built."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click
import typer.main

ROOT = Path(__file__).resolve().parents[2]
DECISIONS = ROOT / "docs" / "decisions"

AREAS = {
    "project": "The house",
    "methods": "Methods",
    "server-and-wire": "Server and wire",
    "fleet": "Security of a fleet",
    "simulation": "Simulation",
    "processes": "Processes",
    "reports": "Reports",
    "engines": "Engines",
    "sparse-engine": "Sparse engine",
    "integer-engine": "Integer engine",
    "shiftquant": "ShiftQuant",
    "export": "Export",
    "kernels": "Kernels of the C target",
    "fpga": "FPGA target",
    "benchmarks": "Benchmarks",
}
"""Folder of docs/decisions -> its heading, in the order of the navigation."""


def decisions() -> list[tuple[str, str, list[Path]]]:
    """Return (folder, heading, pages) of each area of decisions.

    Raises:
        ValueError: A folder of docs/decisions has no heading here, or a heading no folder.
    """
    folders = {path.name for path in DECISIONS.iterdir() if path.is_dir()}
    if folders != set(AREAS):
        raise ValueError(f"docs/decisions and AREAS differ in {sorted(folders ^ set(AREAS))}")
    return [
        (folder, area, sorted((DECISIONS / folder).glob("*.md"))) for folder, area in AREAS.items()
    ]


def fill(markdown: str) -> str:
    """Return a page with every `<!-- generate NAME -->` replaced.

    Raises:
        KeyError: Nothing of that name is generated.
    """

    def made(place: re.Match[str]) -> str:
        return "\n".join(PARTS[place[1]]())

    return re.sub(r"<!-- generate ([\w-]+) -->", made, markdown)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    titles = list(head)
    yield _line(titles)
    yield "|" + "---|" * len(titles)
    yield from map(_line, rows)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in cells)} |"


def _list_of_decisions() -> Iterator[str]:
    for folder, area, pages in decisions():
        yield f"\n## {area}\n"
        for page in pages:
            lines = page.read_text(encoding="utf-8").splitlines()
            date = next(line for line in lines if line.startswith("Decided: "))
            yield f"- [{lines[0][2:]}]({folder}/{page.name}), {date[9:].rstrip('.')}"


def _imports() -> Iterator[str]:
    from tests.imports import read_imports
    from tests.test_architecture import ROOMS, room_of

    uses: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, others in read_imports(ROOT).items():
        room = room_of(module)
        if room is not None:
            uses[room] |= {found for other in others if (found := room_of(other)) is not None}
    place = {room: number for number, room in enumerate(ROOMS)}
    yield from _table(
        ["room", "imports"],
        [
            [
                f"`{room}`",
                ", ".join(f"`{o}`" for o in sorted(uses[room] - {room}, key=place.__getitem__)),
            ]
            for room in ROOMS
        ],
    )


def _configuration() -> Iterator[str]:
    from fedkit.config import KEYS

    yield from _table(
        ["key", "command line", "type", "default", "meaning"],
        [
            [
                f"`{name}`",
                f"`--{name.replace('_', '-')}`",
                f"`{_type_name(key.kind)}`",
                f"`{key.default!r}`",
                key.description,
            ]
            for name, key in KEYS.items()
        ],
    )


def _type_name(annotation: object) -> str:
    if isinstance(annotation, type):
        return annotation.__name__
    return re.sub(r"typing\.(Literal)?", "", str(annotation))


def _commands() -> Iterator[str]:
    from fedkit.cli.app import app

    command = typer.main.get_command(app)
    yield from _command(command, click.Context(command, info_name="fedkit"))


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from _command(child, click.Context(child, info_name=name, parent=context))
        return
    usage = command.get_usage(context).removeprefix("Usage: ")
    yield f"\n## {context.command_path}\n\n{command.help or ''}\n\n```text\n{usage}\n```\n"
    records = [r for p in command.get_params(context) if (r := p.get_help_record(context))]
    if records:
        yield from _table(["option", "meaning"], [[f"`{name}`", about] for name, about in records])


def _layers() -> Iterator[str]:
    from docs.site.support import TAKEN_BY, rows

    yield from _table(
        ["layer", *(name for name, _ in TAKEN_BY)],
        [[name, *("yes" if taken else "no" for taken in each)] for name, each in rows()],
    )


def _ops() -> Iterator[str]:
    from fedkit.cli.support import op_rows

    rows = list(op_rows())
    yield from _table((key.replace("_", " ") for key in rows[0]), (row.values() for row in rows))


def _onnx_operators() -> Iterator[str]:
    from fedkit.graph.from_onnx import _OPSETS, OPERATORS

    operators = ", ".join(f"`{operator}`" for operator in sorted(OPERATORS))
    yield f"Opsets {_OPSETS[0]} to {_OPSETS[-1]}: {operators}."


def _losses() -> Iterator[str]:
    from fedkit.cli.support import task_rows
    from fedkit.tasks.losses import LOSSES

    yield from _task_table(task_rows(LOSSES, "losses"))


def _metrics() -> Iterator[str]:
    from fedkit.cli.support import task_rows
    from fedkit.tasks.metrics import METRICS

    yield from _task_table(task_rows(METRICS, "metrics"))


def _task_table(rows: Iterable[dict[str, str]]) -> Iterator[str]:
    yield from _table(
        ["name", "in Python", "what it is"],
        [[f"`{row['name']}`", f"`{row['python']}`", row["about"]] for row in rows],
    )


def _methods() -> Iterator[str]:
    from fedkit.methods.registry import METHODS

    yield from _table(
        ["method", "what it is"], [[f"`{name}`", row.about] for name, row in METHODS.items()]
    )


def _norms() -> Iterator[str]:
    from fedkit.nn.norms.registry import norms

    yield from _table(
        [
            *("norm", "module", "of each example", "buffers and their role", "spread"),
            *("folds", "integers", "trains without torch"),
        ],
        [
            [
                row.name,
                f"`{row.kind.__module__}.{row.kind.__name__}`",
                _yes(row.per_example),
                ", ".join(f"`{name}` {role}" for name, role in row.roles.items()) or "none",
                row.spread if row.named("moment") else "",
                _yes(row.folds),
                row.integers,
                f"no: {row.not_planned}" if row.not_planned else "yes",
            ]
            for row in norms()
        ],
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _norm_roles() -> Iterator[str]:
    from fedkit.nn.norms.registry import MERGES

    yield from _table(["role", "in a fleet"], MERGES.items())


def _rewrites() -> Iterator[str]:
    from edge.passes.rewrite import Rewrite
    from edge.passes.rewrites import EXACT, REWRITES

    def by(row: Rewrite) -> str:
        return "always" if row.always else f"`{EXACT}`" if row.exact and not row.opt_in else "name"

    yield from _table(
        ["rewrite", "does", "exact", "asked for by", "needs", "to weigh"],
        [
            [
                f"`{row.kind}`",
                row.about,
                "yes" if row.exact else "no",
                by(row),
                row.needs,
                row.caution,
            ]
            for row in REWRITES.values()
        ],
    )


def _quickstart() -> Iterator[str]:
    """How FedAvg's app becomes FedTiny's, as git tells it."""
    for flags in (["--stat"], []):
        command = ["git", "diff", "--no-index", "--no-color", *flags, "fedavg", "fedtiny"]
        told = subprocess.run(
            command, cwd=ROOT / "examples" / "quickstart", capture_output=True, text=True
        )
        yield f"```text\n{told.stdout.rstrip()}\n```\n"


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "commands": _commands,
    "configuration": _configuration,
    "decisions": _list_of_decisions,
    "imports": _imports,
    "layers": _layers,
    "losses": _losses,
    "methods": _methods,
    "metrics": _metrics,
    "norm-roles": _norm_roles,
    "norms": _norms,
    "onnx-operators": _onnx_operators,
    "ops": _ops,
    "quickstart": _quickstart,
    "rewrites": _rewrites,
}
"""Name in a page's comment -> lines of markdown."""
