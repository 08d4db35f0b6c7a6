"""The benchmark of inference: rows hold what they promise; no time is judged."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from torch import nn

from fedkit.bench.infer import SHAPE, model_rows
from fedkit.bench.infer_executorch import VARIABLE, ExecuTorch
from fedkit.bench.sparsetrain import random_batch
from fedkit.core.errors import BenchError
from tests.edge.targets.c99.library import need_gcc


@pytest.mark.slow
def test_rows_of_inference_have_all_figures() -> None:
    need_gcc()
    rows = {row["runtime"]: row for row in model_rows("resnet8", 0.02, turns=1)}
    assert list(rows) == ["c99", "c99 for size", "litert", "litert, whole", "onnxruntime"]
    for runtime, row in rows.items():
        assert min(row["microseconds"], row["artifact_bytes"]) > 0
        assert row["ram_bytes"] > 0.5 * row["artifact_bytes"]
        ratios = [value for key, value in row.items() if key.startswith("ratio_")]
        assert len(ratios) == 4 and row["ratio_executorch"] is None
        assert all((each is None) == ("c99" not in runtime) for each in ratios[:3])
    ours, theirs = rows["c99"], rows["litert"]
    assert ours["ratio_litert"] == pytest.approx(
        theirs["microseconds"] / ours["microseconds"], rel=0.01
    )
    assert rows["c99 for size"]["artifact_bytes"] < rows["litert, whole"]["artifact_bytes"] / 4


@pytest.mark.parametrize(
    ("python", "reason"),
    [
        pytest.param("/no/such/python", "cannot be run", id="no program"),
        pytest.param(sys.executable, "No module named 'executorch'", id="without ExecuTorch"),
    ],
)
def test_an_environment_without_executorch_is_named(
    python: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, python)
    inputs = random_batch(1, SHAPE).inputs
    with pytest.raises(BenchError, match=reason):
        ExecuTorch(nn.Conv2d(3, 4, 3), inputs, tmp_path)


@pytest.mark.slow
def test_executorch_is_a_row_where_it_is_installed() -> None:
    need_gcc()
    if not os.environ.get(VARIABLE):
        pytest.skip(f"${VARIABLE} names no Python that has executorch")
    rows = {row["runtime"]: row for row in model_rows("resnet8", 0.02, 1, executorch=True)}
    row, ours = rows["executorch"], rows["c99"]
    assert min(row["microseconds"], row["artifact_bytes"], row["ram_bytes"]) > 0
    assert ours["ratio_executorch"] == pytest.approx(
        row["microseconds"] / ours["microseconds"], rel=0.01
    )
