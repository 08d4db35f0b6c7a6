"""The zoo's models of series: their sizes, and what trains and exports them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedkit.cli.support import model_row
from fedkit.core.errors import ConfigError
from fedkit.nn.zoo import MODELS, build_model, smallest_shape
from fedkit.tasks import digits, digits_rows

SERIES_MODELS = [name for name, row in MODELS.items() if row.takes == "series"]
PARAMETERS = {
    "tc-resnet8": (40, 12, 65_180),
    "har-cnn": (9, 6, 53_862),
    "kwt-1": (40, 12, 609_356),
    "har-gru": (6, 4, 8_260),
}


@pytest.mark.parametrize("name", SERIES_MODELS)
def test_number_of_parameters(name: str) -> None:
    channels, classes, expected = PARAMETERS[name]
    model = build_model(name, (channels, 128), classes)
    assert sum(weight.numel() for weight in model.parameters()) == expected


@pytest.mark.parametrize("name", SERIES_MODELS)
def test_the_shortest_series_are_taken_and_shorter_ones_refused(name: str) -> None:
    channels, length = smallest_shape(name, 3)
    assert build_model(name, (channels, length), 4)(torch.zeros(2, 3, length)).shape == (2, 4)
    for shape in ((3, length - 1), (3, 32, 32)):
        with pytest.raises(ConfigError, match=f"a length of at least {length}"):
            build_model(name, shape, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", SERIES_MODELS)
def test_models_train_without_torch_and_are_exported(name: str) -> None:
    row = model_row(name)
    without_torch = name != "kwt-1"  # whose attention trains on torch
    assert row["trains_sparse"] == row["trains_int8"] == without_torch
    assert {"tflite", "onnx", "c99"} <= set(row["exports"])


def test_digits_by_rows_are_the_digits() -> None:
    images, rows = digits.test_data(), digits_rows.test_data()
    assert rows.inputs.shape == (360, 8, 8)
    assert np.array_equal(rows.inputs[5, :, 2], images.inputs[5, 0, 2])
    assert np.array_equal(rows.targets, images.targets)


@pytest.mark.slow
@pytest.mark.parametrize("name", SERIES_MODELS)
def test_a_fleet_trains_and_exports_it(name: str, tmp_path: Path) -> None:
    how = (
        "--task digits-rows --devices 2 --quick --in-process --density 0.5 --export tflite,onnx,c99"
    )
    command = [sys.executable, "-m", "fedkit", "run", "--model", name, *how.split()]
    command += ["--export", "tflite,onnx,c99"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = {path.suffix for path in tmp_path.rglob("*")}
    assert {".tflite", ".onnx", ".c"} <= made
