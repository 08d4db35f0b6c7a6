"""The runner refuses what it cannot run, with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge import artifact
from edge.quantize.to_int8 import quantize
from edge.targets.tflite import emitter as tflite
from edge.targets.tflite import runner
from edge.targets.tflite.runner import TfliteRunner, available_runtimes
from fedkit.core.errors import ExportError
from fedkit.graph import ir


@pytest.fixture
def content(linear_graph: Callable[..., ir.Graph]) -> bytes:
    """Return y = x[0] + 2 x[1] for inputs in [-1, 1]."""
    corners = np.array([[1, 1], [-1, -1]], np.float32)
    return tflite.emit(quantize(linear_graph(np.array([[1.0, 2.0]]), np.zeros(1)), corners))


def test_predictions_keep_order_and_shape(content: bytes) -> None:
    inputs = np.array([[1, 1], [0, 0.5], [0, 0], [-1, 0]], np.float32)
    runner = TfliteRunner(content)
    assert np.abs(runner.predict(inputs)[:, 0] - [3, 1, 0, -1]).max() < 0.05
    assert runner.predict(inputs[:0]).shape == (0, 1)


def test_int8_goes_in_and_out_as_it_is(content: bytes) -> None:
    runner = TfliteRunner(content)
    inputs = np.array([[1, 1], [-1, -1], [99, -99]], np.float32)
    raw = runner.predict_int8(runner.quantize(inputs))
    assert raw.dtype == np.int8
    assert raw[0, 0] >= 126
    assert raw[1, 0] == -128
    assert runner.quantize(inputs)[2].tolist() == [127, -128]


def test_images_are_taken_in_torchs_layout() -> None:
    tensors = {"x": ir.Tensor("x", (1, 2, 3, 4)), "y": ir.Tensor("y", (1, 24))}
    graph = ir.Graph(tensors, (ir.Op("flatten_nchw", ("x",), ("y",)),), ("x",), ("y",))
    inputs = np.arange(48, dtype=np.float32).reshape(2, 4, 2, 3)
    assert np.array_equal(TfliteRunner(tflite.emit(graph)).predict(inputs), inputs.reshape(2, -1))


@pytest.mark.parametrize(
    "inputs", [np.zeros((2, 3), np.float32), np.zeros((1, 2, 1, 1), np.float32)]
)
def test_inputs_that_do_not_fit_are_refused(content: bytes, inputs: ir.Array) -> None:
    with pytest.raises(ExportError, match="the model takes"):
        TfliteRunner(content).predict(inputs)
    with pytest.raises(ExportError, match="the model takes"):
        TfliteRunner(content).predict_int8(inputs)


@pytest.mark.parametrize("name", available_runtimes())
@pytest.mark.parametrize("damage", ["empty", "noise", "head", "half"])
def test_a_corrupt_file_is_refused(content: bytes, name: runner.Runtime, damage: str) -> None:
    damaged = {
        "empty": b"",
        "noise": b"not a model" * 40,
        "head": b"\xff" * 64 + content[64:],
        "half": content[: len(content) // 2],
    }
    with pytest.raises(ExportError, match=r"refuses the model of \d+ bytes"):
        TfliteRunner(damaged[damage], name)


def test_a_path_is_checked_against_its_manifest(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    with pytest.raises(ExportError, match=r"cannot read the model .*model\.tflite"):
        TfliteRunner(path)
    artifact.save(content, path, target="tflite", inputs=[], outputs=[], provenance={}, details={})
    assert TfliteRunner(str(path)).predict(np.zeros((1, 2), np.float32)).shape == (1, 1)
    altered = bytearray(content)
    altered[-1] ^= 1
    path.write_bytes(bytes(altered))
    with pytest.raises(ExportError, match="not the file its manifest describes"):
        TfliteRunner(path)


def test_latency_is_positive_and_ordered(content: bytes) -> None:
    found = TfliteRunner(content).latency(repeats=20)
    assert 0 < found["median_us"] <= found["p95_us"]


def test_an_unknown_runtime_is_refused(content: bytes) -> None:
    with pytest.raises(ExportError, match="'onnx' cannot be used: it is unknown"):
        TfliteRunner(content, "onnx")  # type: ignore[arg-type]


def test_numpy_2_is_no_home_for_the_old_runtime(
    content: bytes, monkeypatch: pytest.MonkeyPatch, both_runtimes: tuple[str, ...]
) -> None:
    monkeypatch.setattr("numpy.__version__", "2.1.0")
    assert available_runtimes() == ("ai-edge-litert",)
    with pytest.raises(ExportError, match=r"it needs numpy below 2, and numpy is 2\.1\.0"):
        TfliteRunner(content, "tflite-runtime")


def test_a_missing_runtime_is_named_with_its_remedy(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert available_runtimes() == ()
    with pytest.raises(ExportError, match="pip install ai-edge-litert"):
        TfliteRunner(content)
