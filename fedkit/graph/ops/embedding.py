"""Embeddings: whole numbers of the input choose rows of a table. Of training plans alone so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkit.graph import ir
from fedkit.graph.operands import activation, constant, rank_of, require
from fedkit.graph.spec import ModelReader, Random, Spec, graph_of
from fedkit.graph.tokens import turned


@dataclass(frozen=True)
class Rows(ir.Attributes):
    """Which row of the table does not learn, -1: all do."""

    padding: int


def padding_of(op: ir.Op) -> int:
    """Return the row that does not learn."""
    assert isinstance(op.attributes, Rows)  # the verifier's rule
    return op.attributes.padding


def _embedding(
    op: ir.Op, graph: ir.Graph, numbers: ir.FloatArray, table: ir.FloatArray
) -> ir.FloatArray:
    return table[numbers.astype(np.int64)][:, None]


def _shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    numbers, table = (graph.tensors[name].shape for name in op.inputs)
    return (1, 1, numbers[1], table[1])


def _operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    table = shapes[1]
    return [table if len(table) == 2 else (1, 1)]


def _rules(graph: ir.Graph, op: ir.Op) -> Iterator[str]:
    if len(graph.tensors[op.inputs[0]].shape) != 2 or op.inputs[0] not in graph.inputs:
        yield "must read the input, [1, tokens]"


def _example(random: Random) -> ir.Graph:
    tokens, width = (int(size) for size in random.integers(1, 20, 2))
    table = random.standard_normal((int(random.integers(1, 6)), width))
    op = ir.Op("embedding", ("x", "c0"), ("y",), attributes=Rows(-1))
    return graph_of(((1, tokens), (1, 1, tokens, width)), (table,), op)


def _read(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    numbers, padding = activation(a["indices"]), int(a["padding_idx"])
    require(reader.trains, "an embedding: an artifact's inputs are no whole numbers; look rows up "
            "before the model")  # fmt: skip
    require(rank_of(reader, node) == 2, "an embedding of what is not [n, tokens]")
    require(not a["scale_grad_by_freq"], "an embedding whose gradients are scaled by frequency")
    table = constant(a["weight"])
    operand = reader.constant(node, "table", table, a["weight"])
    shape = (1, 1, numbers.shape[1], table.shape[1])
    how = Rows(padding if padding < 0 else padding % len(table))
    rows = reader.op("embedding", node, [numbers, operand], shape, suffix=".rows", attributes=how)
    return turned(reader, node, rows, (1, 3, 2), "")


SPECS = (
    Spec(
        "embedding",
        "embedding",
        _embedding,
        _example,
        constants=1,
        shape=_shape,
        operands=_operands,
        rules=_rules,
        attributes=Rows,
        aten={"aten.embedding.default": _read},
        only_trains=True,
    ),
)
