"""What a Python of its own has imported after it ran some code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "sklearn", "pandas", "flwr", "flwr_datasets", "datasets", "matplotlib", "onnx")
"""Libraries that take seconds to import."""

_TELL = "\nimport sys as _sys\nprint('IMPORTED', *_sys.modules)"


def imported_by(code: str, folder: Path = ROOT) -> set[str]:
    """Return the top-level modules that are imported once `code` has run."""
    return {name.partition(".")[0] for name in modules_of(code, folder)}


def modules_of(code: str, folder: Path = ROOT) -> set[str]:
    """Return all modules that are imported once `code` has run."""
    return set(python_of(code + _TELL, folder).rpartition("IMPORTED ")[2].split())


def python_of(code: str, folder: Path = ROOT) -> str:
    """Return what a Python of its own prints that runs `code`."""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
