"""The benchmark of quantisers: both compute the model; no accuracy is judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedkit.bench import quantise
from fedkit.bench.exact import Cell
from fedkit.bench.readme import _source
from fedkit.core.provenance import made_by
from fedkit.nn.zoo import build_model, seeded
from tests.edge.targets.c99.library import need_gcc


@pytest.mark.parametrize("quantiser", [quantise._ours, quantise._onnxruntimes])
def test_both_quantise_the_float_model(quantiser: Callable[..., object], tmp_path: Path) -> None:
    need_gcc()
    model = seeded(lambda: build_model("resnet8", (1, 8, 8), 3), 0).eval()
    images = np.random.default_rng(0).standard_normal((16, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        real = model(torch.from_numpy(images)).numpy()
    found = np.asarray(quantiser(model, images, images, tmp_path))
    assert found.shape == real.shape
    assert 0 < np.abs(found - real).max() < 0.1 * np.ptp(real)


def test_the_file_is_the_float_model() -> None:
    import onnxruntime

    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()).eval()
    session = onnxruntime.InferenceSession(quantise._file(model, (1, 5, 5)))
    image = torch.randn(1, 1, 5, 5)
    found = session.run(None, {"x": image.numpy()})[0]
    np.testing.assert_allclose(found, model(image).detach().numpy(), atol=1e-6)


def test_the_result_tells_what_the_line_below_its_table_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantise, "run", lambda cell: {"rows": []})
    assert "seed 1, commit" in _source({**quantise.bench_quantise(quick=True), **made_by()})


@pytest.mark.slow
def test_a_cell_has_a_row_for_each_quantiser_and_a_line_in_the_table() -> None:
    need_gcc()
    rows = quantise.run(Cell("resnet8", 1.0, 300, 50))["rows"]
    assert [row["quantiser"] for row in rows] == ["ours", "onnxruntime"]
    assert all(0 < row["noise"] < 1 and 0 <= row["same_class"] <= 1 for row in rows)
    (line,) = quantise.table({"rows": rows})[2:]
    assert line.count("|") == 10
