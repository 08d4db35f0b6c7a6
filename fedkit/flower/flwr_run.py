"""`flwr run`, and how the run ended: Flower's own command returns 0 once it has shown the log."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fedkit.core.errors import FleetError
from fedkit.flower.processes import ENVIRONMENT

_STARTED = re.compile(r"Successfully started run (\d+)")
_ERROR = "error: "
_COMPLETED = "finished:completed"


def flwr_run(app: str, connection: str, options: Sequence[str]) -> None:
    """Start a run of a Flower app with Flower's own commands, show its log, and wait for its end.

    Args:
        app: Its folder.
        connection: Name of a SuperLink in Flower's settings; "" is the default one.
        options: Further options of `flwr run`.

    Raises:
        FleetError: The run was not started, or did not come to its end; what the app says in a
            line that begins with `error:` is its message.
    """
    where = [connection] if connection else []
    run, said = _follow(["run", app, *where, "--stream", *options])
    if (status := _status(run, where)) != _COMPLETED:
        raise FleetError(said or f"run {run} ended as {status}; what it said is above")


def _follow(arguments: Sequence[str]) -> tuple[str, str]:
    """Run a command of Flower, and show what it prints; return the run's id and first error."""
    run = said = ""
    with subprocess.Popen(
        _command(arguments), env=_environment(), stdout=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            run = run or (found[1] if (found := _STARTED.search(line)) else "")
            if not said and line.startswith(_ERROR):
                said = line.removeprefix(_ERROR).strip()
    if not run:
        raise FleetError(
            f"flwr run started no run (exit code {process.returncode}); what it said is above"
        )
    return run, said


def _status(run: str, where: Sequence[str]) -> str:
    """Return how Flower says that a run ended."""
    asked = _command(["ls", *where, "--run-id", run, "--format", "json"])
    told = subprocess.run(asked, env=_environment(), capture_output=True, text=True)
    try:
        found = json.JSONDecoder().raw_decode(told.stdout[max(0, told.stdout.find("{\n")) :])[0]
        return str(found["runs"][0]["status"])
    except (ValueError, LookupError, TypeError):
        said = (told.stdout + told.stderr).strip()
        raise FleetError(f"flwr ls does not say how run {run} ended: {said}") from None


def _command(arguments: Sequence[str]) -> list[str]:
    return [str(Path(sys.executable).with_name("flwr")), *arguments]


def _environment() -> dict[str, str]:
    """Return what this process has, and ours where the person has set nothing."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**ENVIRONMENT, **os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
