"""Names of runs and devices: never paths, and safe wherever a name is written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fedkit.core.errors import CheckpointError, ConfigError

_LONGEST = 100
_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9._-]{{0,{_LONGEST - 1}}}")


def check_name(name: str, what: str = "run") -> str:
    """Return a name that a person gave to a run, or to something else.

    Raises:
        ConfigError: It is not made of 1 to 100 letters, digits and `. _ -`, or begins with a dot
            or a dash: it could leave the folder of its runs, hide, or be taken for an option.
    """
    if _NAME.fullmatch(name):
        return name
    shown = ascii(name if len(name) <= _LONGEST else f"{name[:20]}...")
    long = f" of {len(name)} characters" if len(name) > _LONGEST else ""
    raise ConfigError(
        f"name {shown}{long} cannot name a {what}; give 1 to {_LONGEST} letters, digits and . _ - "
        "(ASCII), not beginning with a dot or a dash"
    )


def find_run(runs: Path, name: str) -> Path:
    """Return the folder of the run `name`; `last` is the one written to last.

    Args:
        runs: Folder of all run folders.
        name: Of one in it.

    Raises:
        ConfigError: It is not a valid name.
        CheckpointError: There is no such run; the message lists those there are.
    """
    check_name(name)
    known = run_folders(runs)
    if runs / name in known:
        return runs / name
    if name == "last" and known:
        return max(known, key=lambda path: path.stat().st_mtime)
    there = ", ".join(path.name for path in known) or "none"
    raise CheckpointError(f"there is no run {name!r} in {runs} to resume; there are: {there}")


def run_folders(runs: Path) -> list[Path]:
    """Return the run folders in a folder, by name; none where there is no such folder."""
    return [path for path in _entries(runs) if (path / "config.toml").is_file()]


def _entries(folder: Path) -> Iterable[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []
