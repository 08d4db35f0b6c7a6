"""A grid on a Ray cluster of two local nodes, one of which dies: the same numbers, no cell lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedkit.core.errors import FleetError
from fedkit.server.checkpoint import RunFolder
from tests.cli.tiny_grid import AXES, TINY, grid_file
from tests.cli.two_nodes import TwoNodes
from tests.fleet.command import command
from tests.fleet.real import FEDKIT
from tests.flower.same_bits import assert_same_bits
from tests.processes import HANG, wait_for


@pytest.fixture
def nodes() -> Iterator[TwoNodes]:
    made = TwoNodes()
    yield made
    made.stop()


def numbers(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows without what each run measures anew."""
    return [
        {key: value for key, value in row.items() if "seconds" not in key and "bytes" not in key}
        for row in result["rows"]
    ]


@pytest.mark.slow
def test_no_cell_is_lost_where_a_node_dies(nodes: TwoNodes, tmp_path: Path) -> None:
    grid = grid_file(tmp_path, TINY.replace("rounds = 1", "rounds = 40") + AXES)
    flags = ("--out", str(tmp_path / "results"), "--work", str(tmp_path / "work"))
    process = subprocess.Popen(
        [FEDKIT, "compare", str(grid), *flags, "--ray", nodes.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: nodes.works_on_the_second() or process.poll() is not None)
    before = len(list((tmp_path / "work" / "tiny").glob("????????????????.json")))
    assert process.poll() is None and before < 6, "nothing was left to be lost"
    nodes.kill_the_second()
    said, _ = process.communicate(timeout=HANG)
    assert process.returncode == 0, said
    found = json.loads((tmp_path / "results" / "compare-tiny.json").read_text())
    assert len(found["rows"]) == 6

    code, _, words = command(
        *("compare", grid, "--out", tmp_path / "here", "--work", tmp_path / "there")
    )
    assert code == 0, words
    here = json.loads((tmp_path / "here" / "compare-tiny.json").read_text())
    assert numbers(found) == numbers(here)


@pytest.mark.slow
def test_a_cell_that_fails_is_told_and_a_stopped_grid_goes_on(
    nodes: TwoNodes, tmp_path: Path
) -> None:
    failing = TINY.replace("[run]", "[run]\nlr = 1e20") + AXES
    grid = grid_file(tmp_path, failing)
    flags = ("--out", str(tmp_path / "results"), "--work", str(tmp_path / "work"))
    ended = subprocess.run(
        [FEDKIT, "compare", str(grid), *flags, "--ray", nodes.address],
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert ended.returncode == 2 and "lower lr" in ended.stderr

    grid = grid_file(tmp_path, TINY.replace("rounds = 1", "rounds = 40") + AXES)
    process = subprocess.Popen(
        [FEDKIT, "compare", str(grid), *flags, "--ray", nodes.address],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: nodes.works_on_the_second() or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=HANG)
    assert process.returncode == 143 and "the same command continues" in said
    wait_for(lambda: not nodes.works_on_the_second())


@pytest.mark.slow
def test_one_run_joins_the_cluster_and_has_the_same_numbers(
    nodes: TwoNodes, tmp_path: Path
) -> None:
    small = ("--devices", "4", "--rounds", "2", "--epochs", "1", "--examples-per-device", "40")
    more = ("--server-epochs", "1", "--sparse-epochs", "1", "--out", str(tmp_path), "--json")
    ended = subprocess.run(
        [FEDKIT, "run", *small, *more, "--backend", "ray", "--name", "there"],
        capture_output=True,
        text=True,
        timeout=HANG,
        env={**os.environ, "RAY_ADDRESS": nodes.address},
    )
    assert ended.returncode == 0, ended.stderr
    code, _, words = command("run", *small, *more, "--in-process", "--name", "here")
    assert code == 0, words
    found, here = (RunFolder.open(tmp_path / name) for name in ("there", "here"))
    assert_same_bits(found.load().state, here.load().state)


def test_workers_are_the_clusters(tmp_path: Path) -> None:
    code, _, said = command("compare", grid_file(tmp_path), "--workers", "2", "--ray", "auto")
    assert code == 2 and "leave --workers out, or --ray" in said


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "no.such.host.invalid:6379", "127.0.0.1:99999"])
def test_an_address_where_no_cluster_is_says_so(address: str, tmp_path: Path) -> None:
    flags = ("--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"))
    ended = subprocess.run(
        [FEDKIT, "compare", str(grid_file(tmp_path)), *flags, "--ray", address],
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert ended.returncode == 2
    assert f"no Ray cluster answers at {address}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_error_of_another_version_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedkit.cli.cells_on_ray import _told

    result, error = _told("0.0.0", abs, (-1,), {})
    assert result is None and isinstance(error, FleetError) and "0.0.0" in str(error)
