"""Compiled C models, compared with the interpreter."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge.artifact import Artifact
from edge.define.interpret_int8 import evaluate_int8
from edge.export import save_c99
from edge.targets.c99.calls import Goal
from edge.targets.c99.runner import CompiledRunner
from fedkit.graph import ir
from tests.edge.models import Images

QUICK = ("-O0", "-march=native")  # the kernels for this processor, and little time to compile
PLAIN = ("-O0", "-DEK_PLAIN")


def assert_same_integers(
    graph: ir.Graph, inputs: Images, folder: Path, goal: Goal, *flags: str
) -> Artifact:
    saved = save_c99(graph, inputs, folder, {}, goal)
    integers = saved.inputs[0].quantize(inputs)
    expected = evaluate_int8(graph, ir.to_graph_layout(integers), "half_up")
    flags = flags or (QUICK if goal == "speed" else PLAIN)
    found = ir.to_graph_layout(CompiledRunner(saved.path, flags).predict_int8(integers))
    assert np.count_nonzero(found != expected) == 0
    assert len(np.unique(expected)) > 4, "the outputs say nothing"
    return saved
