"""What Flower's run-config holds: the keys of `RunConfig`, and where the server records the run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkit.config import RunConfig, make_config
from fedkit.core.errors import ConfigError

FOLDER_KEY, RESUME_KEY, NODES_KEY, EXPECTED_KEY = "folder", "resume", "nodes", "expected"
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
    own = {key: values.pop(key, default) for key, default in SERVER_KEYS.items()}
    folder = str(own[FOLDER_KEY]) or str(Path("runs", time.strftime("%Y%m%d-%H%M%S")).absolute())
    nodes = str(own[NODES_KEY])
    return values, RunPlace(Path(folder), bool(own[RESUME_KEY]), Path(nodes) if nodes else None)


_NAMELESS = (RESUME_KEY, NODES_KEY, EXPECTED_KEY)


def run_name(run_config: Mapping[str, Any]) -> str:
    """Return what names a run on its devices: its folder, and its config."""
    own = {key: value for key, value in run_config.items() if key not in _NAMELESS}
    return repr(sorted(own.items()))


def read_run_config(run_config: Mapping[str, Any]) -> tuple[RunConfig, RunPlace]:
    """Return the run and its place; a wrong key is printed at once for those who follow the run.

    Flower shows the error itself too, but only after its simulation has come up.

    Raises:
        ConfigError: A value breaks the rule of its key.
    """
    values, place = run_keys(run_config)
    try:
        return make_config(values), place
    except ConfigError as error:
        print(f"error: {error}", flush=True)
        raise
