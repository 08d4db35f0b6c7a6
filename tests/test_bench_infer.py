"""The benchmark of inference: rows hold what they promise; no time is judged."""

from __future__ import annotations

import pytest

from fedkit.bench.infer import model_rows
from tests.edge.kernels.library import need_gcc


def test_rows_of_inference_have_all_figures() -> None:
    need_gcc()
    rows = {row["runtime"]: row for row in model_rows("resnet8", 0.02, turns=1)}
    assert list(rows) == ["c99", "c99 for size", "litert", "litert, whole", "onnxruntime"]
    for runtime, row in rows.items():
        assert min(row["microseconds"], row["artifact_bytes"]) > 0
        assert row["ram_bytes"] > 0.5 * row["artifact_bytes"]
        ratios = [value for key, value in row.items() if key.startswith("ratio_")]
        assert len(ratios) == 3 and all((each is None) == ("c99" not in runtime) for each in ratios)
    ours, theirs = rows["c99"], rows["litert"]
    assert ours["ratio_litert"] == pytest.approx(
        theirs["microseconds"] / ours["microseconds"], rel=0.01
    )
    assert rows["c99 for size"]["artifact_bytes"] < rows["litert, whole"]["artifact_bytes"] / 4
