"""How a run behind Flower ended, by its folder: `flwr run` ends with 0 even if the app failed."""

from __future__ import annotations

from pathlib import Path

from fedkit.server.checkpoint import RunFolder


def how_it_ended(folder: Path) -> tuple[str, int]:
    """Return what the app says that it failed of, "" where it does not, and the last round."""
    reason, said = folder / "error.txt", ""
    if reason.is_file():
        said = reason.read_text(encoding="utf-8", errors="replace").strip()
    metrics = RunFolder(folder).metrics()
    return said, metrics[-1]["round"] if metrics else 0
