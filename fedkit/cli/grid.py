"""A grid of runs: one TOML file, every combination of its axes.

name = "digits"                 # of the result: results/compare-digits.json
[run]                           # keys of a run that all cells share
task = "digits"
[axes]                          # keys of a run with several values each
method = ["dense", "fedtiny"]
seed = [1, 2, 3]
"""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedkit.config import RunConfig, make_config, read_config
from fedkit.core.errors import ConfigError, FedkitError
from fedkit.core.text import short
from fedkit.methods.registry import resolve
from fedkit.server.scenario import with_model_named

MOST_CELLS = 100_000
"""Cells of a grid; a second for each is more than a day."""


class Grid(BaseModel):
    """What is compared; made by `read_grid`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", description="names the result: a-z, 0-9, single -"
    )
    run: dict[str, Any] = Field(
        default_factory=dict, description="table of run keys that all cells share"
    )
    axes: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        min_length=1, description="table of run keys, each with a list of values"
    )

    @functools.cached_property
    def cells(self) -> list[RunConfig]:
        """Every run of the grid once, those that share data and dense start side by side.

        Some methods fix keys, as dense has density 1; cells that differ in such a key alone are
        one.

        Raises:
            ConfigError: A key or value breaks its rule.
            TaskError: There is no such task.
        """
        products = itertools.product(*self.axes.values())
        configs = (_cell({**self.run, **dict(zip(self.axes, p, strict=True))}) for p in products)
        return sorted(dict.fromkeys(configs), key=lambda config: (config.task, config.seed))

    def place(self, config: RunConfig) -> dict[str, Any]:
        """Return where on the axes a cell lies."""
        return {axis: getattr(config, axis) for axis in self.axes}


def _cell(values: dict[str, Any]) -> RunConfig:
    return resolve(with_model_named(make_config(values)))


def read_grid(path: Path) -> Grid:
    """Read a grid file and validate every cell of it.

    Raises:
        ConfigError: The file cannot be read, or a key or value breaks its rule.
    """
    values = read_config(path)
    try:
        grid = Grid.model_validate(values)
        _check_keys(grid)
        _check_size(grid)
        _ = grid.cells
    except ValidationError as error:
        message = "; ".join(_explain(item) for item in error.errors())
        raise ConfigError(f"grid {path}: {message}") from None
    except FedkitError as error:
        raise ConfigError(f"grid {path}: {error}") from None
    return grid


def _check_keys(grid: Grid) -> None:
    if both := sorted(grid.run.keys() & grid.axes.keys()):
        raise ConfigError(
            f"{both[0]} is in [run] and in [axes]; it must be in one of them: remove the other"
        )


def _check_size(grid: Grid) -> None:
    cells = math.prod(map(len, grid.axes.values()))
    if cells > MOST_CELLS:
        raise ConfigError(
            f"the axes make {cells:,} cells, and the limit is {MOST_CELLS:,}; give fewer values"
        )


def _explain(item: Any) -> str:
    key, rules = ".".join(map(str, item["loc"])), Grid.model_fields
    if item["type"] == "extra_forbidden":
        return (
            f"unknown key {short(key)}; allowed: {', '.join(rules)}; keys of a run belong under "
            "[run] or [axes]"
        )
    rule = f"{item['msg'][0].lower()}{item['msg'][1:]} ({rules[item['loc'][0]].description})"
    found = "missing" if item["type"] == "missing" else short(item["input"])
    return f"{key} is {found}: {rule}"
