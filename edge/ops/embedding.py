"""Rows of a table of integers, which tokens choose; they keep its scale."""

from __future__ import annotations

import numpy as np

from edge.define.rounding import Policy
from edge.ops.builders import CCompiler, OnnxFile, TfliteFile
from edge.ops.integer_spec import IntegerSpec, Link, Operands
from fedkit.core.numerics import Int64s
from fedkit.graph import ir
from fedkit.graph.ops.embedding import rows_of

_BYTE = 128  # what a byte of C is more than its int8


def _embedding(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    return np.asarray(rows_of(*operands), np.int64)


def _links(graph: ir.Graph, op: ir.Op) -> list[Link]:
    """Link each channel with all tokens: none may go."""
    tokens, channels = (graph.tensors[name].shape[-1] for name in (op.inputs[0], op.output))
    pairs = np.indices((tokens, channels)).reshape(2, -1)
    return [Link(op.inputs[0], pairs[0], pairs[1])]


def _tflite(file: TfliteFile, op: ir.Op) -> None:
    """Look rows up, [1, tokens, channels], and let them be a map."""
    tokens, table = (file.graph.tensors[name] for name in op.inputs)
    rows = ir.Tensor(
        f"{op.output}.rows", (*tokens.shape, table.shape[1]), table.dtype, None, table.quantization
    )
    file.tensor(rows)
    x = tokens.name if tokens.dtype == "int32" else file.cast(tokens, f"{op.output}.x", "int32")
    file.operator("GATHER", [table.name, x], rows.name, "GatherOptions", axis=0)
    file.reshape(rows.name, op.output, file.graph.tensors[op.output].shape)


def _onnx(file: OnnxFile, op: ir.Op) -> None:
    """Take columns of the turned table: [channels, 1, tokens] of it is a map of one row."""
    out = op.output
    table = np.ascontiguousarray(file.graph.constant(op.inputs[1]).T[None, :, None])
    name = file.constant(f"{out}.turned_table", table)
    row = file.constant(f"{out}.row", np.array([0], np.int64))
    tokens = file.node("Squeeze", [op.inputs[0], row], f"{out}.tokens")
    file.node("Gather", [name, tokens], out, axis=3)


def _c99(c: CCompiler, op: ir.Op) -> None:
    table = c.graph.constant(op.inputs[1])
    data = (table.astype(np.int16) + _BYTE).astype(np.uint8)
    c.call(
        "ek_embed",
        c.struct("ek_table_rows", data),
        c.layout(op.output),
        "in",
        c.new(op.output),
        source=op.source,
    )


SPECS = (IntegerSpec("embedding", _embedding, _links, tflite=_tflite, onnx=_onnx, c99=_c99),)
