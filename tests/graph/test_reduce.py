"""Means, sums and maxima over any dimensions but the first, as torch and onnxruntime do it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_onnx import lower as lower_onnx
from fedkit.graph.from_torch import lower
from fedkit.graph.interpret import evaluate
from tests.calls import Calls
from tests.sets import slow_but

SHAPES: dict[int, tuple[int, ...]] = {2: (7,), 3: (4, 5), 4: (4, 3, 5)}
DIMS = [
    (rank, dims)
    for rank in SHAPES
    for count in range(1, rank)
    for dims in itertools.combinations(range(1, rank), count)
]
QUICK = [(2, (1,)), (3, (1,)), (4, (1,)), (4, (2,)), (4, (1, 3)), (4, (1, 2, 3))]
TORCH: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "mean": lambda x, dims, keeps: x.mean(dims, keepdim=keeps),
    "sum": lambda x, dims, keeps: x.sum(dims, keepdim=keeps),
    "amax": lambda x, dims, keeps: x.amax(dims, keepdim=keeps),
}


def inputs(shape: Sequence[int]) -> Any:
    return np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)


def kinds_of(function: Callable[[Tensor], Tensor], shape: Sequence[int]) -> list[str]:
    """Return what a function becomes; assert torch's numbers."""
    model, x = nn.Sequential(nn.ReLU(), Calls(function)), inputs(shape)
    graph = lower(model, tuple(shape))
    wanted = model(torch.from_numpy(x)).numpy()
    found = evaluate(graph, ir.to_graph_layout(x)).reshape(wanted.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    return [op.kind for op in graph.ops][1:]


def flat(
    reduce: Callable[[Tensor, tuple[int, ...], bool], Tensor], dims: tuple[int, ...], keeps: bool
) -> Callable[[Tensor], Tensor]:
    return lambda x: reduce(x, dims, keeps).reshape(len(x), -1)


@pytest.mark.parametrize("what", TORCH)
@pytest.mark.parametrize(("rank", "dims"), slow_but(QUICK, DIMS))
def test_reductions_of_torch(rank: int, dims: tuple[int, ...], what: str) -> None:
    reduce, shape = TORCH[what], SHAPES[rank]
    turned = tuple(dim - rank for dim in dims)
    for named, keeps in ((dims, True), (turned, True), (dims, False)):
        assert kinds_of(flat(reduce, named, keeps), shape)


WAYS: dict[str, tuple[Callable[[Tensor], Tensor], list[str]]] = {
    "a mean over height": (lambda x: x.mean(2).flatten(1), ["avg_pool2d", "flatten_nchw"]),
    "a pool over width": (
        lambda x: F.adaptive_avg_pool2d(x, (None, 1)).flatten(1),
        ["avg_pool2d", "flatten_nchw"],
    ),
    "the largest of a third": (
        lambda x: F.adaptive_max_pool2d(x, (3, 1)).flatten(1),
        ["max_pool2d", "flatten_nchw"],
    ),
    "of a map of one": (lambda x: x[:, :, :1, :1].sum((2, 3)), ["take", "take", "reshape"]),
    "a maximum with its places": (lambda x: x.max(3).values.flatten(1), ["max_pool2d"]),
    "an attention of a map": (
        lambda x: torch.cat([x.mean(1, True), x.amax(1, True)], 1).flatten(1),
        ["transpose", "reshape", "mean"],
    ),
    "mean of all": (lambda x: x.mean((1, 2, 3)).unsqueeze(1), ["transpose", "reshape", "mean"]),
}


@pytest.mark.parametrize("name", WAYS)
def test_ways_that_models_write_them(name: str) -> None:
    function, kinds = WAYS[name]
    assert kinds_of(function, (4, 6, 5))[: len(kinds)] == kinds


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "examples": (lambda x: x + x.mean(0, True), "mixes the examples"),
    "examples and more": (lambda x: x + x.sum((0, 2), True), "mixes the examples"),
    "all": (lambda x: x + x.amax(), "mixes the examples"),
    "double": (lambda x: x.mean(2, dtype=torch.float64), "a mean in torch.float64; float32 can be"),
    "the least": (lambda x: x.amin(2).flatten(1), "aten.amin.default is not supported"),
    "what is left has no dimension": (lambda x: x.sum((1, 2, 3)), "only .* exist here"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_reductions_are_refused(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(ExportError, match=reason):
        lower(nn.Sequential(nn.ReLU(), Calls(function), nn.Sigmoid()), (4, 3, 5))


# ONNX


def a_file(
    operator: str, shape: Sequence[int], opset: int = 19, axes: Any = None, **attributes: Any
) -> bytes:
    """Return a file of a reduction and a Flatten, whose batch is open; axes are an operand."""
    constants = [] if axes is None else [numpy_helper.from_array(axes, "axes")]
    nodes = [
        helper.make_node(operator, ["x", *(each.name for each in constants)], ["r"], **attributes),
        helper.make_node("Flatten", ["r"], ["y"]),
    ]
    ports: list[tuple[str, Sequence[Any]]] = [("x", ("n", *shape)), ("y", ("n", None))]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ports)
    graph = helper.make_graph(nodes, "reduced", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return bytes(model.SerializeToString())


def assert_onnxruntimes(content: bytes, shape: Sequence[int]) -> list[str]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    x = inputs(shape)
    (wanted,) = session.run(None, {"x": x})
    graph = lower_onnx(content)
    found = evaluate(graph, ir.to_graph_layout(x)).reshape(wanted.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    return [op.kind for op in graph.ops]


@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceSum", "ReduceMax"])
@pytest.mark.parametrize(("rank", "dims"), slow_but(QUICK, DIMS))
def test_reductions_of_onnx(rank: int, dims: tuple[int, ...], operator: str) -> None:
    shape, turned = SHAPES[rank], [dim - rank for dim in dims]
    assert_onnxruntimes(a_file(operator, shape, axes=np.array(turned)), shape)
    if len(dims) < rank - 1:
        content = a_file(operator, shape, axes=np.array(dims), keepdims=0)
        assert_onnxruntimes(content, shape)


@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceSum", "ReduceMax"])
def test_axes_as_an_attribute(operator: str) -> None:
    nodes = [
        helper.make_node(operator, ["x"], ["r"], axes=[-1, 1], keepdims=1),
        helper.make_node("Flatten", ["r"], ["y"]),
    ]
    ports: list[tuple[str, Sequence[Any]]] = [("x", ("n", 4, 3, 5)), ("y", ("n", None))]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ports)
    graph = helper.make_graph(nodes, "reduced", [x], [y])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    assert_onnxruntimes(bytes(made.SerializeToString()), (4, 3, 5))


def test_the_largest_of_a_map_and_a_series() -> None:
    assert assert_onnxruntimes(a_file("GlobalMaxPool", (4, 3, 5)), (4, 3, 5))[0] == "max_pool2d"
    assert assert_onnxruntimes(a_file("GlobalMaxPool", (4, 5)), (4, 5))[0] == "max_pool2d"


def test_no_axes_are_none_or_all() -> None:
    empty = np.array([], np.int64)
    for axes in (empty, None):
        content = a_file("ReduceSum", (4, 3, 5), axes=axes, noop_with_empty_axes=1)
        assert assert_onnxruntimes(content, (4, 3, 5)) == ["flatten_nchw"]
        with pytest.raises(ExportError, match=r"mixes the examples|without the batch"):
            lower_onnx(a_file("ReduceSum", (4, 3, 5), axes=axes))


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "examples": (lambda: a_file("ReduceMax", (3, 2), axes=np.array([0, 1])), "mixes the examples"),
    "beyond": (lambda: a_file("ReduceSum", (3, 2), axes=np.array([5])), "not valid|a sum over"),
    "far below": (lambda: a_file("ReduceMean", (3, 2), axes=np.array([-9])), "not valid|a mean"),
    "the least": (lambda: a_file("ReduceMin", (3, 2), axes=np.array([1])), "ReduceMin is not"),
    "an L1 norm": (lambda: a_file("ReduceL1", (3, 2), axes=np.array([1])), "ReduceL1 is not"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_reductions_of_onnx_are_refused(name: str) -> None:
    make, reason = BAD[name]
    with pytest.raises(ExportError, match=reason):
        lower_onnx(make())
