"""Where an int8 graph is computed, and by which policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

from edge.targets.onnx import emitter as onnx
from edge.targets.onnx.runner import OnnxRunner
from edge.targets.registry import runtimes
from edge.targets.tflite import emitter as tflite
from edge.targets.tflite.runner import TfliteRunner
from fedkit.graph import ir
from tests.edge.single_ops import (
    Codes,
)

RUNTIMES = runtimes()
Run = Callable[[ir.Graph, Codes], Codes]


def in_litert(graph: ir.Graph, codes: Codes) -> Codes:
    found = TfliteRunner(tflite.emit(graph)).predict_int8(in_torchs_layout(codes))
    return ir.to_graph_layout(found)


def in_tflite_runtime(graph: ir.Graph, codes: Codes) -> Codes:
    content = tflite.emit(graph)
    found = TfliteRunner(content, "tflite-runtime").predict_int8(in_torchs_layout(codes))
    return ir.to_graph_layout(found)


def in_onnxruntime(form: onnx.Form) -> Run:
    def run(graph: ir.Graph, codes: Codes) -> Codes:
        found = OnnxRunner(onnx.emit(graph, form)).predict_int8(in_torchs_layout(codes))
        return ir.to_graph_layout(found)

    return run


def in_litert_alone(graph: ir.Graph, codes: NDArray[Any]) -> NDArray[Any]:
    """LiteRT without XNNPACK; takes float graphs too."""
    content = tflite.emit(graph)
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    model = Interpreter(model_content=content, experimental_op_resolver_type=resolver)
    model.allocate_tensors()
    found = []
    for one in codes:
        model.set_tensor(model.get_input_details()[0]["index"], one[None])
        model.invoke()
        found.append(model.get_tensor(model.get_output_details()[0]["index"]))
    return np.concatenate(found)


def in_torchs_layout(codes: Codes) -> Codes:
    return np.ascontiguousarray(np.moveaxis(codes, 3, 1)) if codes.ndim == 4 else codes


@dataclass(frozen=True)
class PolicyRun:
    """Where a graph runs, and the policy that is to be its arithmetic."""

    run: Run
    policy: str


PLACES: Mapping[str, PolicyRun] = {
    "ai-edge-litert": PolicyRun(in_litert, RUNTIMES["tflite"]["ai-edge-litert"]),
    "tflite-runtime": PolicyRun(in_tflite_runtime, RUNTIMES["tflite"]["tflite-runtime"]),
    "onnx-qdq": PolicyRun(in_onnxruntime("qdq"), RUNTIMES["onnx-qdq"]["onnxruntime"]),
    "onnx-qoperator": PolicyRun(
        in_onnxruntime("qoperator"), RUNTIMES["onnx-qoperator"]["onnxruntime"]
    ),
}
