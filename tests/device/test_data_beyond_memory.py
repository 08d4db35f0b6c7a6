"""A device trains on more data than its memory holds, to the same bits as on data in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.plan import save_plan
from tests.imports import ROOT
from tests.sets import slow

FEATURES = 1024
MOST_BYTES = 400e6


def device(folder: Path, precision: str, how: str = "lazy") -> dict[str, Any]:
    save_plan(capture(nn.Sequential(nn.Linear(FEATURES, 2)), (FEATURES,)), folder / "model.plan")
    command = ["-m", "tests.device.data_child", "model.plan", ".", precision, how]
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def header(path: Path, shape: tuple[int, ...]) -> int:
    with path.open("wb") as file:
        described = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, described)
        return file.tell()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_data_on_disk_trains_to_the_same_bits(precision: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 500)
    inputs = rng.standard_normal((500, FEATURES), np.float32) + targets[:, None].astype(np.float32)
    np.save(tmp_path / "inputs.npy", inputs)
    np.save(tmp_path / "targets.npy", targets)
    lazy, whole = (device(tmp_path, precision, how) for how in ("lazy", "whole"))
    assert (lazy["sha256"], lazy["losses"]) == (whole["sha256"], whole["losses"])
    assert 0 < lazy["losses"][0] < 0.69


@pytest.mark.parametrize(
    ("precision", "gigabytes"), [("fp32", 1), slow(("fp32", 4)), slow(("int8", 4))]
)
def test_gigabytes_take_no_memory(precision: str, gigabytes: int, tmp_path: Path) -> None:
    """The file is one hole, which takes no disk either; every byte of it is read."""
    count = gigabytes * 2**30 // (4 * FEATURES)
    start = header(tmp_path / "inputs.npy", (count, FEATURES))
    with (tmp_path / "inputs.npy").open("r+b") as file:
        file.truncate(start + 4 * FEATURES * count)
    np.save(tmp_path / "targets.npy", np.arange(count) % 2)
    found = device(tmp_path, precision)
    print(f"peak {found['peak_bytes'] / 1e6:.0f} MB")
    assert found["peak_bytes"] < MOST_BYTES
    assert found["losses"][0] == pytest.approx(np.log(2), rel=1e-3)
