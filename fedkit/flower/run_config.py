"""What Flower's run-config holds: the keys of `RunConfig`, and where the server records the run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedkit.config import RunConfig, make_config
from fedkit.core.errors import FedkitError, FleetError
from fedkit.core.text import terminal_text
from fedkit.flower.runtime import ACCELERATOR_KEY, BACKEND_KEY, WORKERS_KEY, simulated_nodes
from fedkit.flower.workers import resolved

FOLDER_KEY, RESUME_KEY, NODES_KEY, EXPECTED_KEY = "folder", "resume", "nodes", "expected"
SIMULATION_KEYS: Mapping[str, str | int] = {BACKEND_KEY: "auto", WORKERS_KEY: 0}
"""Run-config keys of a simulation: what runs its devices, and how many at a time (0: per core)."""
SERVER_KEYS: Mapping[str, str | bool] = {
    FOLDER_KEY: "",
    RESUME_KEY: False,
    NODES_KEY: "",
    EXPECTED_KEY: "",
}
"""Run-config keys that are the server's own, with their defaults; all others are `RunConfig`'s."""


@dataclass(frozen=True)
class RunPlace:
    """Where a server records a run.

    Attributes:
        folder: The run folder.
        resume: Whether it holds the beginning of the run.
        nodes: A JSON file that tells which device each node is, by its id; None believes nodes.
    """

    folder: Path
    resume: bool = False
    nodes: Path | None = None


def run_keys(run_config: Mapping[str, Any]) -> tuple[dict[str, Any], RunPlace]:
    """Split a Flower run-config into the keys of `RunConfig` and the server's own."""
    values = dict(run_config)
    keys = {**SERVER_KEYS, **SIMULATION_KEYS}
    own = {key: values.pop(key, default) for key, default in keys.items()}
    folder = str(own[FOLDER_KEY]) or str(Path("runs", time.strftime("%Y%m%d-%H%M%S")).absolute())
    nodes = str(own[NODES_KEY])
    return values, RunPlace(Path(folder), bool(own[RESUME_KEY]), Path(nodes) if nodes else None)


_NAMELESS = (RESUME_KEY, NODES_KEY, EXPECTED_KEY, *SIMULATION_KEYS)


def run_name(run_config: Mapping[str, Any]) -> str:
    """Return what names a run on its devices: its folder, and its config."""
    own = {key: value for key, value in run_config.items() if key not in _NAMELESS}
    return repr(sorted(own.items()))


def read_run_config(run_config: Mapping[str, Any], grid: Grid) -> tuple[RunConfig, RunPlace]:
    """Return a simulation's run and its place; devices are as many as nodes where the key is 0.

    Raises:
        ConfigError: A value breaks the rule of its key.
        FleetError: There are more nodes or fewer than devices.
    """
    values, place = run_keys(run_config)
    accelerator = str(run_config.get(ACCELERATOR_KEY, "cpu"))
    resolved(str(run_config.get(BACKEND_KEY, "auto")), accelerator)
    make_config({**values, "devices": values.get("devices") or 1})
    nodes = simulated_nodes(grid)
    config = make_config(with_devices(values, nodes or 0))
    check_nodes(config, nodes)
    return config, place


@contextmanager
def errors_first() -> Iterator[None]:
    """Print what is wrong at once, in one line; Flower shows it too, after lines of its own."""
    try:
        yield
    except FedkitError as error:
        print(f"error: {terminal_text(str(error))}", flush=True)
        raise


def with_devices(values: Mapping[str, Any], nodes: int) -> dict[str, Any]:
    """Return the keys of a run with a device per node, where they name no number."""
    return {**values, "devices": values.get("devices") or nodes}


def check_nodes(config: RunConfig, nodes: int | None) -> None:
    """Refuse a simulation whose nodes are not the run's devices; None says that others may come.

    Raises:
        FleetError: They are more or fewer.
    """
    if nodes not in (None, config.devices):
        raise FleetError(
            f"the simulation has {nodes} SuperNodes and the run {config.devices} devices; give "
            f'flwr run --federation-config "num-supernodes={config.devices}", or leave devices at '
            "0, which is as many as there are"
        )
