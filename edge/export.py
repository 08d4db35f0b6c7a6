"""From a torch module to an artifact, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge import artifact, ir, passes
from edge.emit import c99, tflite
from edge.interpret import FloatArray, evaluate_int8
from edge.kernels.program import Goal
from edge.lower import lower
from edge.quantize import quantize
from edge.runtime import Runner, TfliteRunner
from edge.runtime_onnx import OnnxRunner
from fedkit.errors import ExportError

if TYPE_CHECKING:
    from torch import nn

_TEST_VECTORS = 4
_ROUNDING = "half_up"  # what the C kernels compute


def export_tflite(
    model: nn.Module,
    calibration: FloatArray,
    path: Path | str,
    provenance: Mapping[str, Any],
) -> artifact.Artifact:
    """Export a torch model as an int8 .tflite file.

    Args:
        model: A classifier; see `edge.lower.lower` for what it may hold. It is not changed.
        calibration: float32 [n, c, h, w] or [n, f], as torch takes them; 100 to 500 examples of
            what the model will see.
        path: Where to put the file; nothing may be there.
        provenance: How the model was made; goes into the manifest.

    Returns:
        The saved artifact.

    Raises:
        ExportError: The model or calibration set cannot be used, or `path` is taken.
    """
    path = Path(path)
    artifact.check_free(path)
    graph = int8_graph(model, calibration)
    content = tflite.emit(graph)
    _self_check(TfliteRunner(content), calibration)
    return _save(content, path, "tflite", graph, provenance)


def export_onnx(
    model: nn.Module,
    calibration: FloatArray,
    path: Path | str,
    provenance: Mapping[str, Any],
    form: Literal["qdq", "qoperator"] = "qdq",
) -> artifact.Artifact:
    """Export a torch model as an int8 .onnx file.

    Args:
        model: As for `export_tflite`.
        calibration: As for `export_tflite`.
        path: As for `export_tflite`.
        provenance: As for `export_tflite`.
        form: Float operators between QuantizeLinear and DequantizeLinear, or integer operators;
            see `edge.emit.onnx`.

    Returns:
        The saved artifact; its target is "onnx-qdq" or "onnx-qoperator".

    Raises:
        ExportError: As for `export_tflite`, or onnx or onnxruntime is not installed.
    """
    path = Path(path)
    artifact.check_free(path)
    emitter = _onnx_emitter()
    graph = int8_graph(model, calibration)
    content: bytes = emitter.emit(graph, form)
    _self_check(OnnxRunner(content), calibration)
    return _save(content, path, f"onnx-{form}", graph, provenance, emitter.file_shape)


def export_c99(
    model: nn.Module,
    calibration: FloatArray,
    path: Path | str,
    provenance: Mapping[str, Any],
    goal: Goal = "speed",
) -> artifact.Artifact:
    """Export a torch model as a folder of C99 sources with a test of its own.

    Args:
        model: As the following, see `export_tflite`.
        calibration: Its first examples also become the folder's test vectors.
        path: The folder to make; nothing may be there.
        provenance: How the model was made; goes into the manifest.
        goal: "speed", or "size" for microcontrollers.

    Returns:
        The saved artifact; its details hold "arena_bytes", "goal" and "rounding".

    Raises:
        ExportError: The model or calibration set cannot be used, or `path` is taken.
    """
    path = Path(path)
    artifact.check_free(path)
    return save_c99(int8_graph(model, calibration), calibration, path, provenance, goal)


def save_c99(
    graph: ir.Graph,
    examples: FloatArray,
    path: Path,
    provenance: Mapping[str, Any],
    goal: Goal = "speed",
) -> artifact.Artifact:
    """Save an int8 graph as C99 sources; arguments and errors as for `export_c99`."""
    inputs, outputs = (
        [_port(graph.tensors[n], lambda shape: shape) for n in ns]
        for ns in (graph.inputs, graph.outputs)
    )
    integers = inputs[0].quantize(ir.to_graph_layout(examples[:_TEST_VECTORS]))
    sources = c99.emit(graph, integers, evaluate_int8(graph, integers, _ROUNDING), goal)
    return artifact.save_folder(
        sources.files,
        path,
        target="c99",
        inputs=inputs,
        outputs=outputs,
        provenance=provenance,
        details={"arena_bytes": sources.arena_bytes, "goal": goal, "rounding": _ROUNDING},
    )


def int8_graph(model: nn.Module, calibration: FloatArray) -> ir.Graph:
    """Lower, optimise and quantise a model; arguments and errors as for `export_tflite`."""
    graph = passes.optimise(lower(model, calibration.shape[1:]))
    return quantize(graph, ir.to_graph_layout(calibration))


def _onnx_emitter() -> Any:
    try:
        from edge.emit import onnx
    except ModuleNotFoundError as error:
        raise ExportError(
            f"{error.name} is not installed; run `pip install 'fedkit[onnx]'`"
        ) from error
    return onnx


def _save(
    content: bytes,
    path: Path,
    target: str,
    graph: ir.Graph,
    provenance: Mapping[str, Any],
    file_shape: Callable[[ir.Shape], ir.Shape] = tuple,
) -> artifact.Artifact:
    inputs, outputs = (
        [_port(graph.tensors[name], file_shape) for name in names]
        for names in (graph.inputs, graph.outputs)
    )
    return artifact.save(
        content, path, target=target, inputs=inputs, outputs=outputs, provenance=provenance
    )


def _self_check(runner: Runner, calibration: FloatArray) -> None:
    """Run the file once in a runtime before anyone can see it."""
    logits = runner.predict(calibration[:1])
    if not np.isfinite(logits).all():
        raise ExportError(
            "the exported model gives NaN or infinite logits; check the weights' size"
        )


def _port(tensor: ir.Tensor, file_shape: Callable[[ir.Shape], ir.Shape]) -> artifact.Port:
    shape = file_shape(tensor.shape)
    return artifact.Port(tensor.name, tensor.dtype, shape, tensor.scale, tensor.zero_point)
