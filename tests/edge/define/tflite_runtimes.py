"""Runtimes of .tflite files, compared with the interpreter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge.define.interpret_int8 import evaluate_int8
from edge.targets.tflite import emitter as tflite
from edge.targets.tflite.runner import Runtime, TfliteRunner
from fedkit.graph import ir

RUNTIMES: dict[Runtime, str] = {"ai-edge-litert": "half_even", "tflite-runtime": "gemmlowp"}
"""Runtime -> the policy that is its arithmetic."""
WHOLE = {"resnet8": (3, 16, 16), "ds-cnn": (1, 28, 28), "mobilenetv2-w0.25": (1, 28, 28)}


def int8_inputs(graph: ir.Graph, inputs: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return [n, c, h, w] as the graph's input quantises it."""
    x = graph.tensors[graph.inputs[0]]
    integers = np.rint(inputs / np.float32(x.scale)) + x.zero_point
    return np.asarray(np.clip(integers, -128, 127), np.int8)


def assert_equal_integers(graph: ir.Graph, inputs: NDArray[np.float32], runtime: Runtime) -> None:
    codes = int8_inputs(graph, inputs)
    found = ir.to_graph_layout(TfliteRunner(tflite.emit(graph), runtime).predict_int8(codes))
    expected = evaluate_int8(graph, ir.to_graph_layout(codes), RUNTIMES[runtime])
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)
