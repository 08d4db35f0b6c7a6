"""Folders of others name modules: which ones are imported is said before it happens.

A run's config may name its task and method as `package.module:name`, and to import a module is to
run it. For a run of one's own that is what was asked for. A folder that belongs to another account
is refused unless the person says that it is trusted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from edge import artifact as artifacts
from fedkit.config import read_config
from fedkit.core.errors import ConfigError
from fedkit.server.checkpoint import RunFolder

Say = Callable[[str], None]

_KEYS = ("task", "method")
_CONFIG = "config.toml"


def check_run(run: Path, trust: bool, say: Say) -> None:
    """Say which modules the config of a run folder makes us import.

    Args:
        run: The folder.
        trust: Whether the person trusts it.
        say: Told of each module.

    Raises:
        ConfigError: It names one, belongs to another account and is not trusted.
        CheckpointError: It is not a run folder.
    """
    RunFolder.open(run)
    check_modules(read_config(run / _CONFIG), run / _CONFIG, trust, say)


def check_artifact(path: Path, task: str, trust: bool, say: Say) -> None:
    """Say which modules an artifact, and a run folder around it, make us import; see `check_run`.

    Args:
        path: The artifact.
        task: What the person named; what the artifact names counts if it is "".
        trust: Whether the person trusts it.
        say: Told of each module.
    """
    found = artifacts.load(path)
    named = found.provenance.get("config")
    if not task and isinstance(named, Mapping):
        check_modules({"task": named.get("task")}, found.path, trust, say)


def check_around(path: Path, trust: bool, say: Say) -> None:
    """Say which modules the run folder around an artifact makes us import; see `check_run`."""
    folder = artifacts.load(path).path.parent
    if (folder / _CONFIG).is_file():
        check_run(folder, trust, say)


def check_modules(config: Mapping[str, Any], source: Path, trust: bool, say: Say) -> None:
    """Say which modules a config makes us import, and refuse those of other accounts."""
    for key in _KEYS:
        name = config.get(key)
        if not isinstance(name, str) or ":" not in name:
            continue
        say(f"{key} of {source} is {name}: this imports {_origin(name)}")
        owner = source.stat().st_uid
        if owner != os.geteuid() and not trust:
            raise ConfigError(
                f"{source} belongs to account {owner}, and names {name!r} as its {key}; to import "
                f"that is to run {_origin(name)}: look at it, then give --trust"
            )


def _origin(name: str) -> str:
    """Return where the module of `package.module:name` lies; nothing is imported to find out."""
    top = name.partition(":")[0].partition(".")[0]
    if top in sys.builtin_module_names:
        return "a module of Python itself"
    spec = PathFinder.find_spec(top, [*sys.path, str(Path.cwd())])
    if spec is None:
        return f"{top}, which is not found"
    return spec.origin or ", ".join(spec.submodule_search_locations or [top])
