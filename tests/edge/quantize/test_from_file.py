"""Quantised ONNX files are read as the integers that they are, or as floats with a sentence."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edge.api import export_model
from edge.define.interpret_int8 import evaluate_int8
from edge.export import int8_graph, load_onnx
from edge.quantize.truth import ExportWarning
from edge.targets.onnx import emitter
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from tests.edge.models import MODELS, Flat, images
from tests.graph.exported import exported
from tests.graph.onnx_models import distorted, runtime
from tests.sets import slow_but

SHAPE = (3, 8, 10)


def codes(graph: ir.Graph, n: int = 40) -> Any:
    shape = graph.tensors[graph.inputs[0]].shape
    return np.random.default_rng(0).integers(-128, 128, (n, *shape[1:])).astype(np.int8)


def our_file(name: str) -> tuple[ir.Graph, bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExportWarning)
        graph = int8_graph(Flat(MODELS[name]()).eval(), images(*SHAPE))
    return graph, emitter.emit(graph)


# The others' files quantise nothing (bytes are moved alone), or transpose them.
KEPT = [name for name in MODELS if not name.startswith(("max-pooling", "zero padding", "flatten"))]


@pytest.mark.parametrize("name", slow_but(("relu6", "branches"), KEPT))
@pytest.mark.filterwarnings("error")
def test_our_own_files_are_the_integers_that_they_were_made_of(name: str) -> None:
    graph, content = our_file(name)
    read = load_onnx(content)
    for policy in ("half_up", "onnxruntime"):
        expected = evaluate_int8(graph, codes(graph), policy)
        np.testing.assert_array_equal(evaluate_int8(read, codes(graph), policy), expected)


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU6(),
        nn.Conv2d(8, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    ).eval()


def quantised(folder: Path, activations: str, weights: str, per_channel: bool) -> Path:
    """Return a file that onnxruntime's own quantisation made."""
    from onnxruntime import quantization as ort

    class Calibration(ort.CalibrationDataReader):  # type: ignore[misc]
        left = iter(images(*SHAPE))

        def get_next(self) -> Any:
            one = next(self.left, None)
            return None if one is None else {"x": one[None]}

    given, made = folder / "float.onnx", folder / "int8.onnx"
    given.write_bytes(exported(net(), SHAPE))
    ort.quantize_static(
        given,
        made,
        Calibration(),
        quant_format=ort.QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=ort.QuantType[activations],
        weight_type=ort.QuantType[weights],
    )
    return made


OF_OTHERS = [("QUInt8", True), ("QInt8", True), ("QUInt8", False), ("QInt8", False)]


@pytest.mark.parametrize(("activations", "per_channel"), slow_but(OF_OTHERS[:1], OF_OTHERS))
def test_files_of_onnxruntimes_quantisation_are_kept(
    activations: str, per_channel: bool, tmp_path: Path
) -> None:
    path = quantised(tmp_path, activations, "QInt8", per_channel)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExportWarning)
        graph = load_onnx(path)
    x, y = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    of_file = {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    assert x.scale in {each.item() for each in of_file.values() if each.size == 1}
    real = (x.scale * (codes(graph).astype(np.float64) - x.zero_point)).astype(np.float32)
    wanted = runtime(path.read_bytes(), np.moveaxis(real, 3, 1)) / np.float32(y.scale)
    found = evaluate_int8(graph, codes(graph), "onnxruntime") - np.float32(y.zero_point)
    assert np.abs(found - wanted).max() <= 1.001
    assert (np.abs(found - wanted) > 0.5).mean() < 0.02
    made = export_model(path, images(*SHAPE), tmp_path / "m.tflite")
    assert made.target == "tflite"


def test_weights_with_a_zero_point_are_read_as_floats(tmp_path: Path) -> None:
    path = quantised(tmp_path, "QUInt8", "QUInt8", per_channel=False)
    with pytest.warns(ExportWarning, match="weights beyond .* It is read as its float model"):
        graph = load_onnx(path)
    assert graph.tensors[graph.inputs[0]].dtype == "float32"


def changed(change: Any) -> bytes:
    model = onnx.load_from_string(our_file("relu6")[1])
    change(model.graph)
    return model.SerializeToString()


def scale_twice(graph: onnx.GraphProto) -> None:
    """Let the first result of a Conv be quantised once more, by another scale."""
    (conv,) = (node for node in graph.node if node.op_type == "Conv")
    (first,) = (node for node in graph.node if conv.output[0] in node.input)
    graph.initializer.append(numpy_helper.from_array(np.array(9, np.float32), "nine"))
    graph.node.extend(
        [
            helper.make_node("QuantizeLinear", [conv.output[0], "nine", first.input[2]], ["q9"]),
            helper.make_node("DequantizeLinear", ["q9", "nine", first.input[2]], ["d9"]),
        ]
    )


def scale_of_nothing(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and not tensor.dims:
            tensor.CopyFrom(numpy_helper.from_array(np.array(0, np.float32), tensor.name))


def test_what_cannot_be_kept_says_why() -> None:
    with pytest.warns(ExportWarning, match="integers are not kept: .* is not quantised"):
        assert load_onnx(changed(scale_twice)).tensors["x"].dtype == "float32"
    with pytest.raises(ExportError, match=r"a scale of 0\.0; it must be positive"):
        load_onnx(changed(scale_of_nothing))


def check_mutants(seeds: range) -> None:
    originals, read = [our_file(name)[1] for name in ("relu6", "relu alone")], 0
    for seed in seeds:
        choose = random.Random(seed)
        content = distorted(choose.choice(originals), choose)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read += bool(load_onnx(content).ops)  # which compares with onnxruntime
        except ExportError as error:
            assert str(error)
    assert 0 < read < len(seeds)


def test_distorted_quantised_files_are_refused_or_sound() -> None:
    check_mutants(range(40))


@pytest.mark.slow
def test_many_distorted_quantised_files_are_refused_or_sound() -> None:
    check_mutants(range(1000, 3000))
