"""`fedkit export RUN --target c99-train`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedkit.server.checkpoint import RunFolder
from fedkit.trainer.on_disk import load_trainer
from tests.command_line import fedkit


def test_a_run_becomes_a_trainer(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = out / "done"
    export = f"export {run} --target c99-train --stored-bits 8"
    assert fedkit(f"{export} --ram 1000", monkeypatch) == 2
    assert "--ram allows 1,000" in " ".join(capsys.readouterr().err.split())
    assert fedkit(f"{export} --batch 3", monkeypatch) == 2
    assert "takes 1, 2, 4 or 8" in " ".join(capsys.readouterr().err.split())
    assert fedkit(f"{export} --json", monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    found = load_trainer(run / "model-c99-train")
    assert told["artifact"] == str(found.path)
    assert (told["ram_bytes"], told["stored_bits"]) == (found.arena_bytes, 8)
    state = RunFolder.open(run).load().state
    assert all(np.array_equal(found.masks[name], mask) for name, mask in state.masks.items())
    assert fedkit(export, monkeypatch) == 2
    assert "is there already" in " ".join(capsys.readouterr().err.split())


def test_it_is_made_by_itself(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedkit(f"export {out / 'done'} --target c99,c99-train", monkeypatch) == 2
    assert "give two commands" in " ".join(capsys.readouterr().err.split())
