"""Cells of a long benchmark, each a file once it is done: stopped in any way, it continues."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fedkit.core.files import write_atomic
from fedkit.core.side_by_side import cores
from fedkit.core.supervise import guard, start_worker

Cell = TypeVar("Cell")
"""A dataclass of plain values, which together name the file."""

Row = dict[str, Any]


def run_kept(
    cells: Sequence[Cell], run: Callable[[Cell], Row], folder: Path, workers: int = 0
) -> list[Row]:
    """Run every cell whose file is not there yet, and return what all gave.

    Args:
        cells: What to run.
        run: Gives JSON; a function of a module, which other processes can find.
        folder: Of the files.
        workers: Processes; 0: one per core.
    """
    folder.mkdir(parents=True, exist_ok=True)
    todo = [cell for cell in cells if not path_of(cell, folder).exists()]
    if todo:
        spawn = multiprocessing.get_context("spawn")
        count = min(len(todo), workers or cores())
        guard()
        with ProcessPoolExecutor(count, mp_context=spawn, initializer=start_worker) as pool:
            try:
                list(pool.map(partial(_run_one, run, folder), todo))
            except BaseException:
                for worker in multiprocessing.active_children():
                    worker.terminate()
                raise
    return [json.loads(path_of(cell, folder).read_text(encoding="utf-8")) for cell in cells]


def path_of(cell: Any, folder: Path) -> Path:
    """Return where a cell's result lies."""
    return folder / f"{'-'.join(str(value) for value in astuple(cell))}.json"


def _run_one(run: Callable[[Cell], Row], folder: Path, cell: Cell) -> None:
    write_atomic(path_of(cell, folder), (json.dumps(run(cell)) + "\n").encode())
