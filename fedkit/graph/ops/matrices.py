"""Products of matrices that are both activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedkit.graph import ir
from fedkit.graph.ops.attention import read_attention
from fedkit.graph.ops.transpose import Order
from fedkit.graph.ops.weighted import read_matmul_aten, read_matmul_onnx
from fedkit.graph.spec import Random, Spec, graph_of

_MOST_TERMS = 2**16
"""Of a sum of products of int8 and a difference of two, within 32 bits."""


def _matmul(op: ir.Op, graph: ir.Graph, x: ir.FloatArray, y: ir.FloatArray) -> ir.FloatArray:
    """Multiply matrices of the last two axes, for each row of maps."""
    return x @ y


def _shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    left, right = (graph.tensors[name].shape for name in op.inputs)
    return (*left[:3], right[3])


def _operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    left, right = shapes
    return [(1, left[1], left[3], right[3] if len(right) == len(left) else 1)]


def _rules(graph: ir.Graph, op: ir.Op) -> Iterator[str]:
    terms = graph.tensors[op.inputs[0]].shape[3]
    if terms > _MOST_TERMS:
        yield f"must sum at most {_MOST_TERMS} products, not {terms}"


def _example(random: Random) -> ir.Graph:
    """Multiply a map by some of its rows, turned, or by one of its own size."""
    heads, rows, terms = (int(size) for size in random.integers(1, [4, 9, 20]))
    product = ir.Op("matmul", ("x", "r"), ("y",))
    if random.random() < 0.3:
        shape = (1, heads, terms, terms)
        return graph_of((shape,) * 3, (), ir.Op("relu", ("x",), ("r",)), product)
    window = ir.Window((1, int(random.integers(1, rows + 1))))
    columns = window.output(heads, rows)[1]
    pool = ir.Op("max_pool2d", ("x",), ("p",), window)
    turn = ir.Op("transpose", ("p",), ("r",), attributes=Order((1, 3, 2)))
    before = (1, heads, rows, terms), (1, heads, columns, terms), (1, heads, terms, columns)
    return graph_of((*before, (1, heads, rows, columns)), (), pool, turn, product)


SPECS = (
    Spec(
        "matmul",
        "product of matrices",
        _matmul,
        _example,
        activations=2,
        shape=_shape,
        operands=_operands,
        rules=_rules,
        reads_map=True,
        scale="product",
        symmetric=(1,),
        aten={
            **dict.fromkeys(("aten.matmul.default", "aten.bmm.default"), read_matmul_aten),
            "aten.scaled_dot_product_attention.default": read_attention,
        },
        onnx={"MatMul": read_matmul_onnx},
    ),
)
