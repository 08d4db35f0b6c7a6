"""The verifier names the rule that a graph breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.verify import verify


@pytest.fixture
def graph() -> ir.Graph:
    """Convolution, then addition of its result to itself, then a mean."""
    weight, bias = np.ones((2, 3, 3, 1), np.float32), np.zeros(2, np.float32)
    tensors = [
        ir.Tensor("x", (1, 5, 5, 1)),
        ir.Tensor("w", weight.shape, "float32", weight),
        ir.Tensor("b", bias.shape, "float32", bias),
        ir.Tensor("c", (1, 3, 3, 2)),
        ir.Tensor("s", (1, 3, 3, 2)),
        ir.Tensor("y", (1, 2)),
    ]
    ops = (
        ir.Op("conv2d", ("x", "w", "b"), ("c",), ir.Window((3, 3)), source="stem"),
        ir.Op("add", ("c", "c"), ("s",)),
        ir.Op("mean", ("s",), ("y",)),
    )
    return ir.Graph({tensor.name: tensor for tensor in tensors}, ops, ("x",), ("y",))


def with_tensor(graph: ir.Graph, name: str, **changes: object) -> ir.Graph:
    changed = replace(graph.tensors[name], **changes)  # type: ignore[arg-type]
    return replace(graph, tensors={**graph.tensors, name: changed})


def with_op(graph: ir.Graph, index: int, **changes: object) -> ir.Graph:
    ops = list(graph.ops)
    ops[index] = replace(ops[index], **changes)  # type: ignore[arg-type]
    return replace(graph, ops=tuple(ops))


def windowed(graph: ir.Graph, kind: ir.Kind, window: ir.Window, out: ir.Shape) -> ir.Graph:
    """Return the graph with nothing but one op of a window."""
    op = ir.Op(kind, ("x",), ("c",), window)
    return replace(with_tensor(graph, "c", shape=out), ops=(op,), outputs=("c",))


def quantised(graph: ir.Graph) -> ir.Graph:
    tensors = {}
    for name, tensor in graph.tensors.items():
        dtype: ir.DType = "int32" if name == "b" else "int8"
        count = 2 if name in "wb" else 1
        q = ir.Quantization((0.5,) * count, (0,) * count, 0 if name in "wb" else None)
        if name == "b":
            q = replace(q, scale=(0.25, 0.25))
        data = None if tensor.data is None else tensor.data.astype(dtype)
        tensors[name] = ir.Tensor(name, tensor.shape, dtype, data, q)
    return replace(graph, tensors=tensors)


BROKEN: dict[str, Callable[[ir.Graph], ir.Graph]] = {
    "does not have": lambda g: with_op(g, 1, inputs=("c", "missing")),
    "does not have such a tensor": lambda g: replace(g, outputs=("missing",)),
    "is of no kind that exists": lambda g: with_op(g, 0, kind="lstm"),
    "before an op writes it": lambda g: replace(g, ops=g.ops[::-1]),
    "written already": lambda g: replace(g, ops=(*g.ops, g.ops[0])),
    "is never written": lambda g: replace(g, ops=g.ops[:-1]),
    r"must read 1 activation\(s\), then 2": lambda g: with_op(g, 0, inputs=("x", "w")),
    "must have a window": lambda g: with_op(g, 0, window=None),
    "cannot apply the activation 'relu'": lambda g: with_op(g, 2, activation="relu"),
    "is declared float32": lambda g: with_tensor(g, "w", shape=(2, 9)),
    "but holds int8": lambda g: with_tensor(g, "b", data=np.zeros(2, np.int8)),
    "activation 'x' has shape": lambda g: with_tensor(g, "x", shape=(2, 5, 5, 1)),
    r"needs operands of shape \[\(2, 3, 3, 3\)": lambda g: with_tensor(g, "x", shape=(1, 5, 5, 3)),
    r"needs \[1, h, w, c\]": lambda g: with_tensor(g, "x", shape=(1, 25)),
    r"declared \(1, 4, 3, 2\) but gives": lambda g: with_tensor(g, "c", shape=(1, 4, 3, 2)),
    "has more than 67108864 elements": lambda g: windowed(
        g, "pad", ir.Window(padding=(2**25, 0, 0, 0)), (1, 2**25 + 5, 5, 1)
    ),
    "must have at most 65536 places": lambda g: windowed(
        g, "max_pool2d", ir.Window((2**17, 1), padding=(2**17, 0, 0, 0)), (1, 6, 5, 1)
    ),
    "holds NaN or infinity": lambda g: with_tensor(g, "b", data=np.array([0, np.inf], "f4")),
    "if and only if all others are": lambda g: with_tensor(quantised(g), "x", quantization=None),
    "does not fit its quantisation": lambda g: with_tensor(
        quantised(g), "x", dtype="float32", data=None
    ),
    r"needs 2 scale\(s\) but has 1": lambda g: with_tensor(
        quantised(g), "w", quantization=ir.Quantization((0.5,), (0,), 0)
    ),
    "not a positive number": lambda g: with_tensor(
        quantised(g), "x", quantization=ir.Quantization((0.0,), (0,))
    ),
    "a zero point outside int8": lambda g: with_tensor(
        quantised(g), "x", quantization=ir.Quantization((0.5,), (128,))
    ),
    "must have symmetric weights": lambda g: with_tensor(
        quantised(g), "w", quantization=ir.Quantization((0.5, 0.5), (0, 1), 0)
    ),
    "bias scale equal to": lambda g: with_tensor(
        quantised(g), "b", quantization=ir.Quantization((0.5, 0.5), (0, 0), 0)
    ),
    "must keep the scale": lambda g: with_op(
        with_tensor(quantised(g), "s", quantization=ir.Quantization((1.0,), (0,))),
        1,
        kind="max_pool2d",
        inputs=("c",),
        window=ir.Window(),
    ),
}


def test_a_sound_graph_passes(graph: ir.Graph) -> None:
    verify(graph)
    verify(quantised(graph))
    assert graph.producer("s") is graph.ops[1]


@pytest.mark.parametrize("rule", BROKEN)
def test_the_first_broken_rule_is_named(graph: ir.Graph, rule: str) -> None:
    with pytest.raises(ExportError, match=rule):
        verify(BROKEN[rule](graph))


def test_rewriting_drops_what_is_no_longer_used(graph: ir.Graph) -> None:
    mean = graph.ops[2]
    rewritten = graph.rewrite(graph.ops[1:], (replace(mean, inputs=("c",)),), ())
    verify(rewritten)
    assert [op.kind for op in rewritten.ops] == ["conv2d", "mean"]
    assert "s" not in rewritten.tensors


def test_an_op_read_twice_or_by_the_caller_has_no_sole_consumer(graph: ir.Graph) -> None:
    assert graph.sole_consumer("s") is graph.ops[2]
    assert graph.sole_consumer("y") is None
    assert replace(graph, outputs=("s",)).sole_consumer("s") is None


def test_an_activation_has_no_data_and_a_float_no_scale(graph: ir.Graph) -> None:
    with pytest.raises(ExportError, match="only constants have data"):
        graph.constant("x")
    with pytest.raises(ExportError, match="not quantised as a whole"):
        _ = graph.tensors["x"].scale


@pytest.mark.parametrize(
    ("size", "stride", "kernel", "expected"),
    [(8, 1, 3, (1, 1)), (8, 2, 3, (0, 1)), (7, 2, 3, (1, 1)), (8, 2, 1, (0, 0)), (8, 1, 2, (0, 1))],
)
def test_same_padding_puts_the_odd_row_last(
    size: int, stride: int, kernel: int, expected: tuple[int, int]
) -> None:
    window = ir.Window((kernel, kernel), (stride, stride))
    out = -(-size // stride)
    assert ir.same_padding((size, size), (out, out), window) == (*expected, *expected)


def test_images_change_layout_and_features_do_not() -> None:
    images, features = np.arange(24).reshape(1, 2, 3, 4), np.arange(4).reshape(2, 2)
    assert ir.to_graph_layout(images)[0, 1, 2].tolist() == images[0, :, 1, 2].tolist()
    assert ir.to_graph_layout(features) is features
