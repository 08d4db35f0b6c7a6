"""Whole models as integers, in everything that runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edge.define.interpret_int8 import evaluate_int8
from edge.export import float_graph, save_c99
from edge.quantize.to_int8 import quantize
from edge.targets.c99.runner import CompiledRunner
from fedkit.core.numerics import Int64s
from fedkit.graph import ir
from tests.edge.inputs import integers_for
from tests.edge.litert_alone import evaluate_alone
from tests.edge.policy_places import PolicyRun, in_litert_alone, in_torchs_layout
from tests.edge.targets.c99.library import need_gcc
from tests.edge.targets.compiled import PLAIN

Codes = NDArray[np.int8]


def integers_of(model: nn.Module, shape: tuple[int, ...]) -> ir.Graph:
    random = np.random.default_rng(0)
    inputs = random.standard_normal((16, *shape)).astype(np.float32)
    return quantize(float_graph(model.eval(), shape), ir.to_graph_layout(inputs))


def codes_of(graph: ir.Graph) -> Codes:
    return integers_for(graph, np.random.default_rng(1), 4)


def assert_same_in(place: PolicyRun, graph: ir.Graph) -> None:
    codes = codes_of(graph)
    expected = evaluate_int8(graph, codes, place.policy)
    found = place.run(graph, codes).reshape(expected.shape)
    assert np.count_nonzero(found != expected) == 0


def assert_same_in_litert_alone(graph: ir.Graph) -> None:
    codes = codes_of(graph)
    expected = evaluate_alone(graph, codes)
    found = in_litert_alone(graph, codes).reshape(expected.shape)
    assert np.count_nonzero(found != expected) == 0


def assert_same_in_c(graph: ir.Graph, goal: str, folder: Path) -> None:
    need_gcc()
    inputs = in_torchs_layout(codes_of(graph))
    examples = np.zeros(inputs.shape, np.float32)
    saved = save_c99(graph, examples, folder / "c", {}, "size" if goal == "size" else "speed")
    found = CompiledRunner(saved.path, PLAIN).predict_int8(inputs)
    expected = evaluate_int8(graph, codes_of(graph))
    assert np.count_nonzero(found.reshape(expected.shape) != expected) == 0


def halves_away(rescaled: Callable[..., Int64s], *arguments: Any) -> Int64s:
    """Round as LiteRT's own kernel does, which is not that of tflite-runtime."""
    *first, _ = arguments
    return rescaled(*first, "channels")
