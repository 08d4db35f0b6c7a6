"""A run that the command line has made, for tests of one file."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from tests.command_line import fedkit

SMALL = (
    "--devices 3 --rounds 2 --epochs 1 --examples-per-device 40 --pool-size 2 --server-epochs 1 "
    "--sparse-epochs 1 --in-process"
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, `done`, and its summary line."""
    path = tmp_path_factory.mktemp("runs")
    command = f"run --out {path} --name done {SMALL} --with-dense --json"
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as printed,
    ):
        assert fedkit(command, patch) == 0
    (path / "stdout").write_text(printed.getvalue())
    return path
