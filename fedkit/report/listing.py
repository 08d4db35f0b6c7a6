"""How far each run of a folder came: `fedkit runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedkit.core.errors import CheckpointError
from fedkit.report.reading import read_state
from fedkit.report.run_steps import counted, last_value


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """Return a row per run folder in a folder, by name.

    Returns:
        `run` (its path), `state`, `round`, `rounds` (planned; None where config.toml is damaged),
        `metric` (its name), `value` (as last measured, or None), `text` (the value as its format
        writes it), `density` (or None), `bytes_down` and `bytes_up`.

    Raises:
        CheckpointError: There is no such folder.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is not a folder; give the one that holds run folders, like runs"
        )
    found = (each for each in folder.iterdir() if (each / "config.toml").is_file())
    return [_row(path) for path in sorted(found)]


def _row(path: Path) -> dict[str, Any]:
    run = read_state(path)
    value, key = last_value(run.steps), counted(run.steps)
    return {
        "run": str(path),
        "state": run.state,
        "round": run.steps[-1]["round"] if run.steps else 0,
        "rounds": run.config.get("rounds"),
        "metric": run.metric.name,
        "value": value,
        "text": "" if value is None else run.metric.text(value),
        "density": run.steps[-1]["density"] if run.steps else None,
        **{way: sum(s.get(f"{key}_{way[6:]}", 0) for s in run.steps) for way in _WAYS},
    }


_WAYS = ("bytes_down", "bytes_up")
