"""What every op of an int8 graph computes, integer by integer.

Sums are exact; where a sum becomes int8 again the policy rounds, see `edge.define.rounding`. What
each op computes is in its file in `edge.ops`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.define.rounding import Policy, policy
from edge.ops.integer_spec import Operands
from edge.ops.registry import spec_of
from fedkit.core.numerics import Int64s
from fedkit.graph import integers, ir
from fedkit.graph.interpret import check_inputs, run
from fedkit.graph.ops.registry import tokens_of

Int8Array = NDArray[np.int8]
Int8Visitor = Callable[[str, Int8Array], None]


def evaluate_int8(
    graph: ir.Graph, inputs: ir.Codes, rounding: str = "half_up", visit: Int8Visitor | None = None
) -> Int8Array:
    """Run an int8 graph, integer by integer.

    Args:
        graph: Quantised, with one input.
        inputs: int8 [n, h, w, c] or [n, f], any n, in the graph's layout; of a model of tokens
            int32 [n, tokens].
        rounding: A policy of `edge.define.rounding`; the default is what our own targets compute.
        visit: Called with the name and value of each activation as soon as it is known.

    Returns:
        int8 [n, ...], the graph's output; of several the first.

    Raises:
        ExportError: The graph is not quantised, the inputs do not fit it, or there is no such
            policy.
    """
    return outputs_int8(graph, inputs, rounding, visit)[0]


def outputs_int8(
    graph: ir.Graph, inputs: ir.Codes, rounding: str = "half_up", visit: Int8Visitor | None = None
) -> list[Int8Array]:
    """Return all outputs of an int8 graph in their order; see `evaluate_int8`."""
    check_inputs(graph, inputs, "int32" if tokens_of(graph) else "int8")
    how = policy(rounding)

    def compute_int8(op: ir.Op, operands: list[Int8Array]) -> Int8Array:
        wide = tuple(operand.astype(np.int64) for operand in operands)
        return compute(how, graph, op, wide).astype(np.int8)

    values: Any = inputs  # tokens are int32, all else int8
    return run(graph, values, compute_int8, visit)


def compute(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    """Return an op's result.

    Args:
        policy: How it rounds.
        graph: The graph that the op belongs to, for scales and shapes.
        op: The op.
        operands: Its inputs, int64 [n, ...] and constants in the layouts of `fedkit.graph.ir`.

    Returns:
        int64 [n, ...] within int8.
    """
    value = spec_of(op).exact(policy, graph, op, operands)
    low, high = integers.limits(graph, op)
    if integers.activation(op) == "relu6":
        high = min(127, policy.six(graph, op))
    return np.clip(value, low, high)
