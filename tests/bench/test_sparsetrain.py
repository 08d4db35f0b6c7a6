from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkit.bench import sparsetrain
from fedkit.bench.process import idle_memory, memory, run_json
from fedkit.bench.sparsetrain import in_turns, model_rows, random_batch, randomly_pruned, write_kept
from fedkit.cli.tables import rows_table
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.plan import save_plan
from fedkit.engine.torch import TorchEngine
from fedkit.nn.zoo import build_model, seeded
from fedkit.sparse.state import ModelState, density
from fedkit.tasks.task import cross_entropy

SHAPE = (3, 8, 8)
BATCH = random_batch(16, SHAPE)
CHILD = str(Path(sparsetrain.__file__).with_name("sparsetrain_child.py"))

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read where Linux tells it")


@pytest.fixture(scope="module")
def dense() -> ModelState:
    model = seeded(lambda: build_model("resnet8", SHAPE, 10), 0)
    return TorchEngine(model, cross_entropy).initial_state()


@pytest.fixture
def folder(tmp_path: Path, dense: ModelState) -> Path:
    """What the processes read that train alone."""
    save_plan(capture(build_model("resnet8", SHAPE, 10), SHAPE), tmp_path / "model.plan")
    np.savez(tmp_path / "batch.npz", inputs=BATCH.inputs, targets=BATCH.targets)
    write_kept(randomly_pruned(dense, 0.1), tmp_path / "kept.npz")
    return tmp_path


@pytest.mark.slow
@linux
def test_rows_hold_every_figure_and_their_ratios() -> None:
    rows = model_rows("resnet8", (0.05, 1.0), (32, 8), BATCH, repeats=2, starts=1)
    found = [(row["density"], row["stored_bits"]) for row in rows]
    assert found == [(0.05, 32), (0.05, 8), (1.0, 32), (1.0, 8)]
    for row in rows:
        assert (row["model"], row["threads"], row["batch"]) == ("resnet8", 1, 16)
        check_figures(row)
    assert rows[0]["planned_bytes_ours"] < rows[2]["planned_bytes_ours"]
    for wide, narrow in zip(rows[::2], rows[1::2], strict=True):
        assert narrow["planned_bytes_ours"] < wide["planned_bytes_ours"]
        assert narrow["moved_bytes"] < wide["moved_bytes"]
    assert rows_table({"benchmark": "sparsetrain", "rows": rows}).row_count == len(rows)


def check_figures(row: dict[str, Any]) -> None:
    for kind, ratio, share in (
        ("seconds", "ratio", row["seconds_torch"] / row["seconds_ours"]),
        ("peak_bytes", "memory_ratio", row["peak_bytes_ours"] / row["peak_bytes_torch"]),
        ("tensor_bytes", "tensor_ratio", row["tensor_bytes_ours"] / row["tensor_bytes_torch"]),
    ):
        assert row[f"{kind}_ours"] > 0 and row[f"{kind}_torch"] > 0
        assert row[ratio] == pytest.approx(share, rel=0.02)
    assert row["ratio_lowest"] <= row["ratio_highest"]
    least = max(
        row["moved_bytes"] / row["copied_bytes_per_second"],
        row["flops"] / row["multiplied_flops_per_second"],
    )
    assert row["roofline_share"] == pytest.approx(least / row["seconds_ours"], rel=0.02, abs=2e-3)
    assert row["loss_ours"] == pytest.approx(row["loss_torch"], rel=1e-4)
    for side in ("ours", "torch"):
        assert row[f"tensor_bytes_{side}"] < row[f"peak_bytes_{side}"]


@linux
def test_our_process_trains_where_torch_is_not_installed(
    folder: Path, without_torch: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", without_torch["PYTHONPATH"])
    ours = run_json("-P", CHILD, "sparse", str(folder))
    assert ours["peak_bytes"] > idle_memory() > 0
    with pytest.raises(subprocess.CalledProcessError):
        run_json("-P", CHILD, "torch", str(folder), "resnet8")


@linux
def test_a_processs_memory_is_its_own_and_not_that_of_who_started_it() -> None:
    room = np.ones(1 << 26, np.uint8)
    assert memory("VmHWM") > room.nbytes
    assert idle_memory() < room.nbytes


@pytest.mark.parametrize("kept", [0.01, 0.3, 1.0])
def test_masks_are_random_and_keep_the_same_share_of_every_layer(
    dense: ModelState, kept: float
) -> None:
    state = randomly_pruned(dense, kept)
    total = sum(mask.size for mask in state.masks.values())
    assert density(state.masks) == int(kept * total) / total
    for name, mask in state.masks.items():
        assert mask.sum() == pytest.approx(kept * mask.size, abs=1)
        assert not state.weights[name][~mask].any()


def test_only_kept_weights_are_written(tmp_path: Path, dense: ModelState) -> None:
    state = randomly_pruned(dense, 0.1)
    write_kept(state, tmp_path / "kept.npz")
    with np.load(tmp_path / "kept.npz") as file:
        for name, mask in state.masks.items():
            assert file[f"{name} positions"].tolist() == np.flatnonzero(mask).tolist()
            assert np.array_equal(file[name], state.weights[name][mask])
        others = set(state.weights) - set(state.masks)
        assert all(np.array_equal(file[name], state.weights[name]) for name in others)


def test_jobs_take_turns() -> None:
    done: list[str] = []
    times = in_turns([lambda: done.append("a"), lambda: done.append("b")], 2)
    assert done == ["a", "b", "a", "b"]
    assert [len(row) for row in times] == [2, 2]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system pins no process")
def test_steps_are_timed_on_one_core_and_the_others_come_back() -> None:
    before = os.sched_getaffinity(0)
    with sparsetrain.one_core():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
