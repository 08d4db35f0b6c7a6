"""What a run records of the weights that moved: the masks of its steps, counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkit.config import make_config
from fedkit.server.checkpoint import FIRST_MASKS, RunFolder
from fedkit.server.record import record
from fedkit.server.rounds import Report
from fedkit.sparse.state import Masks
from sim.scenario import make_scenario

SMALL = {
    "devices": 2,
    "rounds": 4,
    "epochs": 1,
    "density": 0.1,
    "examples_per_device": 40,
    "test_examples": 50,
    "server_epochs": 1,
    "sparse_epochs": 1,
    "adjust_every": 2,
    "adjust_stop": 4,
}


class KilledError(Exception):
    """Stands for a server that was killed."""


def run(path: Path, last: int = 99, **how: Any) -> tuple[list[Masks], RunFolder]:
    """The masks of the steps that were stored, up to a round after which the server is gone."""
    scenario = make_scenario(make_config({**SMALL, **how}))
    masks: list[Masks] = []

    def keep(step: Report) -> None:
        masks.append(step.state.masks)
        if step.round == last:
            raise KilledError

    if last < 99:
        with pytest.raises(KilledError):
            record(scenario, scenario.local_fleet(), path, keep)
        record(scenario, scenario.local_fleet(), path, lambda step: None, resume=True)
        return masks, RunFolder.open(path)
    return masks, record(scenario, scenario.local_fleet(), path, keep)


@pytest.mark.parametrize("method", ["fedtiny", "dense", "prunefl", "erk"])
def test_lines_count_what_moved(method: str, tmp_path: Path) -> None:
    masks, folder = run(tmp_path / "run", method=method)
    lines = folder.metrics()
    first = masks[sum(line["round"] == 0 for line in lines) - 1]
    kept = dict.fromkeys(first, 0)
    for number, (line, after) in enumerate(zip(lines, masks, strict=True)):
        before = masks[max(0, number - 1)]
        told = line.get("layers", {})
        for name in after:
            if number and np.array_equal(before[name], after[name]):
                assert name not in told
                continue
            moved = before[name] != after[name]
            assert told[name]["pruned"] == np.sum(moved & before[name])
            assert told[name]["grown"] == np.sum(moved & after[name])
            if line["round"]:
                assert told[name]["of_first"] == np.sum(after[name] & first[name])
            kept[name] = told[name]["kept"]
        assert kept == {name: int(mask.sum()) for name, mask in after.items()}
    moved = [line["round"] for line in lines if "layers" in line]
    assert moved == [0, 0, 2][: {"dense": 1, "erk": 2}.get(method, 3)]


def test_a_run_that_goes_on_tells_the_same(tmp_path: Path) -> None:
    _, whole = run(tmp_path / "whole")
    for last in (0, 1, 2):
        _, again = run(tmp_path / f"cut{last}", last)
        told = [[line.get("layers") for line in folder.metrics()] for folder in (whole, again)]
        assert told[0] == told[1]


@pytest.mark.parametrize("damage", ["missing", "half", "zeros", "another model's"])
def test_first_masks_that_cannot_be_read_leave_out_what_they_would_tell(
    damage: str, tmp_path: Path
) -> None:
    masks, folder = run(tmp_path / "run", rounds=1)
    path = folder.path / "checkpoint" / FIRST_MASKS
    found = folder.first_masks(masks[0])
    assert found is not None
    assert all(np.array_equal(found[name], mask) for name, mask in masks[1].items())
    data = path.read_bytes()
    path.unlink()
    if damage == "another model's":
        folder.keep_first_masks({name: mask.ravel()[:-9] for name, mask in masks[0].items()})
    elif damage != "missing":
        path.write_bytes(data[: len(data) // 2] if damage == "half" else bytes(len(data)))
    assert folder.first_masks(masks[0]) is None
