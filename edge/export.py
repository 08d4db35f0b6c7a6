"""From a torch module, or an ONNX file, to an artifact."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge import artifact, graph_file, ir, memory, passes
from edge.define.interpret import FloatArray, Int8Array, evaluate, evaluate_int8
from edge.define.rounding import RUNTIMES
from edge.passes.slim import slim
from edge.quantize import truth
from edge.quantize.quantize import Scaling, Trained, quantize
from edge.read.onnx_compare import check_read
from edge.read.torch_module import lower, outputs
from edge.targets.c99 import emitter as c99
from edge.targets.c99.program import Goal
from edge.targets.c_names import check_new_name, name_for
from edge.targets.fpga import emitter as fpga
from edge.targets.onnx.runner import OnnxRunner
from edge.targets.tflite import emitter as tflite
from edge.targets.tflite.runner import Runner, TfliteRunner
from fedkit.core.errors import ExportError

if TYPE_CHECKING:
    from torch import nn

_TEST_VECTORS = 4
_COMPARED = 4  # examples on which a graph must give what its model gives
_LOWERED_TOLERANCE = 1e-3  # of the largest output: float32 sums in another order differ by less

LANES = 4
"""Filters that an FPGA computes at a time, if nothing else is asked for."""

Form = Literal["qdq", "qoperator"]


def export_tflite(
    model: nn.Module | ir.Graph,
    calibration: FloatArray,
    path: Path | str,
    provenance: Mapping[str, Any],
    accept_error: bool = False,
) -> artifact.Artifact:
    """Export a torch model as an int8 .tflite file.

    Args:
        model: A classifier; see `edge.read.torch_module.lower` for what it may hold. It is not
            changed. Or the float graph that `load_onnx` made of a file.
        calibration: float32 [n, c, h, w] or [n, f], as torch takes them; 100 to 500 examples of
            what the model will see.
        path: Where to put the file; nothing may be there.
        provenance: How the model was made; goes into the manifest.
        accept_error: Export also what is far from the float model, with a warning; see
            `edge.quantize.truth`.

    Returns:
        The saved artifact; the details of its manifest hold "float_error": how far it is from the
        float model.

    Raises:
        ExportError: The model or calibration set cannot be used, the artifact would be too far from
            the float model, or `path` is taken.
    """
    path = Path(path)
    artifact.check_free(path)
    return save_tflite(
        int8_graph(model, calibration, accept_error=accept_error), calibration, path, provenance
    )


def export_onnx(
    model: nn.Module | ir.Graph,
    calibration: FloatArray,
    path: Path | str,
    provenance: Mapping[str, Any],
    form: Form = "qdq",
    accept_error: bool = False,
) -> artifact.Artifact:
    """Export a torch model as an int8 .onnx file.

    Args:
        model: As for `export_tflite`.
        calibration: As for `export_tflite`.
        path: As for `export_tflite`.
        provenance: As for `export_tflite`.
        form: Float operators between QuantizeLinear and DequantizeLinear, or integer operators;
            see `edge.targets.onnx.emitter`.
        accept_error: As for `export_tflite`.

    Returns:
        The saved artifact; its target is "onnx-qdq" or "onnx-qoperator".

    Raises:
        ExportError: As for `export_tflite`, or onnx or onnxruntime is not installed.
    """
    path = Path(path)
    artifact.check_free(path)
    return save_onnx(
        int8_graph(model, calibration, accept_error=accept_error),
        calibration,
        path,
        provenance,
        form,
    )


def export_c99(
    model: nn.Module | ir.Graph,
    calibration: FloatArray,
    path: Path | str,
    provenance: Mapping[str, Any],
    goal: Goal = "speed",
    name: str | None = None,
    accept_error: bool = False,
) -> artifact.Artifact:
    """Export a torch model as a folder of C99 sources with a test of its own.

    Args:
        model: As the following, see `export_tflite`.
        calibration: Its first examples also become the folder's test vectors.
        path: The folder to make; nothing may be there.
        provenance: How the model was made; goes into the manifest.
        goal: "speed", or "size" for microcontrollers.
        name: What all identifiers begin with: `NAME_invoke`, `NAME_ARENA_BYTES`; models of several
            names can be one program. Without capitals. By default the folder's, as far as it is an
            identifier of C, else "model".
        accept_error: As for `export_tflite`.

    Returns:
        The saved artifact; its details hold "arena_bytes", "goal", "name" and "calls" (kernel and
        torch module of each) too.

    Raises:
        ExportError: As for `export_tflite`.
    """
    path = Path(path)
    artifact.check_free(path)
    name = name_for(path) if name is None else name
    check_new_name(name)
    graph = int8_graph(model, calibration, accept_error=accept_error)
    return save_c99(graph, calibration, path, provenance, goal, name=name)


def export_fpga(
    model: nn.Module | ir.Graph,
    calibration: FloatArray,
    path: Path | str,
    provenance: Mapping[str, Any],
    lanes: int = LANES,
    accept_error: bool = False,
) -> artifact.Artifact:
    """Export a torch model as a folder of Verilog with a testbench of its own.

    Args:
        model: As the following, see `export_tflite`.
        calibration: Its first examples also become the testbench's vectors.
        path: The folder to make; nothing may be there.
        provenance: How the model was made; goes into the manifest.
        lanes: Filters that are computed at a time, 1 .. 8.
        accept_error: As for `export_tflite`.

    Returns:
        The saved artifact; its details hold "cycles_per_inference" and the sizes of memories too.

    Raises:
        ExportError: As for `export_tflite`.
    """
    path = Path(path)
    artifact.check_free(path)
    return save_fpga(
        int8_graph(model, calibration, accept_error=accept_error),
        calibration,
        path,
        provenance,
        lanes,
    )


def save_tflite(
    graph: ir.Graph, examples: FloatArray, path: Path, provenance: Mapping[str, Any]
) -> artifact.Artifact:
    """Save an int8 graph as .tflite; arguments and errors as for `export_tflite`."""
    artifact.check_free(path)
    content = tflite.emit(graph)
    _self_check(TfliteRunner(content), examples)
    return _save(content, path, "tflite", graph, provenance)


def save_onnx(
    graph: ir.Graph,
    examples: FloatArray,
    path: Path,
    provenance: Mapping[str, Any],
    form: Form = "qdq",
) -> artifact.Artifact:
    """Save an int8 graph as .onnx; arguments and errors as for `export_onnx`."""
    artifact.check_free(path)
    with _needing_onnx():
        from edge.targets.onnx import emitter as onnx
    content = onnx.emit(graph, form)
    _self_check(OnnxRunner(content), examples)
    return _save(content, path, f"onnx-{form}", graph, provenance, onnx.file_shape)


def save_c99(
    graph: ir.Graph,
    examples: FloatArray,
    path: Path,
    provenance: Mapping[str, Any],
    goal: Goal = "speed",
    keep: bool = False,
    name: str | None = None,
) -> artifact.Artifact:
    """Save an int8 graph as C99 sources; arguments and errors as for `export_c99`.

    Args:
        graph: As `int8_graph` makes it.
        examples: As `calibration` of `export_c99`, as the following.
        path: Where to.
        provenance: How it was made.
        goal: What to write it for.
        keep: Write no activation over another; the details then hold "kept": activation ->
            (where its first pixel lies, channels, height, width, bytes of a row, of a plane).
        name: What identifiers begin with.
    """
    artifact.check_free(path)
    name = name_for(path) if name is None else name
    check_new_name(name)
    inputs, outputs = _ports(graph)
    integers = inputs[0].quantize(ir.to_graph_layout(examples[:_TEST_VECTORS]))
    expected = evaluate_int8(graph, integers, RUNTIMES["c99"]["compiled"])
    sources = c99.emit(graph, integers, expected, goal, keep, name)
    details: dict[str, Any] = {
        "name": name,
        "arena_bytes": sources.arena_bytes,
        "goal": goal,
        "calls": [list(call) for call in sources.calls],
    }
    if keep:
        details["kept"] = {
            each: (start, p.channels, p.height, p.width, p.row, p.plane)
            for each, (start, p) in sources.kept.items()
        }
    return artifact.save_folder(
        sources.files,
        path,
        target="c99",
        inputs=inputs,
        outputs=outputs,
        provenance=provenance,
        details={**_details(graph, "c99"), **details},
    )


def save_fpga(
    graph: ir.Graph,
    examples: FloatArray,
    path: Path,
    provenance: Mapping[str, Any],
    lanes: int = LANES,
    keep: bool = False,
) -> artifact.Artifact:
    """Save an int8 graph as Verilog; arguments and errors as for `export_fpga`.

    Args:
        graph: As `int8_graph` makes it.
        examples: As `calibration` of `export_fpga`, as the following.
        path: Where to.
        provenance: How it was made.
        lanes: Filters that are computed at a time.
        keep: Give every activation, in the order of the ops, not the output alone.
    """
    artifact.check_free(path)
    inputs, outputs = _ports(graph)
    integers = inputs[0].quantize(ir.to_graph_layout(examples[:_TEST_VECTORS]))
    kept: dict[str, Int8Array] = {}
    expected = evaluate_int8(graph, integers, RUNTIMES["fpga"]["simulated"], kept.__setitem__)
    if keep:
        (result,) = graph.outputs
        values = [kept[op.output] for op in graph.ops if op.output != result]
        expected = np.concatenate([each.reshape(len(each), -1) for each in (*values, expected)], 1)
    sources = fpga.emit(graph, integers, expected, lanes, keep)
    details = {
        "lanes": lanes,
        "cycles_per_inference": sources.cycles,
        "rom_bits": sources.rom_bits,
        "ram_bytes": sources.ram_bytes,
        "weights": sources.weights,
        "weight_bits": sources.weight_bits,
        "gap_bits": sources.gap_bits,
        "given": [[name, list(shape)] for name, shape in sources.given.items()],
    }
    return artifact.save_folder(
        sources.files,
        path,
        target="fpga",
        inputs=inputs,
        outputs=outputs,
        provenance=provenance,
        details={**_details(graph, "fpga"), **details},
    )


def save_graph(graph: ir.Graph, path: Path, provenance: Mapping[str, Any]) -> artifact.Artifact:
    """Save an int8 graph itself, from which every target can be made; errors as for `save_c99`."""
    artifact.check_free(path)
    return _save(graph_file.to_bytes(graph), path, "graph", graph, provenance)


def int8_graph(
    model: nn.Module | ir.Graph,
    calibration: FloatArray,
    weight_bits: int = 8,
    scales: Scaling = "float",
    trained: Trained | None = None,
    accept_error: bool = False,
) -> ir.Graph:
    """Lower, optimise, quantise and slim a model; arguments and errors as for `export_tflite`.

    The graph is compared with the float model on the calibration set, see `edge.quantize.truth`;
    its `origin` holds both.

    Args:
        model: The model.
        calibration: What sets the ranges of activations.
        weight_bits: See `edge.quantize.quantize.quantize`, as for the following.
        scales: "pow2" lets the graph rescale by shifts.
        trained: Integers that the model was trained with, to be kept.
        accept_error: As for `export_tflite`.

    Warns:
        ExportWarning: The graph is rather far from the float model.
    """
    floats, examples = float_graph(model, calibration.shape[1:]), ir.to_graph_layout(calibration)
    if not isinstance(model, ir.Graph) and len(calibration):
        _check_lowered(model, floats, calibration[:_COMPARED])
    graph = quantize(floats, examples, weight_bits=weight_bits, scales=scales, trained=trained)
    found = truth.compare(graph, floats, examples)
    truth.judge(found, graph, "the calibration set", accept_error)
    origin = ir.Origin(floats, found.examples, found.layers, found.same_class)
    return slim(replace(graph, origin=origin))


def _check_lowered(model: nn.Module, floats: ir.Graph, inputs: FloatArray) -> None:
    """Compare the float graph with the model: hooks and randomness may be lost in a trace."""
    with np.errstate(over="ignore", invalid="ignore"):  # the quantiser names what is not finite
        found = evaluate(floats, ir.to_graph_layout(inputs))
        wanted = outputs(model, inputs).reshape(found.shape)
        gap, size = (float(np.abs(each).max(initial=0)) for each in (found - wanted, wanted))
    if gap > _LOWERED_TOLERANCE * size:
        raise ExportError(
            f"the graph of {type(model).__name__} gives other outputs than the model itself, by "
            f"{gap:.3g} where these reach {size:.3g}; a hook, a random number or Python code that "
            f"looks at the data changes what it computes: take it out of the evaluation"
        )


def float_graph(model: nn.Module | ir.Graph, input_shape: Sequence[int]) -> ir.Graph:
    """Lower and optimise a model; arguments and errors as for `edge.read.torch_module.lower`.

    Args:
        model: Or a float graph, which is lowered already.
        input_shape: Of one example, for a torch model.
    """
    graph = model if isinstance(model, ir.Graph) else lower(model, input_shape)
    return passes.optimise(graph)


def load_onnx(source: Path | str | bytes) -> ir.Graph:
    """Read a float ONNX file as the graph that every export takes in place of a torch model.

    Args:
        source: Path of the file, or its bytes; see `edge.read.onnx_file.lower` for what it may
            hold.

    Returns:
        A float graph. Where onnxruntime is installed, it gives the outputs that the file gives
        there; see `edge.read.onnx_compare`.

    Raises:
        ExportError: The file cannot be used, or onnx is not installed.
    """
    with _needing_onnx():
        from edge.read import onnx_file as lower_onnx
    graph = lower_onnx.lower(source)
    check_read(graph, source)
    return graph


def require_onnx() -> None:
    """Raise an ExportError if what writes and runs .onnx files is not installed."""
    with _needing_onnx():
        importlib.import_module("edge.targets.onnx.emitter")
        importlib.import_module("onnxruntime")


@contextmanager
def _needing_onnx() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ExportError(
            f"{error.name} is not installed; run `pip install 'fedkit[onnx]'`"
        ) from error


def _save(
    content: bytes,
    path: Path,
    target: str,
    graph: ir.Graph,
    provenance: Mapping[str, Any],
    file_shape: Callable[[ir.Shape], ir.Shape] = tuple,
) -> artifact.Artifact:
    inputs, outputs = _ports(graph, file_shape)
    return artifact.save(
        content,
        path,
        target=target,
        inputs=inputs,
        outputs=outputs,
        provenance=provenance,
        details=_details(graph, target),
    )


def _details(graph: ir.Graph, target: str) -> dict[str, Any]:
    details = {
        "rounding": RUNTIMES.get(target, {}),
        "activation_bytes": memory.activation_bytes(graph),
    }
    if graph.origin is not None:
        details["float_error"] = asdict(truth.of(graph.origin, graph.outputs[0]))
    return details


def _ports(
    graph: ir.Graph, file_shape: Callable[[ir.Shape], ir.Shape] = tuple
) -> tuple[list[artifact.Port], list[artifact.Port]]:
    """Return the inputs and the outputs."""
    inputs, outputs = (
        [_port(graph.tensors[name], file_shape) for name in names]
        for names in (graph.inputs, graph.outputs)
    )
    return inputs, outputs


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
