"""`fedkit eval ARTIFACT --input FILE`: what an artifact makes of sounds, pictures and series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edge import artifact as artifacts
from edge.raw import raw_input_of
from edge.runners import open_runner, runtime_for
from fedkit.cli.export import say_what_runs
from fedkit.core.errors import ExportError


def hear(
    path: Path, files: Sequence[Path], runtime: str, changed: bool, log: Console
) -> dict[str, Any]:
    """Tell the class of each file, of series of each window.

    Args:
        path: The artifact; its manifest says what its inputs are made of.
        files: What the manifest tells; a sound is cut off or filled up with silence to one input.
        runtime: By default the usual one of its target.
        changed: Take an artifact that is not as its manifest says.
        log: Where it is said that the code in a folder runs here.

    Raises:
        ExportError: The manifest does not say what the inputs are made of.
        DataError: A file cannot be read, is empty, or of another rate or kind; names it.
    """
    found = artifacts.load(path, changed)
    raw_input = raw_input_of(found)
    if raw_input is None:
        raise ExportError(
            f"the manifest of {path} does not say what its inputs are made of, so raw files cannot "
            "be made into any: export it from a task with a raw_input, or leave --input out"
        )
    inputs = [raw_input.read(file) for file in files]
    say_what_runs(found, runtime, log)
    outputs = np.asarray(open_runner(found.path, runtime, changed).predict(np.concatenate(inputs)))
    places = [(file, n) for file, each in zip(files, inputs, strict=True) for n in range(len(each))]
    rows = [
        {
            "file": str(file),
            "part": raw_input.part(number),
            "class": raw_input.name(int(output.argmax())),
            "outputs": [round(float(each), 6) for each in output],
        }
        for (file, number), output in zip(places, outputs, strict=True)
    ]
    return {"artifact": str(path), "runtime": runtime_for(found, runtime), "rows": rows}


def hearing_table(heard: Mapping[str, Any]) -> Table:
    """Return a line for each file, or for each window of a series."""
    parts = ["lines"] * any(row["part"] for row in heard["rows"])
    table = Table("file", *parts, "class", title=heard["artifact"], title_justify="left")
    for row in heard["rows"]:
        table.add_row(row["file"], *[row["part"]] * len(parts), row["class"])
    return table
