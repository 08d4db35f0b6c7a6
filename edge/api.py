"""What `import edge` offers, in a few words each; `edge.export` has every target's own options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge import artifact, export
from edge import check as checks
from edge.artifact import Artifact
from edge.passes import Rewritten
from edge.passes.rewrites import EXACT
from edge.quantize.to_int8 import Scaling
from edge.runners import open_runner
from edge.save import save, save_graph
from edge.targets.registry import NAMES, find_row
from edge.targets.tflite.runner import Runner
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.preprocess.raw_input import RawInput

if TYPE_CHECKING:
    from torch import nn

    Model = nn.Module | ir.Graph | Path | str
    """A torch module, a graph, or the path of a float .onnx file."""


def float_graph(
    model: Model, input_shape: Sequence[int] | None = None, tokens: bool = False
) -> ir.Graph:
    """Read a model as a float graph, with all that can be folded folded.

    Args:
        model: A torch module in evaluation mode; the path of a float .onnx file; or a float graph.
        input_shape: Of one example, (channels, height, width), (features,) or (tokens,); a torch
            module alone needs it.
        tokens: Whether a torch module takes tokens.

    Raises:
        ExportError: The model has what cannot be exported, which is named; or there is no shape.
    """
    source = _read(model)
    if input_shape is None and not isinstance(source, ir.Graph):
        raise ExportError(
            f"input_shape is None, and a {type(source).__name__} does not tell it; give the shape "
            "of one example, like (1, 28, 28)"
        )
    return export.float_graph(source, input_shape or (), tokens)


def rewrite(
    model: Model,
    names: Sequence[str] = (EXACT,),
    examples: ir.Inputs | None = None,
    input_shape: Sequence[int] | None = None,
    tokens: bool = False,
) -> Rewritten:
    """Read a model as a float graph with rewrites, and tell what each did.

    The graph can be exported in place of the model; `export_model` takes the names too, and
    compares lossy ones with the model then.

    Args:
        model: As for `float_graph`.
        names: Of `edge.passes.rewrites.REWRITES`; "exact" stands for all exact ones that need not
            be named.
        examples: float32 [n, c, h, w], [n, c, length] or [n, f], or int64 [n, tokens], of what it
            will see; `ln_freeze` needs them.
        input_shape: Of one example, of a torch module without examples.
        tokens: Whether that takes tokens; examples tell it too.

    Raises:
        ExportError: There is no rewrite of a name; or as for `float_graph`.
    """
    source = _read(model)
    shape = input_shape if examples is None else examples.shape[1:]
    if shape is None and not isinstance(source, ir.Graph):
        raise ExportError(
            f"examples and input_shape are None, and a {type(source).__name__} does not tell its "
            "shape; give one of them"
        )
    return export.rewrite(source, shape or (), names, examples, tokens)


def int8_graph(
    model: Model,
    calibration: ir.Inputs,
    weight_bits: int = 8,
    scales: Scaling = "float",
    accept_error: bool = False,
    rewrites: Sequence[str] = (),
) -> ir.Graph:
    """Quantise a model: the integer graph from which every target is made.

    Args:
        model: As for `float_graph`.
        calibration: float32 [n, c, h, w], [n, c, length] or [n, f], or whole numbers [n, tokens]
            of a model that looks them up; 100 to 500 examples of what it will see.
        weight_bits: 8, 6 or 4.
        scales: "pow2" lets the graph rescale by shifts alone.
        accept_error: Take also what is far from the float model, see `edge.quantize.truth`.
        rewrites: Of the float graph, as for `rewrite`.

    Raises:
        ExportError: The model or the calibration set cannot be used, or the integers would be too
            far from the floats.
    """
    return export.int8_graph(
        _read(model), calibration, weight_bits, scales, accept_error=accept_error, rewrites=rewrites
    )


def export_model(
    model: Model,
    calibration: ir.Inputs,
    path: Path | str,
    target: str = "",
    provenance: Mapping[str, Any] | None = None,
    accept_error: bool = False,
    raw_input: RawInput | None = None,
    rewrites: Sequence[str] = (),
) -> Artifact:
    """Export a model as an integer artifact; nothing is ever overwritten.

    Beside it, as `PATH.graph`, goes its integer graph, which `check_artifact` compares it with.

    Args:
        model: As for `float_graph`; or an integer graph that `int8_graph` made.
        calibration: As for `int8_graph`.
        path: The file, or for C and Verilog the folder, to make.
        target: One of `edge.targets.registry.NAMES`, or "graph"; by default what the path ends in
            tells: .tflite, .onnx, -c99, -fpga, .graph.
        provenance: How the model was made; goes into the manifest.
        accept_error: As for `int8_graph`.
        raw_input: What its inputs are made of, sound, pixels or series: the manifest says it, and
            C makes them itself.
        rewrites: Of the float graph, as for `rewrite`.

    Raises:
        ExportError: As for `int8_graph`; or the path is taken, or tells no target.
    """
    where, about = Path(path), provenance or {}
    target = _target(where, target)
    beside = where.with_name(f"{where.name}.graph")
    for each in (where, beside):
        artifact.check_free(each)
    source = _read(model)
    if isinstance(source, ir.Graph) and source.tensors[source.inputs[0]].dtype != "float32":
        if rewrites:
            raise ExportError(
                f"rewrites are {', '.join(rewrites)}, which are of float graphs, and this one is "
                "of integers: give the model that it was made from"
            )
        graph = source
    else:
        of = "" if target == "graph" else target
        graph = export.int8_graph(
            source,
            calibration,
            accept_error=accept_error,
            target=of,
            raw_input=raw_input,
            rewrites=rewrites,
        )
        about = {**about, **({"rewrites": list(rewrites)} if rewrites else {})}
    if target == "graph":
        return save_graph(graph, where, about, raw_input)
    whole = save_graph(graph, beside, about)
    about = {**about, "graph": beside.name, "graph_sha256": whole.sha256}
    try:
        return save(target, graph, calibration, where, about, raw_input)
    except BaseException:
        for each in (beside, artifact.manifest_path(beside)):
            each.unlink()
        raise


def open_artifact(path: Path | str, runtime: str = "") -> Runner:
    """Open an artifact to run it: `predict` takes float32 [n, ...] and returns the outputs.

    Of C and Verilog that compiles and runs the code in the folder, even a stranger's; with the
    runtime "interpreter" nothing of it is run.

    Args:
        path: The artifact.
        runtime: By default the usual one of its target.

    Raises:
        ExportError: The artifact is not as its manifest says, or the runtime is missing or refuses
            it.
    """
    return open_runner(path, runtime)


def check_artifact(
    path: Path | str, inputs: ir.Inputs, runtime: str = "", layers: bool = False
) -> checks.CheckReport:
    """Compare an artifact, integer by integer, with the definition of what it computes.

    Args:
        path: The artifact.
        inputs: float32 [n, c, h, w], [n, c, length] or [n, f], or whole numbers [n, tokens].
        runtime: As for `open_artifact`.
        layers: Compare every layer, not the outputs alone.

    Returns:
        The report; `mismatches` is 0 where all is equal, and `truth` says how far the integers are
        from the float model.

    Raises:
        ExportError: As for `open_artifact`.
    """
    return checks.check(path, inputs, runtime, layers)


def _read(model: Model) -> nn.Module | ir.Graph:
    if not isinstance(model, Path | str):
        return model
    if Path(model).suffix != ".onnx":
        raise ExportError(f"{model} is no .onnx file; give such a file, a torch module or a graph")
    return export.load_onnx(model)


def _target(path: Path, target: str) -> str:
    endings = {**{find_row(name).ending: name for name in NAMES}, ".graph": "graph"}
    told = [name for ending, name in endings.items() if path.name.endswith(ending)]
    found = target or next(iter(told), "")
    if found not in endings.values():
        what = f"target is {target!r}" if target else f"{path} does not tell what to make of it"
        raise ExportError(
            f"{what}; give target as one of {', '.join(endings.values())}, or a path that ends in "
            f"one of {', '.join(endings)}"
        )
    return found
