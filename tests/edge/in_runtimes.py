"""Whole models as integers, in everything that runs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edge.define.interpret_int8 import compute, evaluate_int8
from edge.define.rounding import policy
from edge.export import float_graph, save_c99
from edge.ops.registry import SPECS
from edge.quantize.to_int8 import quantize
from edge.targets.c99.runner import CompiledRunner
from fedkit.graph import ir
from fedkit.graph.interpret import run
from tests.edge.policy_places import PolicyRun, in_litert_alone, in_torchs_layout
from tests.edge.targets.c99.library import need_gcc
from tests.edge.targets.compiled import PLAIN

Codes = NDArray[np.int8]


def integers_of(model: nn.Module, shape: tuple[int, ...]) -> ir.Graph:
    random = np.random.default_rng(0)
    inputs = random.standard_normal((16, *shape)).astype(np.float32)
    return quantize(float_graph(model.eval(), shape), ir.to_graph_layout(inputs))


def codes_of(graph: ir.Graph) -> Codes:
    shape = graph.tensors[graph.inputs[0]].shape[1:]
    return np.random.default_rng(1).integers(-128, 128, (4, *shape)).astype(np.int8)


def assert_same_in(place: PolicyRun, graph: ir.Graph) -> None:
    codes = codes_of(graph)
    expected = evaluate_int8(graph, codes, place.policy)
    found = place.run(graph, codes).reshape(expected.shape)
    assert np.count_nonzero(found != expected) == 0


def assert_same_in_litert_alone(graph: ir.Graph) -> None:
    """Compare each op with LiteRT without XNNPACK, on what LiteRT itself gives it.

    Kernels that take channels in blocks round halves up in them, so a step above is allowed there:
    see `IntegerSpec.in_blocks`.
    """
    codes = codes_of(graph)

    def in_litert(op: ir.Op, operands: list[Codes]) -> Codes:
        wide = tuple(operand.astype(np.int64) for operand in operands)
        expected = compute(policy("gemmlowp"), graph, op, wide)
        found = in_litert_alone(ir.until(graph, op.output), codes).reshape(expected.shape)
        allowed = (0, 1) if SPECS[op.kind].in_blocks else (0,)
        assert np.isin(found - expected, allowed).all(), op
        return found

    run(graph, codes, in_litert, None)


def assert_same_in_c(graph: ir.Graph, goal: str, folder: Path) -> None:
    need_gcc()
    inputs = in_torchs_layout(codes_of(graph))
    examples = np.zeros(inputs.shape, np.float32)
    saved = save_c99(graph, examples, folder / "c", {}, "size" if goal == "size" else "speed")
    found = CompiledRunner(saved.path, PLAIN).predict_int8(inputs)
    expected = evaluate_int8(graph, codes_of(graph))
    assert np.count_nonzero(found.reshape(expected.shape) != expected) == 0
