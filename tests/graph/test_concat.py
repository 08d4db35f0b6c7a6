"""What models join, along any dimension but the first, as torch and onnxruntime do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_onnx import lower as lower_onnx
from fedkit.graph.from_torch import lower
from fedkit.graph.interpret import evaluate
from fedkit.graph.ops.concat import Along
from fedkit.graph.verify import verify
from tests.calls import Calls

SHAPES: dict[int, tuple[int, ...]] = {2: (5,), 3: (4, 7), 4: (3, 1, 5)}
CASES = [(rank, axis) for rank in SHAPES for axis in range(1 - rank, rank) if axis]


def inputs(shape: Sequence[int]) -> Any:
    return np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)


@pytest.mark.parametrize(("rank", "axis"), CASES)
def test_a_concat_of_torch(rank: int, axis: int) -> None:
    shape = SHAPES[rank]
    model = nn.Sequential(
        nn.ReLU(), Calls(lambda x: torch.cat([x, x.flip(-1), x], axis)), nn.Flatten()
    )
    graph, x = lower(model, shape), inputs(shape)
    wanted = model(torch.from_numpy(x)).numpy()
    found = evaluate(graph, ir.to_graph_layout(x)).reshape(wanted.shape)
    np.testing.assert_array_equal(found, wanted)
    kinds = {op.kind for op in graph.ops}
    assert ("concat" if axis % rank == 1 else "concat_along") in kinds


def a_file(shape: Sequence[int], axis: int, parts: int = 2) -> bytes:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Concat", ["x", "r"][:parts], ["c"], axis=axis),
        helper.make_node("Flatten", ["c"], ["y"]),
    ]
    ports = [("x", (1, *shape)), ("y", (1, None))]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ports)
    made = helper.make_graph(nodes[parts == 1 :], "joined", [x], [y])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(("rank", "axis"), CASES)
def test_a_concat_of_onnx(rank: int, axis: int) -> None:
    content, x = a_file(SHAPES[rank], axis), inputs(SHAPES[rank])
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    wanted = np.concatenate([session.run(None, {"x": one[None]})[0] for one in x])
    found = evaluate(lower_onnx(content), ir.to_graph_layout(x)).reshape(wanted.shape)
    np.testing.assert_array_equal(found, wanted)


def test_one_part_along_rows_is_that_part() -> None:
    graph = lower_onnx(a_file((3, 2, 5), 2, parts=1))
    assert [op.kind for op in graph.ops] == ["flatten_nchw"]


@pytest.mark.parametrize("axis", [0, -4])
def test_examples_are_not_joined(axis: int) -> None:
    with pytest.raises(ExportError, match="that of the examples; each stays by itself"):
        lower_onnx(a_file((3, 2, 5), axis))


BAD: dict[str, tuple[ir.Shape, ir.Shape, str]] = {
    "other columns": ((1, 2, 4, 3), (1, 6, 5, 3), r"needs operands of shape \[\(1, 2, 5, 3\)\]"),
    "other channels": ((1, 2, 5, 4), (1, 6, 5, 3), r"needs operands of shape \[\(1, 2, 5, 3\)\]"),
    "features": ((1, 5), (1, 6, 5, 3), "needs operands of shape"),
    "a sum of others": ((1, 2, 5, 3), (1, 7, 5, 3), r"but gives \(1, 6, 5, 3\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_parts_that_do_not_fit_break_a_rule(name: str) -> None:
    part, whole, reason = BAD[name]
    shapes = {"x": (1, 4, 5, 3), "p": part, "y": whole}
    tensors = {each: ir.Tensor(each, shape) for each, shape in shapes.items()}
    join = ir.Op("concat_along", ("x", "p"), ("y",), attributes=Along("rows"))
    with pytest.raises(ExportError, match=reason):
        verify(ir.Graph(tensors, (join,), ("x", "p"), ("y",)))
