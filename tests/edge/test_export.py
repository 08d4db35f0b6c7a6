"""A trained model, exported, is as good as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from edge import artifact
from edge.artifact import Artifact
from edge.export import export_c99, export_onnx, export_tflite, load_onnx
from edge.quantize.truth import ExportWarning
from edge.targets.tflite.runner import TfliteRunner, available_runtimes
from fedkit.core.errors import ExportError
from fedkit.nn.zoo import build_model
from tests.graph.exported import exported as onnx_bytes

Floats = NDArray[np.float32]
TorchOutputs = Callable[[nn.Module, Floats], Floats]


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory: pytest.TempPathFactory) -> Artifact:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("export") / "digits.tflite"
    return export_tflite(trained.model, trained.train[:300], path, {"task": "digits", "seed": 0})


def test_the_artifact_says_what_it_is(exported: Artifact) -> None:
    assert artifact.load(exported.path) == exported
    assert exported.target == "tflite"
    assert exported.provenance == {"task": "digits", "seed": 0}
    assert exported.inputs[0].shape == (1, 8, 8, 1)
    assert exported.inputs[0].scale == pytest.approx(1 / 255)
    assert (exported.outputs[0].shape, exported.outputs[0].dtype) == ((1, 10), "int8")


@pytest.mark.parametrize("runtime", available_runtimes())
def test_accuracy_is_kept(  # type: ignore[no-untyped-def]
    exported: Artifact, trained, torch_outputs: TorchOutputs, runtime
) -> None:
    before = accuracy(torch_outputs(trained.model, trained.test), trained.targets)
    after = accuracy(TfliteRunner(exported.path, runtime).predict(trained.test), trained.targets)
    assert before > 0.9
    assert after >= before - 0.01


def test_the_runtimes_agree(exported: Artifact, trained, both_runtimes) -> None:  # type: ignore[no-untyped-def]
    new, old = (TfliteRunner(exported.path, runtime) for runtime in both_runtimes)
    inputs = new.quantize(trained.test)
    one, other = new.predict_int8(inputs).astype(int), old.predict_int8(inputs).astype(int)
    assert np.abs(one - other).max() <= 2
    assert (one.argmax(axis=1) == other.argmax(axis=1)).mean() >= 0.995


def accuracy(logits: Floats, targets: NDArray[np.int64]) -> float:
    return float((logits.argmax(axis=1) == targets).mean())


def test_pruned_channels_cost_no_accuracy(trained, torch_outputs: TorchOutputs) -> None:  # type: ignore[no-untyped-def]
    model = build_model("resnet8", (1, 8, 8), 10)
    model.load_state_dict(trained.model.state_dict())
    model.eval()
    with torch.no_grad():
        model.get_parameter("2.first.0.weight")[:4] = 0
        model.get_parameter("3.second.0.weight")[::2] = 0
    from edge.export import int8_graph
    from edge.targets.tflite import emitter as tflite

    runner = TfliteRunner(tflite.emit(int8_graph(model, trained.train[:200])))
    expected = torch_outputs(model, trained.test)
    found = runner.predict(trained.test)
    assert np.abs(found - expected).max() <= 0.05 * np.abs(expected).max()


def test_an_all_zero_calibration_set_gives_the_logits_of_zero(
    tmp_path: Path, torch_outputs: TorchOutputs
) -> None:
    model = build_model("resnet8", (1, 8, 8), 10).eval()
    zeros = np.zeros((3, 1, 8, 8), np.float32)
    with pytest.warns(ExportWarning, match="one example, 3 times"):
        saved = export_tflite(model, zeros, tmp_path / "zero.tflite", {})
    expected = torch_outputs(model, zeros)
    for runtime in available_runtimes():
        found = TfliteRunner(saved.path, runtime).predict(zeros)
        assert np.abs(found - expected).max() <= saved.outputs[0].scale


def test_an_existing_artifact_is_kept(exported: Artifact, trained) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ExportError, match=r"digits\.tflite exists already.*choose another path"):
        export_tflite(trained.model, trained.train[:2], exported.path, {})
    assert artifact.load(exported.path) == exported


def test_a_model_whose_logits_are_not_finite_is_not_saved(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(ExportError, match="holds NaN or infinity"):
        export_tflite(model, np.eye(2, dtype=np.float32), tmp_path / "nan.tflite", {})
    assert list(tmp_path.iterdir()) == []


def test_an_onnx_file_becomes_each_target(  # type: ignore[no-untyped-def]
    trained, torch_outputs, tmp_path: Path
) -> None:
    path = tmp_path / "digits.onnx"
    path.write_bytes(onnx_bytes(trained.model, (1, 8, 8)))
    graph, calibration = load_onnx(path), trained.train[:200]
    saved = export_tflite(graph, calibration, tmp_path / "digits.tflite", {"source": path.name})
    expected = torch_outputs(trained.model, trained.test)
    found = TfliteRunner(saved.path).predict(trained.test)
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.98
    assert export_c99(graph, calibration, tmp_path / "c", {}).target == "c99"
    assert export_onnx(graph, calibration, tmp_path / "int8.onnx", {}).target == "onnx-qdq"
    assert load_onnx(tmp_path / "int8.onnx").tensors["x"].dtype == "int8"
    with pytest.raises(ExportError, match="of integers already"):
        export_tflite(load_onnx(tmp_path / "int8.onnx"), calibration, tmp_path / "b.tflite", {})
