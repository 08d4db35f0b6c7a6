"""From a torch module to an artifact, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge import artifact, ir, passes
from edge.emit import tflite
from edge.interpret import FloatArray
from edge.lower import lower
from edge.quantize import quantize
from edge.runtime import TfliteRunner
from fedkit.errors import ExportError

if TYPE_CHECKING:
    from torch import nn


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
    _self_check(content, calibration)
    return artifact.save(
        content,
        path,
        target="tflite",
        inputs=[_port(graph.tensors[name]) for name in graph.inputs],
        outputs=[_port(graph.tensors[name]) for name in graph.outputs],
        provenance=provenance,
    )


def int8_graph(model: nn.Module, calibration: FloatArray) -> ir.Graph:
    """Lower, optimise and quantise a model; arguments and errors as for `export_tflite`."""
    graph = passes.optimise(lower(model, calibration.shape[1:]))
    return quantize(graph, ir.to_graph_layout(calibration))


def _self_check(content: bytes, calibration: FloatArray) -> None:
    """Run the file once in a runtime before anyone can see it."""
    logits = TfliteRunner(content).predict(calibration[:1])
    if not np.isfinite(logits).all():
        raise ExportError(
            "the exported model gives NaN or infinite logits; check the weights' size"
        )


def _port(tensor: ir.Tensor) -> artifact.Port:
    return artifact.Port(tensor.name, tensor.dtype, tensor.shape, tensor.scale, tensor.zero_point)
