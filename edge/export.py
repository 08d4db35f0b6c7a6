"""From a torch module, or an ONNX file, to an artifact."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge import artifact, passes
from edge.ops.registry import check_forms
from edge.passes.rewrite import Hints
from edge.passes.share_constants import share_constants
from edge.passes.slim import slim
from edge.quantize import guard, truth
from edge.quantize.from_file import Misfit, check_kept, keep_integers
from edge.quantize.score_masks import masked
from edge.quantize.to_int8 import Scaling, TrainedIntegers, quantize
from edge.save import save
from edge.save import save_graph as save_graph
from edge.targets.c99.calls import Goal
from edge.targets.c_names import check_new_name, name_for
from edge.targets.export_target import needing_package
from edge.targets.fpga.row import LANES as LANES
from edge.targets.onnx.row import Form as Form
from edge.targets.registry import NAMES, find_row
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.interpret import evaluate_all
from fedkit.graph.onnx_compare import check_read
from fedkit.preprocess.raw_input import RawInput

if TYPE_CHECKING:
    from torch import nn

_COMPARED = 4  # examples on which a graph must give what its model gives
_LOWERED_TOLERANCE = 1e-3  # of the largest output: float32 sums in another order differ by less
_ROUNDINGS = 10  # how far other roundings may be off, of how far those of a model are
_NUDGES = 16  # where a ReLU magnifies roundings or not, few of them show by how much


def export_tflite(
    model: nn.Module | ir.Graph,
    calibration: ir.Inputs,
    path: Path | str,
    provenance: Mapping[str, Any],
    accept_error: bool = False,
) -> artifact.Artifact:
    """Export a torch model as an int8 .tflite file.

    Args:
        model: See `fedkit.graph.from_torch.lower` for what it may hold and return. It is not
            changed. Or the float graph that `load_onnx` made of a file.
        calibration: float32 [n, c, h, w], [n, c, length] or [n, f], or int64 [n, tokens] of a model
            that looks tokens up, as torch takes them; 100 to 500 examples of what the model will
            see.
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
    return _export("tflite", model, calibration, path, provenance, accept_error)


def export_onnx(
    model: nn.Module | ir.Graph,
    calibration: ir.Inputs,
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
    return _export("onnx", model, calibration, path, provenance, accept_error, form=form)


def export_c99(
    model: nn.Module | ir.Graph,
    calibration: ir.Inputs,
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
    return _export("c99", model, calibration, path, provenance, accept_error, goal=goal, name=name)


def export_fpga(
    model: nn.Module | ir.Graph,
    calibration: ir.Inputs,
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
    return _export("fpga", model, calibration, path, provenance, accept_error, lanes=lanes)


def _export(
    target: str,
    model: nn.Module | ir.Graph,
    calibration: ir.Inputs,
    path: Path | str,
    provenance: Mapping[str, Any],
    accept_error: bool,
    **options: Any,
) -> artifact.Artifact:
    artifact.check_free(Path(path))
    graph = int8_graph(model, calibration, accept_error=accept_error, target=target)
    return save(target, graph, calibration, Path(path), provenance, **options)


def save_tflite(
    graph: ir.Graph, examples: ir.Inputs, path: Path, provenance: Mapping[str, Any]
) -> artifact.Artifact:
    """Save an int8 graph as .tflite; arguments and errors as for `export_tflite`."""
    return save("tflite", graph, examples, path, provenance)


def save_onnx(
    graph: ir.Graph,
    examples: ir.Inputs,
    path: Path,
    provenance: Mapping[str, Any],
    form: Form = "qdq",
) -> artifact.Artifact:
    """Save an int8 graph as .onnx; arguments and errors as for `export_onnx`."""
    return save("onnx", graph, examples, path, provenance, form=form)


def save_c99(
    graph: ir.Graph,
    examples: ir.Inputs,
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
    return save("c99", graph, examples, path, provenance, goal=goal, keep=keep, name=name)


def save_fpga(
    graph: ir.Graph,
    examples: ir.Inputs,
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
    return save("fpga", graph, examples, path, provenance, lanes=lanes, keep=keep)


def int8_graph(
    model: nn.Module | ir.Graph,
    calibration: ir.Inputs,
    weight_bits: int = 8,
    scales: Scaling = "float",
    trained: TrainedIntegers | None = None,
    accept_error: bool = False,
    target: str = "",
    raw_input: RawInput | None = None,
    rewrites: Sequence[str] = (),
) -> ir.Graph:
    """Lower, optimise, quantise and slim a model; arguments and errors as for `export_tflite`.

    The graph is compared with the float model on the calibration set, see `edge.quantize.truth`;
    its `origin` holds both.

    Args:
        model: The model.
        calibration: What sets the ranges of activations.
        weight_bits: See `edge.quantize.to_int8.quantize`, as for the following.
        scales: "pow2" lets the graph rescale by shifts.
        trained: Integers that the model was trained with, to be kept.
        accept_error: As for `export_tflite`.
        target: What the graph is for: refused at once where it lacks a kind of op.
        raw_input: What its inputs are made of; its span is the range of the input.
        rewrites: Of the float graph, see `edge.passes.rewrites`; of a lossy one an error beyond
            that of `edge.quantize.truth` is refused too.

    Warns:
        ExportWarning: The graph is rather far from the float model, or the calibration set can show
            neither that nor its ranges.
    """
    truth.warn_of_few(calibration)
    read = _read(model, calibration.shape[1:], _are_tokens(calibration))
    floats, examples = passes.optimise(read), ir.to_graph_layout(calibration)
    masked(floats)  # refuses masks of what is no score, before that is compared
    if not isinstance(model, ir.Graph) and len(calibration):
        _check_lowered(model, floats, calibration[:_COMPARED])
    if rewrites:
        floats = _rewritten(
            read, floats, examples.astype(np.float32), rewrites, trained, accept_error
        )
    if target:
        check_target(floats, target)
    if floats.guards and len(examples):
        floats = guard.measured(floats, examples)
    graph = quantize(
        floats,
        examples,
        weight_bits=weight_bits,
        scales=scales,
        trained=trained,
        span=None if raw_input is None else raw_input.span,
    )
    found = truth.compare(graph, floats, examples)
    truth.judge(found, graph, "the calibration set", accept_error)
    origin = ir.Origin(floats, found.examples, found.layers, found.same_class)
    return share_constants(slim(replace(graph, origin=origin, guards={})))


def _rewritten(
    read: ir.Graph,
    floats: ir.Graph,
    examples: ir.FloatArray,
    names: Sequence[str],
    trained: TrainedIntegers | None,
    accept_error: bool,
) -> ir.Graph:
    """Return a graph with rewrites, compared with the one without.

    Args:
        read: As it was read.
        floats: Optimised.
        examples: In the layout of graphs.
        names: Of the rewrites.
        trained: Integers, which no rewrite keeps.
        accept_error: Only warn of a lossy one that changes much.
    """
    if trained is not None:
        raise ExportError(
            f"rewrites are {', '.join(names)}, but the model was trained in integers, which are "
            "kept: leave them out"
        )
    found = passes.rewritten(read, names, Hints(examples))
    lossy = [done.kind for done in found.done if done.applied and not done.exact]
    if lossy:
        truth.judge_rewrites(truth.gap(found.graph, floats, examples), lossy, accept_error)
    return found.graph


def _check_lowered(model: nn.Module, floats: ir.Graph, inputs: ir.Inputs) -> None:
    """Compare the float graph with the model: hooks and randomness may be lost in a trace."""
    from fedkit.graph.from_torch import outputs

    with np.errstate(over="ignore", invalid="ignore"):  # the quantiser names what is not finite
        laid = np.asarray(ir.to_graph_layout(inputs), np.float32)
        found = evaluate_all(floats, {floats.inputs[0]: laid})
        own = outputs(model, inputs)
        for number, (of_graph, of_model) in enumerate(zip(found, own, strict=True)):
            wanted = ir.to_graph_layout(of_model).reshape(of_graph.shape)
            gap, size = (float(np.abs(e).max(initial=0)) for e in (of_graph - wanted, wanted))
            if not gap <= _LOWERED_TOLERANCE * size:
                _judge_gap(model, inputs, number, gap, size)


def _judge_gap(model: nn.Module, inputs: ir.Inputs, number: int, gap: float, size: float) -> None:
    """Refuse a graph one of whose outputs is far from its model's, or say that it is rounding.

    Args:
        model: The model.
        inputs: What it was compared on.
        number: Of the output.
        gap: How far it is off at most.
        size: How large it is.
    """
    name = type(model).__name__
    if not _is_rounding(gap, model, inputs, number):
        raise ExportError(
            f"the graph of {name} gives outputs that differ from the model's own, "
            f"by {gap:.3g} where these reach {size:.3g}; a hook, a random number or Python code "
            "that looks at the data changes what it computes: take it out of the evaluation"
        )
    warnings.warn(
        f"outputs of {name} reach {size:.3g}, and depend by {gap:.3g} on how float32 is rounded: "
        "some of its norms divide by next to nothing, as where a channel is the same for all "
        "examples; prune less, or train on",
        truth.ExportWarning,
        stacklevel=4,
    )


def _is_rounding(gap: float, model: nn.Module, inputs: ir.Inputs, number: int) -> bool:
    """Tell whether a model with weights that are off by roundings is as far from itself."""
    from fedkit.graph.from_torch import outputs

    own, again = (outputs(model, inputs)[number] for _ in range(2))
    if not np.array_equal(own, again):
        return False
    rng = np.random.default_rng(0)
    nudged = (outputs(model, inputs, rng)[number] for _ in range(_NUDGES))
    return any(gap <= _ROUNDINGS * np.abs(each - own).max(initial=0) for each in nudged)


def float_graph(
    model: nn.Module | ir.Graph, input_shape: Sequence[int], tokens: bool = False
) -> ir.Graph:
    """Lower and optimise a model; arguments and errors as for `fedkit.graph.from_torch.lower`.

    Args:
        model: Or a float graph, which is lowered already.
        input_shape: Of one example, for a torch model.
        tokens: Whether that takes tokens.
    """
    return passes.optimise(_read(model, input_shape, tokens))


def rewrite(
    model: nn.Module | ir.Graph,
    input_shape: Sequence[int],
    names: Sequence[str],
    examples: ir.Inputs | None = None,
    tokens: bool = False,
) -> passes.Rewritten:
    """Lower and optimise a model with rewrites; arguments and errors as for `float_graph`.

    Args:
        model: As for `float_graph`.
        input_shape: As for `float_graph`.
        names: Of `edge.passes.rewrites.REWRITES`; "exact" stands for several.
        examples: [n, ...], as torch takes them; some rewrites need them, and the probe takes its
            inputs of them.
        tokens: As for `float_graph`; examples tell it too.
    """
    tokens = tokens if examples is None else _are_tokens(examples)
    inputs = None if examples is None else ir.to_graph_layout(examples)
    given = Hints(None if inputs is None else np.asarray(inputs, np.float32))
    return passes.rewritten(_read(model, input_shape, tokens), names, given)


def _are_tokens(examples: ir.Inputs) -> bool:
    return np.issubdtype(examples.dtype, np.integer)


def _read(
    model: nn.Module | ir.Graph, input_shape: Sequence[int], tokens: bool = False
) -> ir.Graph:
    if isinstance(model, ir.Graph):
        _check_ports(model)
        return model
    from fedkit.graph.from_torch import lower  # torch, which what reads artifacts does not need

    return lower(model, input_shape, tokens)


def check_target(graph: ir.Graph, target: str) -> None:
    """Look whether a target can have a float graph, before any work.

    Args:
        graph: Optimised.
        target: One of ours; of others nothing is known here.

    Raises:
        ExportError: It has no form of some kind of op, or one output alone.
    """
    check_forms(graph, target)
    if target in NAMES and len(graph.outputs) > 1 and not find_row(target).several_outputs:
        named = ", ".join(map(repr, graph.outputs))
        raise ExportError(
            f"the model has {len(graph.outputs)} outputs ({named}), and the {target} target has "
            "one: export for another target, or one output (--output NAME, of a file)"
        )


def _check_ports(graph: ir.Graph) -> None:
    if len(graph.inputs) != 1:
        raise ExportError(
            f"the graph has {len(graph.inputs)} inputs ({', '.join(map(repr, graph.inputs))}), and "
            "an artifact has one: export the model with one"
        )
    if graph.tensors[graph.inputs[0]].dtype != "float32":
        raise ExportError(
            "the graph is of integers already, as its file was; save it as it is, with "
            "`edge.export_model` or the functions that begin with save_"
        )


def load_onnx(
    source: Path | str | bytes,
    shapes: Mapping[str, Sequence[int]] | None = None,
    outputs: Sequence[str] = (),
) -> ir.Graph:
    """Read an ONNX file as the graph that every export takes in place of a torch model.

    Args:
        source: Path of the file, or its bytes; see `fedkit.graph.from_onnx.lower` for what it may
            hold.
        shapes: Of inputs that the file leaves open, by their names, batch in front.
        outputs: Names of the values to compute; what lies behind them is left out. By default the
            file's outputs.

    Returns:
        A float graph; of a file in QDQ form the int8 graph that it is, if its integers fit. Where
        onnxruntime is installed, it gives the outputs that the file gives there; see
        `fedkit.graph.onnx_compare`.

    Raises:
        ExportError: The file cannot be used, or onnx is not installed.

    Warns:
        ExportWarning: Integers of the file cannot be kept; what is read is its float model.
    """
    with needing_package("onnx"):
        from fedkit.graph import from_onnx
    read = from_onnx.read(from_onnx.opened(source, shapes, outputs))
    # As it is, where that is what was read: with data in other files it may be larger than bytes.
    content = read.model.SerializeToString() if shapes or outputs else source
    if not read.integers:
        check_read(read.graph, content, ports=read.ports)
        return read.graph
    try:
        kept = keep_integers(read.graph, read.integers)
    except Misfit as error:
        warnings.warn(
            f"the file is quantised, and its integers are not kept: {error}. It is read as its "
            "float model, without the roundings; calibrate it as one",
            truth.ExportWarning,
            stacklevel=2,
        )
        return read.graph
    check_kept(kept, content, read.ports)
    return kept
