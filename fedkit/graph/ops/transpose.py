"""The axes of a map in another order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedkit.graph import ir
from fedkit.graph.elements import Moved
from fedkit.graph.spec import ModelReader, OnnxNode, Random, Spec, a_map, graph_of


@dataclass(frozen=True)
class Order(ir.Attributes):
    """Axis k of a result [n, h, w, c] is axis axes[k - 1] of what is read; the first stays."""

    axes: tuple[int, int, int]


def axes_of(op: ir.Op) -> tuple[int, int, int]:
    """Return the axes that an op reads, in the order of its result."""
    assert isinstance(op.attributes, Order)  # the verifier's rule
    return op.attributes.axes


def _transpose(op: ir.Op, graph: ir.Graph, x: ir.FloatArray) -> ir.FloatArray:
    return x.transpose(0, *axes_of(op))


def _is_order(op: ir.Op) -> bool:
    return sorted(axes_of(op)) == [1, 2, 3]


def _shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    shape = graph.tensors[op.inputs[0]].shape
    return (1, *(shape[axis] for axis in axes_of(op))) if _is_order(op) else shape


def _rules(graph: ir.Graph, op: ir.Op) -> Iterator[str]:
    if not _is_order(op):
        yield f"must have the axes 1, 2 and 3 in some order, not {axes_of(op)}"


def _example(random: Random) -> ir.Graph:
    first, second, third = (1 + int(axis) for axis in random.permutation(3))
    shape, axes = a_map(random), (first, second, third)
    op = ir.Op("transpose", ("x",), ("y",), attributes=Order(axes))
    return graph_of((shape, (1, *(shape[axis] for axis in axes))), (), op)


def _read_aten(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> Moved:
    return reader.arranged(node)


def _read_onnx(reader: ModelReader, node: OnnxNode) -> Moved:
    return reader.arranged(node)


_ATEN = tuple(
    f"aten.{name}"
    for name in (
        *("permute.default", "transpose.int", "swapaxes.default", "swapdims.default"),
        *("movedim.int", "movedim.intlist", "moveaxis.int", "moveaxis.intlist"),
        *("mT.default", "mH.default", "t.default", "adjoint.default"),
    )
)

SPECS = (
    Spec(
        "transpose",
        "swap of the axes of a map",
        _transpose,
        _example,
        shape=_shape,
        rules=_rules,
        reads_map=True,
        scale="kept",
        attributes=Order,
        aten=dict.fromkeys(_ATEN, _read_aten),
        onnx={"Transpose": _read_onnx},
    ),
)
