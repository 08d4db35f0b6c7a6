"""The file says what the graph says: each op, in float and in int8, in every runtime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import flatbuffers
import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from edge import passes
from edge.export import int8_graph
from edge.targets.tflite import emitter as tflite
from edge.targets.tflite.runner import TfliteRunner, available_runtimes
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_torch import lower
from fedkit.graph.interpret import evaluate
from tests.edge.models import MODELS, Flat, Images, Residual, images


@pytest.mark.parametrize("name", MODELS)
def test_op_in_float(name: str) -> None:
    model, inputs = Flat(MODELS[name]()).eval(), images(3, 8, 10)
    expected = model(torch.from_numpy(inputs)).detach().numpy()
    content = tflite.emit(passes.optimise(lower(model, inputs.shape[1:])))
    for runtime in available_runtimes():
        found = TfliteRunner(content, runtime).predict(inputs)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def dequantised(graph: ir.Graph) -> ir.Graph:
    """Return the float graph with the values that the integers stand for."""
    tensors = {}
    for name, tensor in graph.tensors.items():
        data = tensor.data
        if data is not None and tensor.quantization is not None:
            shape = [1] * data.ndim
            shape[tensor.quantization.axis or 0] = -1
            data = (data * np.reshape(tensor.quantization.scale, shape)).astype(np.float32)
        tensors[name] = ir.Tensor(name, tensor.shape, "float32", data)
    return replace(graph, tensors=tensors)


def errors_in_int8(model: nn.Module, inputs: Images) -> Iterator[NDArray[np.float32]]:
    """Yield, for each runtime, its int8 output less the exact one, in steps of the output."""
    graph = int8_graph(Flat(model).eval(), inputs)
    x, y = (graph.tensors[name] for name in (*graph.inputs, *graph.outputs))
    for runtime in available_runtimes():
        runner = TfliteRunner(tflite.emit(graph), runtime)
        integers = runner.quantize(inputs)
        seen = (integers.astype(np.float32) - x.zero_point) * np.float32(x.scale)
        expected = evaluate(dequantised(graph), ir.to_graph_layout(seen))
        exact = np.clip(expected / y.scale + y.zero_point, -128, 127)
        yield (runner.predict_int8(integers) - exact).astype(np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_op_in_int8(name: str) -> None:
    for errors in errors_in_int8(MODELS[name](), images(3, 8, 10)):
        is_deep = name in ("residual", "concat of features")  # errors of layers add up
        assert np.abs(errors).max() <= (1.6 if is_deep else 1.01)


def test_no_runtime_shifts_the_mean() -> None:
    model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    for errors in errors_in_int8(model, images(16, 6, 6)):
        assert abs(errors.mean()) < 0.1


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
@settings(max_examples=4, deadline=None)
@given(size=st.integers(5, 9), kernel=st.integers(1, 5))
def test_any_padding_in_float(padding: int, stride: int, size: int, kernel: int) -> None:
    model = Flat(nn.Conv2d(2, 3, kernel, stride, padding)).eval()
    inputs = images(2, size, size, n=2)
    expected = model(torch.from_numpy(inputs)).detach().numpy()
    found = TfliteRunner(tflite.emit(lower(model, inputs.shape[1:]))).predict(inputs)
    assert np.allclose(found, expected, atol=1e-5)


def operators(content: bytes) -> list[str]:
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if name.isupper()}
    codes = [names[code.builtinCode] for code in model.operatorCodes]
    return [codes[operator.opcodeIndex] for operator in model.subgraphs[0].operators]


@pytest.mark.parametrize(
    ("height", "stride", "expected"),
    [(7, 1, ["CONV_2D"]), (7, 2, ["CONV_2D"]), (8, 2, ["PAD", "CONV_2D"])],
)
def test_a_pad_is_written_only_where_same_would_be_wrong(
    height: int, stride: int, expected: list[str]
) -> None:
    conv = nn.Conv2d(1, 2, 3, stride, 1)
    content = tflite.emit(lower(Flat(conv), (1, height, height)))
    assert operators(content)[: len(expected)] == expected


def test_a_transposition_is_written_only_where_weights_cannot_absorb_it() -> None:
    flat, classified = nn.Flatten(), nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    emitted = [tflite.emit(passes.optimise(lower(m, (3, 2, 2)))) for m in (flat, classified)]
    assert operators(emitted[0]) == ["TRANSPOSE", "RESHAPE"]
    assert operators(emitted[1]) == ["RESHAPE", "FULLY_CONNECTED"]


def test_padding_that_average_pooling_leaves_out_and_same_cannot_say_is_refused() -> None:
    model = Flat(nn.AvgPool2d(3, 2, 1, count_include_pad=False))
    with pytest.raises(ExportError, match="set count_include_pad=True"):
        tflite.emit(lower(model, (1, 8, 8)))


def test_a_norm_has_no_tflite_form() -> None:
    with pytest.raises(ExportError, match="op affine of module 'body'"):
        tflite.emit(lower(Flat(nn.BatchNorm2d(1)), (1, 4, 4)))


def test_the_same_graph_gives_the_same_bytes() -> None:
    graph = int8_graph(Residual(), images(3, 8, 8))
    assert tflite.emit(graph) == tflite.emit(graph)
    assert tflite.emit(graph)[4:8] == b"TFL3"


def test_constants_lie_on_16_bytes() -> None:
    content = tflite.emit(int8_graph(Residual(), images(3, 8, 8)))
    model = schema.Model.GetRootAs(content, 0)
    addresses = [_address(model.Buffers(i)) for i in range(1, model.BuffersLength())]
    assert len(addresses) >= 4
    assert {address % 16 for address in addresses} == {0}


def _address(buffer: schema.Buffer) -> int:
    table = buffer._tab
    field = flatbuffers.number_types.UOffsetTFlags.py_type(table.Offset(4))
    return int(table.Vector(field))
