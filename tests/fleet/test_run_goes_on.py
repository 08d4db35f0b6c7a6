"""A run goes on at the server when its command is killed; `--resume` waits, and spoils nothing."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from fedkit.cli import fleet_run
from fedkit.config import make_config
from fedkit.core.errors import FleetError
from fedkit.fleet.folder import make_fleet
from fedkit.server.checkpoint import RunFolder
from sim.simulation import APP
from tests.ended_commands import HOLD
from tests.processes import started, wait_for


def test_resume_waits_for_a_run_that_goes_on_and_leaves_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config({"devices": 1, "rounds": 2, "engine": "torch"})
    fleet = make_fleet(tmp_path / "fleet", "127.0.0.1:18766", config, APP, insecure=True)
    folder = RunFolder.create(fleet.runs / "r", fleet.config)
    half = folder.path / ".model.safetensors.1.tmp"
    half.write_bytes(b"being written")
    said: list[str] = []
    failed: list[str] = []
    begun: list[Any] = []

    def run(command: Any, **_: Any) -> Any:
        begun.append(command)
        return subprocess.CompletedProcess(command, 0)

    def resume() -> None:
        try:
            fleet_run.run_fleet(fleet, {}, "", "r", said.append)
        except FleetError as error:
            failed.append(str(error))

    monkeypatch.setattr(subprocess, "run", run)
    assert not folder.is_held
    with started(tmp_path, "-c", HOLD, str(folder.path)) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert folder.is_held
        thread = threading.Thread(target=resume)
        thread.start()
        wait_for(lambda: any("still goes on at the server" in line for line in said))
        assert half.is_file() and not begun and thread.is_alive()
        process.kill()
        process.wait()
        thread.join()
    assert len(begun) == 1 and not half.exists() and not folder.is_held
    assert "after 0 of 2 rounds" in failed[0]  # nothing ran here
