"""A grid of small cells."""

from __future__ import annotations

from pathlib import Path

TINY = """
name = "tiny"
[run]
devices = 2
rounds = 1
epochs = 1
examples_per_device = 40
test_examples = 100
server_epochs = 0
sparse_epochs = 0
"""
AXES = '[axes]\nmethod = ["fedtiny", "dense"]\ndensity = [0.1, 0.2]\nseed = [1, 2]\n'


def grid_file(folder: Path, text: str = TINY + AXES) -> Path:
    path = folder / "grid.toml"
    path.write_text(text)
    return path
