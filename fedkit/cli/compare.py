"""Run a grid: each cell a run of its own, over all cores, resumable at every cell.

A finished cell is a file in the grid's work folder, named by a digest of the cell's whole config.
Whatever ends the command, the same command goes on from those files. `grid.json` beside them says
which there are to be, so that `fedkit report` can show a grid that has not ended.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedkit.bench.cell import run_cell
from fedkit.cli.cells_on_ray import ray_pool
from fedkit.cli.grid import Grid, read_grid
from fedkit.cli.report import REPORT
from fedkit.config import RunConfig
from fedkit.core.errors import CheckpointError, ConfigError, FedkitError, FleetError, StoppedError
from fedkit.core.files import remove_partial, write_atomic
from fedkit.core.provenance import made_by
from fedkit.core.side_by_side import cores
from fedkit.core.signals import STOPS, stop_number, stop_words
from fedkit.core.supervise import guard, start_worker
from fedkit.flower.processes import ENVIRONMENT
from fedkit.methods.schedule import kept_per_layer
from fedkit.report import plotly_library
from fedkit.report.comparison import GROUP
from fedkit.report.comparison_page import comparison_report
from fedkit.report.comparison_reading import PLAN, digest, read_cell
from fedkit.server.scenario import Scenario
from sim.scenario import make_scenario

FORMAT = 2
"""Version of a cell's file and of what `run_cell` returns; cells of others are run again."""

Row = dict[str, Any]


def compare(
    path: Path, out: Path, work: Path, workers: int, log: Console, ray: str = ""
) -> dict[str, Any]:
    """Run what is left of a grid; return its result, which is also `out`/compare-NAME.json.

    A page about it lies in the grid's work folder then.

    Args:
        path: The grid file.
        out: Folder of the result.
        work: Folder of the finished cells, in one folder per grid.
        workers: Cells that run at the same time, at most one per core; 0: one per core.
        log: Where progress goes.
        ray: Address of a Ray cluster that runs the cells, as many at a time as it has cores; "" is
            this machine.

    Raises:
        ConfigError: The grid file is wrong, or `workers` are given for a cluster.
        CheckpointError: A finished cell's file is damaged, or a folder cannot be made.
        FleetError: Cells failed, or another process runs this grid.
        StoppedError: Ctrl-C, or another signal.
    """
    if ray and workers:
        raise ConfigError(
            f"workers is {workers}, and a Ray cluster runs as many cells as it has cores; leave "
            "--workers out, or --ray"
        )
    grid = read_grid(path)
    folder = work / grid.name
    for needed in (folder, out):
        _make_folder(needed)
    most = cores()
    with _alone(folder):
        remove_partial(folder)
        _plan(grid, folder)
        try:
            pool = ray_pool(ray) if ray else _pool(min(workers or most, most))
            rows = _rows(grid, folder, pool, log)
        except STOPS as stop:
            done = sum(_file(folder, config).exists() for config in grid.cells)
            raise StoppedError(
                f"{stop_words(stop)}; {done} of {len(grid.cells)} cells are kept in {folder}; the "
                "same command continues",
                stop_number(stop),
            ) from None
    result = {
        "benchmark": "compare",
        "name": grid.name,
        "seeds": sorted({row["seed"] for row in rows}),
        "grid": {"run": grid.run, "axes": grid.axes},
        **made_by(),
        "rows": rows,
    }
    written = out / f"compare-{grid.name}.json"
    write_atomic(written, (json.dumps(result, indent=4) + "\n").encode())
    log.print(f"wrote {written}", soft_wrap=True)
    _show(written, folder / REPORT, log)
    return result


def _plan(grid: Grid, folder: Path) -> None:
    """Write what the grid is, and the file of each of its cells."""
    cells = {_file(folder, config).name: grid.place(config) for config in grid.cells}
    plan = {
        "name": grid.name,
        "grid": {"run": grid.run, "axes": grid.axes},
        **made_by(),
        "cells": cells,
    }
    write_atomic(folder / PLAN, (json.dumps(plan, indent=1) + "\n").encode())


def _show(result: Path, page: Path, log: Console) -> None:
    if not plotly_library.is_there():
        log.print("no page, as plotly is missing: pip install 'fedkit[report]'", markup=False)
        return
    try:
        write_atomic(page, comparison_report(result).encode())
    except CheckpointError as error:  # No cell ended with a number; the result is written.
        log.print(f"no page: {error}", markup=False, soft_wrap=True)
    else:
        log.print(f"wrote {page}", soft_wrap=True)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"folder {path} cannot be made: {error.strerror}; give another --out or --work"
        ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the grid's lock, which the system frees however this process ends."""
    lock = folder / "lock"
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise FleetError(
            f"another process is running this grid (it holds {lock}); wait for it, or give "
            "another --work"
        ) from None


def _rows(
    grid: Grid, folder: Path, pool: AbstractContextManager[Executor], log: Console
) -> list[Row]:
    """Return a row per cell, run now or read from its file."""
    files = {config: _file(folder, config) for config in grid.cells}
    rows = {config: _read(path, config) for config, path in files.items() if path.exists()}
    todo = [config for config in grid.cells if config not in rows]
    if todo:
        _check(grid, todo, log)
        rows |= _run(grid, todo, files, pool, log)
    placed = [grid.place(config) | row for config, row in rows.items()]
    order = [*GROUP, *grid.axes, "seed"]
    return sorted(placed, key=lambda row: [row[key] for key in order])


def _check(grid: Grid, todo: list[RunConfig], log: Console) -> None:
    """Try data and model before anything runs, with one seed, and every density."""
    scenarios: dict[RunConfig, Scenario] = {}
    warnings: dict[str, None] = {}  # each once, in their order
    with log.status("checking the cells"):
        for config in todo:
            try:
                apart = config.changed(seed=0, method="dense", density=1.0)
                if apart not in scenarios:
                    scenarios[apart] = make_scenario(apart)
                    scenarios[apart].check()
                kept_per_layer(config, scenarios[apart].engine.layout.prunable_shapes)
                told = scenarios[apart].reach.warning(config.density)
                warnings |= dict.fromkeys([*scenarios[apart].warnings, *([told] if told else [])])
            except FedkitError as error:
                raise ConfigError(
                    f"grid {grid.name!r}: the cell {_name(grid, config)} cannot run: {error}"
                ) from error
    for text in warnings:
        log.print(f"warning: {text}", style="yellow", soft_wrap=True, markup=False)


def _name(grid: Grid, config: RunConfig) -> str:
    return " ".join(f"{axis}={value}" for axis, value in grid.place(config).items())


# Running -------------------------------------------------------------------------------------


def _run(
    grid: Grid,
    todo: list[RunConfig],
    files: Mapping[RunConfig, Path],
    workers: AbstractContextManager[Executor],
    log: Console,
) -> dict[RunConfig, Row]:
    """Run cells and write each when it is done; a failed one is told after all have run."""
    rows: dict[RunConfig, Row] = {}
    failed: dict[RunConfig, FedkitError] = {}
    commit = made_by()["commit"]
    with _progress(len(files), len(files) - len(todo), log) as advance, workers as pool:
        futures = {pool.submit(_work, config): config for config in todo}
        for future in as_completed(futures):
            config = futures[future]
            try:
                rows[config] = {**future.result(), "commit": commit}
            except FedkitError as error:
                failed[config] = error
            except BrokenProcessPool:
                raise FleetError(
                    "a worker process was ended before its cell was done, perhaps for lack of "
                    "memory; finished cells are kept: give the same command again, with fewer "
                    "--workers"
                ) from None
            else:
                _write(files[config], config, rows[config])
            advance()
    if failed:
        lines = (f"\n  {_name(grid, config)}: {error}" for config, error in failed.items())
        raise FleetError(
            f"{len(failed)} of {len(files)} cells failed; the others are kept, and no result was "
            f"written: correct the grid and give the same command again{''.join(lines)}"
        )
    return rows


@contextmanager
def _pool(workers: int) -> Iterator[Executor]:
    """Start worker processes; they end with this one, and at once when it is interrupted."""
    guard()
    os.environ.update(ENVIRONMENT)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=start_worker) as pool:
        try:
            yield pool
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _work(config: RunConfig) -> Row:
    try:
        return run_cell(config)
    except FedkitError:
        raise
    except Exception as error:  # A foreign error might not survive the way to another process.
        raise FleetError(f"{type(error).__name__}: {error}") from None


@contextmanager
def _progress(total: int, done: int, log: Console) -> Iterator[Callable[[], None]]:
    columns = (
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=log, speed_estimate_period=3600) as progress:
        bar = progress.add_task("cells", total=total, completed=done)
        yield lambda: progress.advance(bar)


# A cell's file -------------------------------------------------------------------------------


def _file(folder: Path, config: RunConfig) -> Path:
    return folder / f"{digest({'format': FORMAT, **config.as_dict()})[:16]}.json"


def _write(path: Path, config: RunConfig, row: Row) -> None:
    cell = {"config": config.as_dict(), "row": row, "digest": digest(row)}
    write_atomic(path, (json.dumps(cell, indent=2) + "\n").encode())


def _read(path: Path, config: RunConfig) -> Row:
    try:
        return read_cell(path, config.as_dict())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"the finished cell in {path} is damaged ({error}); remove that file, and the same "
            "command runs the cell again"
        ) from error
