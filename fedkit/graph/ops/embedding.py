"""Embeddings: tokens, whole numbers that are the input, choose rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.operands import activation, constant, rank_of, require
from fedkit.graph.spec import ModelReader, Random, Spec, graph_of
from fedkit.graph.tokens import turned

MOST_TOKENS = 2**24
"""Whole numbers that float32 tells apart."""


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
    return rows_of(numbers, table)


def rows_of(tokens: ir.Array, table: ir.Array) -> ir.Array:
    """Return the rows [n, 1, tokens, channels] that tokens [n, tokens] choose.

    Raises:
        ExportError: A token has no row.
    """
    check_tokens(tokens, len(table))
    return np.asarray(table[tokens.astype(np.int64)][:, None])


def check_tokens(tokens: ir.Array, count: int = MOST_TOKENS) -> None:
    """Raise an ExportError where tokens are not whole numbers from 0 to below a count."""
    fits = (tokens >= 0) & (tokens < count) & (tokens == np.rint(tokens))
    if not fits.all():
        known = f"the model has tokens 0 to {count - 1}"
        raise ExportError(
            f"inputs hold the token {tokens[~fits].flat[0]:.15g}; "
            f"{known if count < MOST_TOKENS else 'tokens are whole numbers from 0 on'}"
        )


def _shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    numbers, table = (graph.tensors[name].shape for name in op.inputs)
    return (1, 1, numbers[1], table[1])


def _operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    table = shapes[1]
    return [table if len(table) == 2 else (1, 1)]


def _rules(graph: ir.Graph, op: ir.Op) -> Iterator[str]:
    x = op.inputs[0]
    if len(graph.tensors[x].shape) != 2 or x not in graph.inputs or x in graph.outputs:
        yield "must read the input, [1, tokens]"
    if {each.kind for each in graph.ops if x in each.inputs} != {op.kind}:
        yield "must read an input that nothing but embeddings reads: tokens are no amounts"
    if len(graph.constant(op.inputs[1])) > MOST_TOKENS:
        yield f"must have at most {MOST_TOKENS} rows, as float32 tells no more whole numbers apart"


def _example(random: Random) -> ir.Graph:
    tokens, width = (int(size) for size in random.integers(1, 20, 2))
    table = random.standard_normal((int(random.integers(1, 6)), width))
    op = ir.Op("embedding", ("x", "c0"), ("y",), attributes=Rows(-1))
    return graph_of(((1, tokens), (1, 1, tokens, width)), (table,), op)


def _read(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    numbers, padding = activation(a["indices"]), int(a["padding_idx"])
    require(rank_of(reader, node) == 2, "an embedding of what is not [n, tokens]")
    by_frequency = a["scale_grad_by_freq"] and reader.trains
    require(not by_frequency, "an embedding whose gradients are scaled by frequency")
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
        scale="free",
        looks_up=True,
    ),
)
