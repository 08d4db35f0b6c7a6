"""What is read from an ONNX file is compared with onnxruntime, and a misread op is found."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn

from edge.export import load_onnx
from fedkit.core.errors import ExportError
from fedkit.graph import from_onnx, onnx_compare
from tests.graph.exported import exported

SHAPE = (3, 8, 10)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="needs onnxruntime"
)


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(SHAPE[0], 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * (SHAPE[1] // 2) * (SHAPE[2] // 2), 3),
    ).eval()


def test_a_file_that_is_read_rightly_passes(tmp_path: Path) -> None:
    content = exported(net(), SHAPE)
    path = tmp_path / "model.onnx"
    onnx.save(onnx.load_from_string(content), path, save_as_external_data=True, size_threshold=0)
    assert load_onnx(content).outputs and load_onnx(path).outputs
    assert onnx_compare._session(content) is not None


@pytest.mark.parametrize(
    ("operator", "instead"), [("MaxPool", "AveragePool"), ("Relu", "Identity")]
)
def test_an_op_that_is_taken_for_another_is_found(
    operator: str, instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(from_onnx._HANDLERS, operator, from_onnx._HANDLERS[instead])
    with pytest.raises(ExportError, match="gives other outputs than the file itself in onnxrun"):
        load_onnx(exported(net(), SHAPE))


def test_a_weight_that_is_misread_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain: Any = numpy_helper.to_array

    def misread(tensor: onnx.TensorProto) -> Any:
        found = plain(tensor)
        return found[..., ::-1] if found.ndim == 4 else found

    monkeypatch.setattr(numpy_helper, "to_array", misread)
    with pytest.raises(ExportError, match="gives other outputs than the file"):
        load_onnx(exported(net(), SHAPE))


def test_what_onnxruntime_does_not_take_is_left_to_the_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = exported(net(), SHAPE)
    assert onnx_compare._session(b"no model") is None
    monkeypatch.setattr(onnx_compare, "_session", lambda source: None)
    assert load_onnx(content).outputs


def test_outputs_of_random_inputs_that_overflow_tell_nothing() -> None:
    infinite = np.full((1, 3), np.inf, np.float32)
    onnx_compare._check_close(np.zeros((1, 3), np.float32), infinite)
    with pytest.raises(ExportError):
        onnx_compare._check_close(np.full((1, 3), np.nan, np.float32), np.ones((1, 3), np.float32))
