"""Compare the graph that was made of an ONNX file with what onnxruntime computes from the file.

Reading takes each op apart by hand, and a misread attribute gives a graph that is sound and wrong.
Where onnxruntime is installed and takes the file, both are run on the same random inputs.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.file_integers import Steps
from fedkit.graph.interpret import FloatArray, evaluate_all

TOLERANCE = 1e-3
"""Of an example's largest output; float32 sums in another order differ by less."""

_SCALES = (0.1, 1.0, 1.0, 10.0)
"""Of the normal inputs, one for each example: some ops are linear near 0 only."""

_ERRORS_ONLY = 4


def check_read(
    graph: ir.Graph,
    source: Path | str | bytes,
    tolerance: float = TOLERANCE,
    ports: Mapping[str, Steps] | None = None,
) -> None:
    """Compare a graph with the file that it was read from.

    Args:
        graph: Float, with batch 1.
        source: Path of the .onnx file, or its bytes.
        tolerance: By how much of an example's largest output they may differ.
        ports: What the bytes of inputs and outputs are worth in the graph.

    Raises:
        ExportError: They differ by more.
    """
    runtime = Session.open(source)
    if runtime is None:
        return
    rng = np.random.default_rng(0)
    for scale in _SCALES:
        wanted = runtime.run(examples := runtime.examples(rng, scale), ports or {})
        if wanted is None:
            return
        with np.errstate(all="ignore"):  # of random inputs; the quantiser names what overflows
            found = evaluate_all(graph, as_read(graph, examples, ports or {}))
        for one, of_file in zip(found, wanted, strict=True):
            _check_close(one, _as_graph(of_file, one), tolerance)


def as_read(
    graph: ir.Graph, examples: Mapping[str, FloatArray], ports: Mapping[str, Steps]
) -> dict[str, FloatArray]:
    """Return examples of a file as the graph takes them, which has the inputs in their order."""
    values = (_worth(each, ports.get(name)) for name, each in examples.items())
    return dict(zip(graph.inputs, map(ir.to_graph_layout, values), strict=True))


def _worth(values: ir.Array, steps: Steps | None) -> FloatArray:
    whole = values.astype(np.float64)
    return (whole if steps is None else steps.scale * (whole - steps.zero)).astype(np.float32)


@dataclass(frozen=True)
class Session:
    """A file in onnxruntime."""

    session: Any

    @classmethod
    def open(cls, source: Path | str | bytes) -> Session | None:
        """Return it; None if onnxruntime is not installed or does not take the file."""
        found = _session(source)
        return None if found is None else cls(found)

    def examples(self, rng: np.random.Generator, scale: float) -> dict[str, FloatArray]:
        """Return one random example: of normal numbers, or of bytes."""
        return {
            port.name: _example(port.type, (1, *port.shape[1:]), rng, scale)
            for port in self.session.get_inputs()
        }

    def run(
        self, examples: Mapping[str, FloatArray], ports: Mapping[str, Steps]
    ) -> list[FloatArray] | None:
        """Return the outputs for one example; None where it cannot run the file."""
        kinds = {port.name: _NUMBERS.get(port.type) for port in self.session.get_inputs()}
        given = {name: each.astype(kinds[name] or np.float32) for name, each in examples.items()}
        try:
            found = self.session.run(None, given)
        except Exception:  # its errors have no class in common; what it cannot run tells nothing
            return None
        names = [port.name for port in self.session.get_outputs()]
        return [
            _worth(np.asarray(each), ports.get(name))
            for name, each in zip(names, found, strict=True)
        ]


_NUMBERS: Mapping[str, type[np.integer[Any]]] = {
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
}


def _example(
    kind: str, shape: tuple[int, ...], rng: np.random.Generator, scale: float
) -> FloatArray:
    if kind not in _NUMBERS:
        return (scale * rng.standard_normal(shape)).astype(np.float32)
    ends = np.iinfo(_NUMBERS[kind])
    return rng.integers(ends.min, ends.max + 1, shape).astype(np.float32)


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
    laid = ir.to_graph_layout(wanted) if found.ndim == 4 else wanted
    if laid.size != found.size:
        raise ExportError(
            f"the file gives an output of shape {wanted.shape} in onnxruntime, but it was read as "
            f"a model that gives {found.shape}; this is a fault of the reader: please report it "
            "with the file"
        )
    return laid.reshape(found.shape)


def _check_close(found: FloatArray, wanted: FloatArray, tolerance: float = TOLERANCE) -> None:
    if not np.isfinite(wanted).all():
        return  # as much as random inputs overflow in
    gap, size = (float(np.abs(each).max(initial=0)) for each in (found - wanted, wanted))
    if not gap <= tolerance * size:  # NaN too
        raise ExportError(
            f"the graph that was read from the file gives other outputs than the file itself in "
            f"onnxruntime, by {gap:.3g} where these reach {size:.3g}; an op means something else "
            "to each: export the model again with another opset, and please report it with the file"
        )
