"""Evaluate an int8 graph on a few random inputs, so that a pass can see what it must not change."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge.define.interpret_int8 import Int8Array, evaluate_int8
from edge.define.rounding import POLICIES
from edge.passes.channels import Flags
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.ops.registry import tokens_of

Values = Mapping[str, Mapping[str, Int8Array]]
"""Rounding policy -> activation -> its integers [n, ...]."""

_EXAMPLES = 2


def observe(graph: ir.Graph) -> Values:
    """Return every activation under every rounding policy, for inputs that are always the same."""
    shape = (_EXAMPLES, *graph.tensors[graph.inputs[0]].shape[1:])
    random, tokens = np.random.default_rng(0), tokens_of(graph)
    inputs: ir.Codes = random.integers(-128, 128, shape, np.int8)
    if tokens:
        inputs = random.integers(tokens, size=shape, dtype=np.int32)
    seen: dict[str, dict[str, Int8Array]] = {policy: {} for policy in POLICIES}
    for policy, values in seen.items():
        evaluate_int8(graph, inputs, policy, values.__setitem__)
    return seen


def compare(
    before: Values, after: Values, old: Mapping[str, Flags], new: Mapping[str, Flags]
) -> None:
    """Compare channels of all activations before and after a pass.

    Args:
        before: As `observe` returns it.
        after: The same for the graph that the pass made.
        old: Per activation, the channels of it in `before` that must be the same.
        new: Per activation, the same channels in `after`.

    Raises:
        ExportError: Names the first activation that differs, and the policy.
    """
    for policy, values in before.items():
        for name, value in values.items():
            was, is_now = value[..., old[name]], after[policy][name][..., new[name]]
            if was.size != is_now.size or (was.ravel() != is_now.ravel()).any():
                raise ExportError(
                    f"a pass changed tensor {name!r}: {was.size} integers of shape {was.shape} "
                    f"are not what they were under rounding {policy!r}; this is a fault of the "
                    f"pass, not of the model: report it with the model"
                )
