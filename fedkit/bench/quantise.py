"""`fedkit bench quantise`: our 8 bits next to onnxruntime's static quantisation of one float model.

Models are trained as for `fedkit bench exact`. Both quantisers see the float model and the same 256
calibration images, and both have a scale for each output channel of the weights, ranges from the
smallest to the largest value seen, and int8 activations. onnxruntime quantises the file that torch
exports; ours runs as compiled C, which gives the integers of every target.

`noise` is the root mean square of what the logits of the test images are off the float model's, of
that by which these differ from their mean; `same_class` the share of images whose class is the
same. A finished cell is kept in runs/quantise: stopped in any way, the same command continues.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edge.export import int8_graph, save_c99
from edge.targets.c99.runner import CompiledRunner
from edge.targets.export_target import needing_package
from fedkit.bench import markdown
from fedkit.bench.exact import CALIBRATION, SEED, Cell, reference_of, trained
from fedkit.bench.kept import run_kept
from fedkit.core.provenance import made_by
from fedkit.graph.interpret import FloatArray
from fedkit.tasks import load_task

KEPT = Path("runs/quantise")
MODELS = ("resnet8", "ds-cnn", "mobilenetv2-w0.25", "mobilenetv3-small")
_OPSET = 17


def bench_quantise(quick: bool) -> dict[str, Any]:
    """Compare both on every cell that is not kept yet, and return all.

    Args:
        quick: ResNet-8 alone, dense, on few examples, and nothing kept.

    Raises:
        ExportError: onnx, onnxruntime or a C compiler is missing.
        DataError: The data set is not installed.
    """
    if quick:
        rows = run(Cell("resnet8", 1.0, 600, 200))["rows"]
    else:
        cells = [Cell(model, 1.0, 20_000, 10_000) for model in MODELS]
        rows = [row for kept in run_kept(cells, run, KEPT) for row in kept["rows"]]
    return {"benchmark": "quantise", "task": "fashion-mnist", "seed": SEED, "rows": rows}


def run(cell: Cell) -> dict[str, Any]:
    """Train a model and quantise it by both; return a row for each."""
    task, state = load_task("fashion-mnist"), trained(cell)
    reference = reference_of(cell.model, task)
    model, calibration = reference.module(state).eval(), task.train_data().inputs[:CALIBRATION]
    test = task.test_data().take(np.arange(cell.images))
    real = np.asarray(reference.outputs(state, test.inputs), np.float64)
    spread = np.sqrt(np.square(real - real.mean()).mean())
    rows = []
    with tempfile.TemporaryDirectory(prefix="fedkit-bench-") as folder:
        for maker, quantised in (("ours", _ours), ("onnxruntime", _onnxruntimes)):
            logits = quantised(model, calibration, test.inputs, Path(folder))
            off = np.sqrt(np.square(logits - real).mean())
            rows.append(
                {
                    "commit": made_by()["commit"],
                    "model": cell.model,
                    "density": round(state.density, 4),
                    "quantiser": maker,
                    "accuracy_float": task.metric(real, test.targets),
                    "accuracy": task.metric(logits, test.targets),
                    "same_class": float((logits.argmax(1) == real.argmax(1)).mean()),
                    "noise": round(float(off / spread), 5),
                }
            )
    return {"rows": rows}


def _ours(
    model: nn.Module, calibration: FloatArray, inputs: FloatArray, folder: Path
) -> FloatArray:
    graph = int8_graph(model, calibration, accept_error=True)
    runner = CompiledRunner(save_c99(graph, calibration, folder / "c99", {}).path)
    return np.asarray(runner.predict(inputs))


def _onnxruntimes(
    model: nn.Module, calibration: FloatArray, inputs: FloatArray, folder: Path
) -> FloatArray:
    with needing_package("onnx"):
        import onnxruntime
        from onnxruntime import quantization as ort
    given, made = folder / "float.onnx", folder / "int8.onnx"
    given.write_bytes(_file(model, inputs.shape[1:]))
    ort.quantize_static(
        given,
        made,
        _Reader(iter(calibration)),
        quant_format=ort.QuantFormat.QDQ,
        per_channel=True,
        activation_type=ort.QuantType.QInt8,
        weight_type=ort.QuantType.QInt8,
    )
    session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": one[None]})[0] for one in inputs])


class _Reader:
    """Gives images one by one, as onnxruntime asks for them."""

    def __init__(self, images: Iterator[FloatArray]) -> None:
        self._images = images

    def get_next(self) -> dict[str, FloatArray] | None:
        """Return the next one; None behind the last."""
        one = next(self._images, None)
        return None if one is None else {"x": one[None]}


def _file(model: nn.Module, shape: tuple[int, ...]) -> bytes:
    """Return the float model as torch exports it."""
    file, example = io.BytesIO(), torch.zeros(1, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is the older one
        torch.onnx.export(
            model,
            (example,),
            file,  # type: ignore[arg-type]  # buffers are documented for this exporter
            dynamo=False,
            opset_version=_OPSET,
            input_names=["x"],
        )
    return file.getvalue()


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table: a row for each model and density, both side by side."""
    head = (
        "| model | density | float | ours | onnxruntime | noise, ours | noise, onnxruntime "
        "| same class, ours | same class, onnxruntime |"
    )
    found: dict[tuple[str, float], dict[str, Mapping[str, Any]]] = {}
    for row in result["rows"]:
        found.setdefault((row["model"], row["density"]), {})[row["quantiser"]] = row
    lines = []
    for (model, density), by in found.items():
        both = by["ours"], by["onnxruntime"]
        real = both[0]["accuracy_float"]
        cells = [f"{100 * (row['accuracy'] - real):+.2f}" for row in both]
        cells += [f"{row['noise']:.4f}" for row in both]
        cells += [f"{row['same_class']:.2%}" for row in both]
        lines.append(f"| {model} | {density:.0%} | {real:.2%} | {' | '.join(cells)} |")
    return markdown.table(head, lines)
