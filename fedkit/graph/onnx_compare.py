"""Compare the graph that was made of an ONNX file with what onnxruntime computes from the file.

Reading takes each op apart by hand, and a misread attribute gives a graph that is sound and wrong.
Where onnxruntime is installed and takes the file, both are run on the same random inputs.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.interpret import FloatArray, evaluate

TOLERANCE = 1e-3
"""Of an example's largest output; float32 sums in another order differ by less."""

_SCALES = (0.1, 1.0, 1.0, 10.0)
"""Of the normal inputs, one for each example: some ops are linear near 0 only."""

_ERRORS_ONLY = 4


def check_read(graph: ir.Graph, source: Path | str | bytes) -> None:
    """Compare a graph with the file that it was read from.

    Args:
        graph: Float, with batch 1.
        source: Path of the .onnx file, or its bytes.

    Raises:
        ExportError: They differ by more than `TOLERANCE` of the largest output of an example.
    """
    session = _session(source)
    if session is None:
        return
    rng = np.random.default_rng(0)
    port = session.get_inputs()[0]
    for scale in _SCALES:
        example = (scale * rng.standard_normal((1, *port.shape[1:]))).astype(np.float32)
        try:
            (wanted,) = session.run(None, {port.name: example})
        except Exception:  # its errors have no class in common; what it cannot run tells nothing
            return
        with np.errstate(all="ignore"):  # of random inputs; the quantiser names what overflows
            found = evaluate(graph, ir.to_graph_layout(example))
        _check_close(found, _as_graph(np.asarray(wanted, np.float32), found))


def _session(source: Path | str | bytes) -> Any:
    """Return the file in onnxruntime; None if that is not installed or does not take it."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = source if isinstance(source, bytes) else str(source)
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception:  # a newer format than it knows, or ops that it lacks
        return None


def _as_graph(wanted: FloatArray, found: FloatArray) -> FloatArray:
    """Bring onnxruntime's output into the layout and shape of the graph's."""
    laid = ir.to_graph_layout(wanted) if wanted.ndim == 4 and found.ndim == 4 else wanted
    if laid.size != found.size:
        raise ExportError(
            f"the file gives an output of shape {wanted.shape} in onnxruntime, but it was read as "
            f"a model that gives {found.shape}; this is a fault of the reader: please report it "
            "with the file"
        )
    return laid.reshape(found.shape)


def _check_close(found: FloatArray, wanted: FloatArray) -> None:
    if not np.isfinite(wanted).all():
        return  # as much as random inputs overflow in
    gap, size = (float(np.abs(each).max(initial=0)) for each in (found - wanted, wanted))
    if not gap <= TOLERANCE * size:  # NaN too
        raise ExportError(
            f"the graph that was read from the file gives other outputs than the file itself in "
            f"onnxruntime, by {gap:.3g} where these reach {size:.3g}; an op means something else "
            "to each: export the model again with another opset, and please report it with the file"
        )
