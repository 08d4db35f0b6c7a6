"""`fedkit import`: what can be read of an ONNX file, and what is made of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Column, Table

from edge import export_model
from edge.export import load_onnx
from edge.quantize.truth import ExportWarning
from edge.targets.export_target import needing_package
from fedkit.core.errors import ConfigError
from fedkit.core.text import terminal_text
from fedkit.graph import ir
from fedkit.graph.interpret import FloatArray
from fedkit.graph.layouts import model_shape

_EXAMPLES = 16  # of random numbers, as vectors for a file whose integers are known


def shapes_of(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return name of an input -> its shape, of texts like NAME=1x3x224x224 or 1x3x224x224.

    Raises:
        ConfigError: A text is not such, or two are about one input.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        parts = sizes.split("x")
        if not all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts):
            raise ConfigError(
                f"input-shape is {text!r}; give NAME=1x3x224x224, or 1x3x224x224 where the file "
                "has one input"
            )
        if name in shapes:
            raise ConfigError(f"input-shape tells the shape of {name!r} twice; give one")
        shapes[name] = tuple(map(int, parts))
    return shapes


def support(
    path: Path, shapes: dict[str, tuple[int, ...]], outputs: Sequence[str]
) -> dict[str, Any]:
    """Return what becomes of each op of a file: `ops`, how many are `refused`, any `problem`."""
    with needing_package("onnx"):
        from fedkit.graph import from_onnx, onnx_support
    found = onnx_support.support(from_onnx.opened(path, shapes, outputs))
    rows = [asdict(row) for row in found.rows]
    return {"file": str(path), "ops": rows, "refused": found.refused, "problem": found.problem}


def support_table(found: dict[str, Any]) -> Table:
    """Return it for people."""
    table = Table(
        "op", Column("nodes", justify="right"), "", Column("why, and what to do", overflow="fold")
    )
    for row in found["ops"]:
        taken, refused = row["count"] - row["refused"], row["refused"]
        state = "taken" if not refused else f"{refused} refused" if taken else "refused"
        reasons = "\n".join(terminal_text(each) for each in row["reasons"])
        table.add_row(terminal_text(row["op"]), str(row["count"]), state, reasons)
    return table


def read(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    outputs: Sequence[str],
    say: Callable[[str], None],
) -> ir.Graph:
    """Read a file, and say what was read."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ExportWarning)
        graph = load_onnx(path, shapes, outputs)
    for each in caught:
        say(f"warning: {each.message}")
    return graph


def about(graph: ir.Graph) -> dict[str, Any]:
    """Return what a graph takes and gives, in the layout of models: channels in front."""

    def shape_of(tensor: ir.Tensor) -> list[int]:
        return [tensor.shape[0], *model_shape(tensor.shape, len(tensor.shape))]

    def ports(names: Sequence[str]) -> list[dict[str, Any]]:
        return [{"name": n, "shape": shape_of(graph.tensors[n])} for n in names]

    kind = graph.tensors[graph.inputs[0]].dtype
    return {
        "graph": "int8, as in the file" if kind == "int8" else "float",
        "graph_ops": len(graph.ops),
        "inputs": ports(graph.inputs),
        "outputs": ports(graph.outputs),
    }


def export(
    graph: ir.Graph,
    calibration: Path | None,
    out: Path,
    accept_error: bool,
    rewrites: Sequence[str] = (),
) -> dict[str, Any]:
    """Make an artifact of what was read.

    Raises:
        ConfigError: There are no examples, and a float graph needs some; or they are no array.
        ExportError: As for `edge.export_model`.
    """
    examples = _random(graph) if calibration is None else examples_of(calibration)
    made = export_model(graph, examples, out, accept_error=accept_error, rewrites=rewrites)
    return {"artifact": str(made.path), "target": made.target, "artifact_bytes": made.size}


def examples_of(path: Path) -> FloatArray:
    """Read examples, as models take them, of a .npy file."""
    try:
        return np.asarray(np.load(path, allow_pickle=False), np.float32)
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise ConfigError(
            f"calibration {path} is no array of numbers in a .npy file: {error}; numpy.save makes "
            "one, [n, channels, height, width] or [n, features]"
        ) from error


def _random(graph: ir.Graph) -> FloatArray:
    x = graph.tensors[graph.inputs[0]]
    if x.dtype != "int8":
        raise ConfigError(
            "calibration is not given; a float file needs examples of what the model will see: "
            "--calibration FILE.npy, [n, channels, height, width] or [n, features]"
        )
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (_EXAMPLES, *x.shape[1:]))
    real = (x.scale * (codes - x.zero_point)).astype(np.float32)
    return ir.from_graph_layout(real)


def read_table(found: dict[str, Any]) -> Table:
    """Return what was read for people."""
    table = Table("", "read")
    for key, value in found.items():
        if key in ("inputs", "outputs"):
            value = ", ".join(f"{port['name']} {port['shape']}" for port in value)
        table.add_row(key.replace("_", " "), terminal_text(str(value)))
    return table
