"""Keep the integers of a quantised ONNX file: its scales, zero points, weights and biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge import passes
from edge.define.interpret_int8 import outputs_int8
from edge.quantize.truth import quantized
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.file_integers import FileIntegers, Steps
from fedkit.graph.onnx_compare import Session, as_read
from fedkit.graph.ops.registry import CHANNEL_AXIS, spec_of
from fedkit.graph.verify import verify

_SCALES = (0.3, 1.0)
_MOST_STEPS = 4.0  # a value half way between two integers may go either way, in any layer
_LARGEST_CODE = 127
_LARGEST_BIAS = 2.0**30


class Misfit(ExportError):
    """What a file says of integers is not what an int8 graph can say."""


def keep_integers(graph: ir.Graph, integers: FileIntegers) -> ir.Graph:
    """Return the int8 graph that a quantised file is.

    Args:
        graph: The float model between its integers, as it was read.
        integers: What the file says of them.

    Raises:
        Misfit: Some activation has no integers there, or others than one scale can say; weights
            have a zero point or codes that kernels do not have; or a rule of graphs is broken.
    """
    floats = passes.optimise(graph)
    kept = _Kept(floats, integers)
    for name in floats.inputs:
        kept.activation(name, kept.known(name, "input"))
    ops = tuple(kept.op(op) for op in floats.ops)
    made = replace(floats, tensors=kept.tensors, ops=ops)
    try:
        verify(made)
    except ExportError as error:
        raise Misfit(str(error)) from error
    return made


def check_kept(graph: ir.Graph, source: Path | str | bytes, ports: Mapping[str, Steps]) -> None:
    """Compare an int8 graph with what its file gives in onnxruntime, where that is installed.

    Args:
        graph: As `keep_integers` made it.
        source: Path of the file, or its bytes.
        ports: What the bytes of its inputs and outputs are worth.

    Raises:
        ExportError: They differ by more than what the roundings of layers come to.
    """
    runtime = Session.open(source)
    if runtime is None or len(graph.inputs) != 1:
        return
    rng, x = np.random.default_rng(0), graph.tensors[graph.inputs[0]]
    outputs = [graph.tensors[name] for name in graph.outputs]
    for scale in _SCALES:
        examples = runtime.examples(rng, scale * 64 * x.scale)
        wanted = runtime.run(examples, ports)
        if wanted is None:
            return
        (real,) = as_read(graph, examples, ports).values()
        found = outputs_int8(graph, quantized(graph, real), "onnxruntime")
        for y, integers, of_file in zip(outputs, found, wanted, strict=True):
            steps = ir.to_graph_layout(of_file) / np.float32(y.scale) + y.zero_point
            gap = float(np.abs(integers - steps.reshape(integers.shape)).max())
            if not gap <= _MOST_STEPS:
                raise ExportError(
                    f"the integers that were read from the file give other outputs than the file "
                    f"in onnxruntime, by {gap:.3g} steps; this is a fault of the reader: please "
                    "report it with the file"
                )


class _Kept:
    """The int8 graph under construction."""

    def __init__(self, floats: ir.Graph, integers: FileIntegers) -> None:
        self.floats, self.integers = floats, integers
        self.tensors: dict[str, ir.Tensor] = {}

    def known(self, name: str, what: str) -> ir.Quantization:
        """Return the scale and zero point of an activation."""
        if name not in self.integers.activations:
            raise Misfit(f"{what} {name!r} is not quantised")
        steps = self.integers.activations[name]
        if steps is None:
            raise Misfit(f"{what} {name!r} is quantised in two ways")
        return steps.quantization

    def activation(self, name: str, quantization: ir.Quantization) -> None:
        """Add one."""
        shape = self.floats.tensors[name].shape
        self.tensors[name] = ir.Tensor(name, shape, "int8", None, quantization)

    def op(self, op: ir.Op) -> ir.Op:
        """Return an op among integers, and add what it writes."""
        spec = spec_of(op)
        if spec.scale == "kept" and op.output not in self.integers.activations:
            found = self.tensors[op.inputs[0]].quantization
            assert found is not None  # added above
        else:
            found = self.known(op.output, f"layer {op.source!r}: its result")
        if spec.scale == "kept" and {self.tensors[n].quantization for n in op.inputs} != {found}:
            raise Misfit(f"layer {op.source!r} changes the scale, and {op.kind} keeps it here")
        self.activation(op.output, found)
        if spec.weights:
            return self._weighted(op)
        if any(self.floats.tensors[name].data is not None for name in op.inputs):
            raise Misfit(f"layer {op.source!r} reads a constant that is not a weight")
        return op

    def _weighted(self, op: ir.Op) -> ir.Op:
        axis, x = CHANNEL_AXIS[op.kind], self.tensors[op.inputs[0]]
        weight, bias = (self.floats.constant(name) for name in op.inputs[1:])
        scale = self._scales(op, len(bias))
        codes = _codes(op, weight, ir.along(axis, scale, weight.ndim))
        of_bias = x.scale * scale
        offsets = np.rint(bias.astype(np.float64) / of_bias)
        if np.abs(offsets).max() > _LARGEST_BIAS:
            raise Misfit(f"layer {op.source!r} has biases beyond 30 bits")
        names = [ir.unused_name(f"{op.output}.{what}", self.floats.tensors) for what in _CONSTANTS]
        self._constant(names[0], codes.astype(np.int8), scale, axis)
        self._constant(names[1], offsets.astype(np.int32), of_bias, 0)
        return replace(op, inputs=(x.name, *names))

    def _scales(self, op: ir.Op, count: int) -> NDArray[np.float64]:
        scales = self.integers.weights.get(op.source)
        if scales is None or scales.size not in (1, count):
            raise Misfit(f"layer {op.source!r} has weights without integers of their own")
        if not (np.isfinite(scales).all() and (scales > 0).all()):
            raise Misfit(f"layer {op.source!r} has weights of a scale that is not positive")
        return np.broadcast_to(scales, count).astype(np.float64)

    def _constant(self, name: str, data: ir.Array, scale: NDArray[np.float64], axis: int) -> None:
        steps = tuple(scale.astype(np.float32).astype(np.float64).tolist())
        quantization = ir.Quantization(steps, (0,) * len(steps), axis)
        dtype: ir.DType = "int8" if data.dtype == np.int8 else "int32"
        self.tensors[name] = ir.Tensor(name, data.shape, dtype, data, quantization)


_CONSTANTS = ("weight_int8", "bias_int32")


def _codes(op: ir.Op, weight: ir.Array, scale: ir.Array) -> ir.Array:
    """Return the integers of weights, which must be such, times their scale, and within int8."""
    codes = np.rint(weight / scale)
    if not np.array_equal((codes * scale).astype(np.float32), weight.astype(np.float32)):
        raise Misfit(f"layer {op.source!r} has weights that are changed after they are integers")
    if np.abs(codes).max(initial=0) > _LARGEST_CODE:
        raise Misfit(
            f"layer {op.source!r} has weights beyond +-{_LARGEST_CODE} steps, as with a zero point"
        )
    return codes
