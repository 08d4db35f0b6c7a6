"""`fedkit fleet` for people: what is refused, with which words, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from unittest import mock

import pytest

from fedkit.cli import main


def fedkit(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command in this process, as the program does; return its exit code and its words."""
    out, said, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(said),
        mock.patch.object(sys, "argv", ["fedkit", "fleet", *map(str, arguments)]),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), said.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "fleet"
    code, _, said = fedkit("init", path, "--devices", "2", "--insecure")
    assert code == 0, said
    assert f"fedkit fleet run {path}" in said  # what comes next
    return path


def test_a_new_fleet_has_a_plan_for_each_device_and_no_data(folder: Path) -> None:
    names = {path.name for path in (folder / "devices" / "device-001").iterdir()}
    assert "model.plan" in names and "data.npz" not in names
    assert "min_share = 0.5" in (folder / "run.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("init", "{new}", "--devices", "none"), "devices is 'none'"),
        (("init", "{new}", "--address", "nowhere"), "must be host:port"),
        (("init", "{new}", "--address", "10.0.0.1:80", "--insecure"), "it is for 127.0.0.1 only"),
        (("init", "{new}", "--task", "nothing"), "nothing"),
        (("init", "{new}", "--dp-clip", "1.0"), "is not private all the same"),
        (("init", "{fleet}"), "exists and is never overwritten"),
        (("server", "{new}"), "make a fleet with: fedkit fleet init"),
        (("device", "{new}"), "device.toml cannot be read"),
        (("status", "{new}"), "fleet.toml cannot be read"),
        (("run", "{fleet}", "--resume", "last"), "there is no run 'last'"),
        (("run", "{fleet}", "--rounds", "0"), "rounds is '0'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    new = tmp_path / "new"
    code, _, said = fedkit(*(each.format(new=new, fleet=folder) for each in arguments))
    assert code == 2
    assert words in said
    assert list(tmp_path.iterdir()) == []


def test_the_status_of_a_fleet_that_is_not_up(folder: Path) -> None:
    code, out, _ = fedkit("status", folder, "--json")
    status = json.loads(out)
    assert code == 0
    assert status["server"].startswith("down")
    assert [device["connection"] for device in status["devices"]] == ["unknown"] * 2


def test_a_run_without_a_server_says_so(folder: Path) -> None:
    code, _, said = fedkit("run", folder, "--name", "alone", "--rounds", "1")
    assert code == 2
    assert "after 0 of 1 rounds" in said
    assert not (folder / "runs" / "alone").exists()
