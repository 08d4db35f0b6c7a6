"""Chains of views, transposes and slices become the ops that put elements where torch puts them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_onnx import lower as lower_onnx
from fedkit.graph.from_torch import lower, read
from fedkit.graph.interpret import evaluate
from fedkit.graph.ops.transpose import Order
from fedkit.graph.places import Places
from fedkit.graph.verify import verify
from tests.calls import Calls
from tests.sets import slow_but

SHAPE = (4, 5, 6)
Function = Callable[[Tensor], Tensor]


def arranging(function: Function) -> nn.Module:
    return nn.Sequential(nn.ReLU(), Calls(function), nn.Sigmoid(), nn.Flatten())


def kinds_of(function: Function, shape: Sequence[int] = SHAPE) -> list[str]:
    """Return what a function becomes between a ReLU and a sigmoid; assert torch's numbers."""
    model = arranging(function)
    x = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    graph = lower(model, shape)
    wanted = model(torch.from_numpy(x)).numpy()
    found = evaluate(graph, ir.to_graph_layout(x)).reshape(wanted.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    kinds = [op.kind for op in graph.ops]
    return kinds[1 : kinds.index("sigmoid")]


def shuffled(x: Tensor) -> Tensor:
    """As ShuffleNet of torchvision has it."""
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


CHAINS: dict[str, tuple[Function, list[str]]] = {
    "shuffle": (shuffled, ["take"]),
    "shuffled twice": (lambda x: shuffled(shuffled(x)), []),
    "half of a shuffle": (lambda x: x.view(-1, 2, 2, 5, 6)[:, :, 1], ["take"]),
    "height and width": (lambda x: x.transpose(2, 3), ["transpose"]),
    "as matrices": (lambda x: x.mT.relu().mT, ["transpose", "relu", "transpose"]),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), ["transpose"]),
    "there and back": (lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), []),
    "moved and back": (lambda x: x.movedim(1, -1).movedim((-1,), (1,)), []),
    "a series of pixels": (lambda x: x.flatten(2), ["reshape"]),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2), ["transpose", "reshape"]),
    "tokens and back": (
        lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(-1, 4, 5, 6),
        [],
    ),
    "other channels": (lambda x: x.reshape(-1, 8, 5, 3), ["reshape", "transpose", "reshape"]),
    "unflattened": (lambda x: x.flatten(1).relu().view(-1, 4, 5, 6), ["flatten_nchw", "relu"]),
    "one channel": (lambda x: x[:, 2], ["take", "transpose", "reshape"]),
    "one channel of all": (lambda x: x.select(1, -1).unsqueeze(1), ["take"]),
    "a corner, turned": (lambda x: x[:, 1:, :2, 3:].transpose(1, 3), ["take", "take", "take"]),
    "repeated": (lambda x: x[:, :1].expand(-1, 7, -1, -1), ["take", "take"]),
    "a dimension more and less": (lambda x: x.unsqueeze(-1).squeeze(-1), []),
    "pixels first, then flat": (lambda x: x.permute(0, 2, 3, 1).flatten(1), ["reshape"]),
    "shuffled and flat": (lambda x: shuffled(x).flatten(1), ["take", "flatten_nchw"]),
    "flat by two views": (lambda x: x.view(-1, 4, 30).flatten(1), ["flatten_nchw"]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_torch(name: str) -> None:
    function, kinds = CHAINS[name]
    assert kinds_of(function)[: len(kinds)] == kinds


@pytest.mark.parametrize(
    ("function", "shape", "kinds"),
    [
        (lambda x: x.transpose(1, 2), (4, 9), ["transpose"]),
        (lambda x: x.unflatten(2, (3, 3)), (4, 9), ["reshape"]),
        (lambda x: x.unsqueeze(2).squeeze(2), (4, 9), []),
        (lambda x: x.view(-1, 2, 2, 9).transpose(1, 2).reshape(-1, 4, 9), (4, 9), ["take"]),
        (lambda x: x.unflatten(1, (2, 3, 4)), (24,), ["reshape", "transpose"]),
        (lambda x: x.view(-1, 4, 6).transpose(1, 2).flatten(1), (24,), ["take"]),
        (lambda x: x[:, :, 0], (4, 1, 7), []),
    ],
)
def test_chains_of_series_features_and_low_maps(
    function: Function, shape: tuple[int, ...], kinds: list[str]
) -> None:
    assert kinds_of(function, shape) == kinds


def random_chain(choose: random.Random, shape: tuple[int, ...]) -> tuple[Function, int]:
    """Return up to four views and transposes, and how many dimensions they give."""
    steps: list[tuple[str, tuple[int, ...]]] = []
    for _ in range(choose.randint(1, 4)):
        if choose.random() < 0.5:
            order = choose.sample(range(1, len(shape) + 1), len(shape))
            steps.append(("permute", tuple(order)))
            shape = tuple(shape[axis - 1] for axis in order)
        else:
            left, sizes = math.prod(shape), list[int]()
            for _ in range(choose.randint(0, 3)):
                sizes.append(choose.choice([n for n in range(1, left + 1) if left % n == 0]))
                left //= sizes[-1]
            shape = tuple(choose.sample([*sizes, left], len(sizes) + 1))
            steps.append(("reshape", shape))

    def chain(x: Tensor) -> Tensor:
        for what, numbers in steps:
            x = x.permute(0, *numbers) if what == "permute" else x.reshape(len(x), *numbers)
        return x

    return chain, 1 + len(shape)


@pytest.mark.parametrize("seed", slow_but(range(2), range(12)))
def test_random_chains_are_right_or_refused(seed: int) -> None:
    choose, taken, refused = random.Random(seed), 0, 0
    while taken + refused < 12:
        shape = tuple(choose.choice([1, 2, 3, 4, 6]) for _ in range(choose.randint(1, 3)))
        chain, rank = random_chain(choose, shape)
        if rank > 4:
            continue
        try:
            kinds_of(chain, shape)
            taken += 1
        except ExportError as error:
            assert "a chain of moves whose result is neither" in str(error)
            refused += 1
    assert taken > refused


REFUSED: dict[str, tuple[Function, str]] = {
    "five parts": (
        lambda x: x.view(-1, 2, 2, 5, 2, 3).permute(0, 1, 4, 2, 3, 5).reshape(-1, 4, 5, 6),
        "a chain of moves whose result is neither a list of places along each axis nor a swap",
    ),
    "five dimensions": (lambda x: x.view(-1, 2, 2, 5, 6).sigmoid(), "only .* exist here"),
    "what follows a refusal": (
        lambda x: x.view(-1, 2, 2, 5, 6).sigmoid().transpose(1, 2).flatten(1),
        r"^1 op\(s\) of the model .*\n.*only .* exist here",
    ),
    "examples": (lambda x: x.transpose(0, 1), "dimension 0, which holds the examples"),
    "examples last": (lambda x: x.permute(1, 2, 3, 0), "dimension 0, which holds the examples"),
    "one example": (lambda x: x[0], "examples"),
    "in place on what a view shows later": (
        lambda x: (lambda view: x.relu_() + view.mT)(x.mT),
        "in-place op on a tensor of which a view is read later",
    ),
    "in place on a view": (
        lambda x: F.relu_(x.transpose(2, 3)).mT + x,
        "shares memory with .* set inplace=False",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_chains_are_refused(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(ExportError, match=reason):
        lower(nn.Sequential(nn.Sigmoid(), Calls(function), nn.Sigmoid(), nn.Flatten()), SHAPE)


def test_training_plans_read_chains_with_two_examples() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), Calls(shuffled), nn.Flatten())
    graph = read(model, torch.zeros(2, *SHAPE), drops=False).graph
    assert graph is not None
    (places,) = [op.attributes for op in graph.ops if op.kind == "take"]
    assert places == Places(channels=(0, 2, 1, 3))
    reading = read(arranging(lambda x: x.transpose(0, 1)), torch.zeros(4, *SHAPE), drops=False)
    assert reading.graph is None and "which holds the examples" in reading.reasons[0]


@pytest.mark.parametrize("axes", [(1, 2, 2), (0, 1, 2), (1, 2, 4)])
def test_axes_that_are_no_order_break_a_rule(axes: Any) -> None:
    tensors = {name: ir.Tensor(name, (1, 2, 2, 2)) for name in "xy"}
    op = ir.Op("transpose", ("x",), ("y",), attributes=Order(axes))
    with pytest.raises(ExportError, match="must have the axes 1, 2 and 3 in some order"):
        verify(ir.Graph(tensors, (op,), ("x",), ("y",)))


# ONNX


def a_file(shape: Sequence[int], *nodes: onnx.NodeProto, **constants: Any) -> bytes:
    """Return a file of a ReLU "x", of nodes up to "y", and of a Flatten; its batch is open."""
    made = helper.make_graph(
        [
            helper.make_node("Relu", ["input"], ["x"]),
            *nodes,
            helper.make_node("Sigmoid", ["y"], ["last"]),
            helper.make_node("Flatten", ["last"], ["output"]),
        ],
        "arranged",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ("n", *shape))],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ("n", None))],
        [numpy_helper.from_array(each, name) for name, each in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return bytes(model.SerializeToString())


def node(operator: str, operands: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, operands.split(), [output], **attributes)


def integers(*values: int) -> Any:
    return np.array(values, np.int64)


FILES: dict[str, tuple[Callable[[], bytes], list[str]]] = {
    "shuffle": (
        lambda: a_file(
            SHAPE,
            node("Reshape", "x in", "five"),
            node("Transpose", "five", "turned", perm=[0, 2, 1, 3, 4]),
            node("Reshape", "turned out"),
            **{"in": integers(0, 2, 2, 5, 6), "out": integers(-1, 4, 5, 6)},
        ),
        ["take"],
    ),
    "channels last, as Keras has them": (
        lambda: a_file(
            SHAPE,
            node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
            node("Conv", "t w", "c"),
            node("Transpose", "c", "y", perm=[0, 2, 3, 1]),
            w=np.random.default_rng(0).standard_normal((3, 6, 1, 1)).astype(np.float32),
        ),
        ["transpose", "conv2d", "transpose"],
    ),
    "a rank between": (
        lambda: a_file(SHAPE, node("Reshape", "x s"), s=integers(0, 4, 30)),
        ["reshape"],
    ),
    "one channel": (
        lambda: a_file(SHAPE, node("Gather", "x i", axis=1), i=np.array(2)),
        ["take", "transpose", "reshape"],
    ),
    "a table": (
        lambda: a_file((4,), node("Gather", "x i", axis=1), i=integers(0, 1, 2, 3).reshape(2, 2)),
        ["reshape", "transpose"],
    ),
    "squeezed and back": (
        lambda: a_file(
            (4, 1, 6),
            node("Squeeze", "x two", "q"),
            node("Transpose", "q", "t", perm=[0, 2, 1]),
            node("Unsqueeze", "t two"),
            two=integers(2),
        ),
        ["transpose"],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_chains_of_onnx(name: str) -> None:
    make, kinds = FILES[name]
    content = make()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    shape = [int(size) for size in session.get_inputs()[0].shape[1:]]
    x = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    (wanted,) = session.run(None, {"input": x})
    graph = lower_onnx(content)
    found = evaluate(graph, ir.to_graph_layout(x)).reshape(wanted.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    of_chain = [op.kind for op in graph.ops]
    assert of_chain[1 : of_chain.index("sigmoid")] == kinds


BAD_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "examples": (
        lambda: a_file((1, 5, 6), node("Transpose", "x", perm=[1, 0, 2, 3])),
        "dimension 0, which holds the examples",
    ),
    "examples by default": (
        lambda: a_file((3,), node("Transpose", "x")),
        "dimension 0, which holds the examples",
    ),
    "five dimensions": (
        lambda: a_file(
            SHAPE, node("Reshape", "x s", "r"), node("Exp", "r"), s=integers(0, 2, 2, 5, 6)
        ),
        "only .* exist here",
    ),
    "an axis twice": (
        lambda: a_file(SHAPE, node("Transpose", "x", perm=[0, 1, 1, 2])),
        "Transpose is not valid|Transpose fails",
    ),
    "axes beyond": (
        lambda: a_file(SHAPE, node("Transpose", "x", perm=[0, 1, 2, 7])),
        "Transpose is not valid|Transpose fails",
    ),
    "axes too few": (
        lambda: a_file(SHAPE, node("Transpose", "x", perm=[0, 1])),
        "Transpose is not valid|Transpose fails",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_other_chains_of_onnx_are_refused(name: str) -> None:
    make, reason = BAD_FILES[name]
    with pytest.raises(ExportError, match=reason):
        lower_onnx(make())
