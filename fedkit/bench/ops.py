"""`fedkit bench ops`: single integer ops, and models made of them, next to LiteRT and onnxruntime.

One example, one thread of one core, all from one integer graph, all in turns: a row's time is the
median of its turns, a ratio the median over pairs of turns.

Of an op `microseconds` is what it adds. In C its call stands 32 times more in the same program, and
what that takes longer is divided by 32. Of the other two, from the invocation of a file with the op
that of a file without it is taken: of what comes before it, or, where it is alone, of a file whose
only op has a single value. That leaves out what every invocation costs, which is their favour, and
what it costs to bring an input into our layout, which is ours; in a model both are paid once.

A concat of channels has no row: in C what it joins is written where it belongs, by no call.

Of a model it is a whole inference, input and output included. Weights are random under random
masks, as in `fedkit bench infer`. A block of a Transformer is one too, of DeiT-tiny's size.
"""

from __future__ import annotations

import re
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from edge.export import float_graph, save_c99, save_onnx, save_tflite
from edge.passes.slim import slim
from edge.quantize.to_int8 import quantize
from edge.runners import open_runner
from fedkit.bench import markdown
from fedkit.bench.infer import (
    Timed,
    median_ratio,
    pruned_model,
    random_model,
    times_in_turns,
)
from fedkit.bench.sparsetrain import one_core
from fedkit.core.errors import BenchError
from fedkit.graph import ir
from fedkit.graph.ops.norms import Groups
from fedkit.graph.ops.registry import SPECS
from fedkit.graph.places import Places
from fedkit.graph.spec import graph_of
from fedkit.nn.transformers import Sizes, TransformerBlock

_SEED = 0
_MORE = 32
_CALIBRATION = 16
_MEASURED = "measured"
_CALL = re.compile(rf"^    ek_\w+\(.*\); /\* {_MEASURED} \*/\n", re.MULTILINE)
_TARGETS = {"c99": save_c99, "litert": save_tflite, "ort": save_onnx}
Nets = Mapping[str, Sequence[float]]
"""Target -> microseconds of what is measured, by turn."""


@dataclass(frozen=True)
class TimedOp:
    """One op at one size.

    Attributes:
        name: In the rows.
        floats: A float graph whose last op is the one.
    """

    name: str
    floats: ir.Graph

    @property
    def shape(self) -> ir.Shape:
        """Of what the op reads, of one example, channels last."""
        return self.floats.tensors[self.floats.ops[-1].inputs[0]].shape[1:]


MAP = (1, 14, 14, 192)
"""As many values as 196 tokens of 192."""

FUNCTIONS = (
    *("sigmoid", "tanh", "silu", "gelu", "hard_sigmoid", "hard_swish", "elu", "leaky_relu"),
    *("softplus", "exp"),
)


def cases() -> Iterator[TimedOp]:
    """Yield an op after the other."""
    for kind in FUNCTIONS:
        attributes = SPECS[kind].example(np.random.default_rng(_SEED)).ops[-1].attributes
        made = _last(kind, ("x",), attributes=attributes)
        yield TimedOp(kind, graph_of((MAP, MAP), (), made))
    relu = ir.Op("relu", ("x",), ("r",))
    for kind in ("add", "sub", "mul"):
        made = _last(kind, ("x", "r"))
        yield TimedOp(kind, graph_of((MAP, MAP, MAP), (), relu, made))
    pixel = (1, 1, 1, MAP[3])
    mean = ir.Op("mean", ("x",), ("m",))
    yield TimedOp("mul by channel", graph_of((MAP, pixel, MAP), (), mean, _last("mul", ("x", "m"))))
    yield TimedOp("mean", graph_of((MAP, pixel), (), _last("mean", ("x",))))
    for kind in ("softmax", "log_softmax"):
        yield TimedOp(kind, graph_of((MAP, MAP), (), _last(kind, ("x",))))
    yield from _moves()
    yield from _weighted()
    scale, shift = np.ones(MAP[3]), np.zeros(MAP[3])
    norm = _last("group_norm", ("x", "c0", "c1"), attributes=Groups(1e-5, 32))
    yield TimedOp("group_norm, 32 groups", graph_of((MAP, MAP), (scale, shift), norm))


def _last(kind: ir.Kind, inputs: tuple[str, ...], **of_op: Any) -> ir.Op:
    return ir.Op(kind, inputs, ("y",), source=_MEASURED, **of_op)


def _moves() -> Iterator[TimedOp]:
    height, width, channels = MAP[1:]
    half, twice = tuple(range(channels // 2)), tuple(np.arange(2 * height) // 2)
    shuffled = tuple(np.arange(channels).reshape(3, -1).T.ravel().tolist())
    moves = {
        "take, half the channels": (Places(channels=half), (height, width, channels // 2)),
        "take, shuffled channels": (Places(channels=shuffled), MAP[1:]),
        "take, nearest resize by 2": (
            Places(rows=twice, columns=twice),
            (2 * height, 2 * width, channels),
        ),
    }
    for name, (places, end) in moves.items():
        made = _last("take", ("x",), attributes=places)
        yield TimedOp(name, graph_of((MAP, (1, *end)), (), made))
    for kind in ("avg_pool2d", "max_pool2d"):
        window = ir.Window((2, 2), (2, 2))
        made = _last(kind, ("x",), window=window)
        yield TimedOp(f"{kind} 2x2", graph_of((MAP, (1, 7, 7, channels)), (), made))


def _weighted() -> Iterator[TimedOp]:
    channels = MAP[3]
    window = ir.Window((3, 3), padding=(1, 1, 1, 1))
    kinds: Mapping[str, tuple[ir.Kind, ir.Shape, ir.Window]] = {
        "conv2d 1x1": ("conv2d", (channels, 1, 1, channels), ir.Window()),
        "conv2d 3x3, 8 groups": ("grouped_conv2d", (channels, 3, 3, channels // 8), window),
        "conv2d 3x3, depthwise": ("depthwise_conv2d", (1, 3, 3, channels), window),
        "conv1d 5": ("conv2d", (64, 1, 5, 64), ir.Window((1, 5), padding=(0, 0, 2, 2))),
    }
    random = np.random.default_rng(_SEED)
    for name, (kind, of_weight, slid) in kinds.items():
        shape = (1, 1, 128, 64) if name == "conv1d 5" else MAP
        for density in (1.0, 0.1):
            kept = random.random(of_weight) < density
            constants = kept * random.standard_normal(of_weight), np.zeros(shape[3])
            made = _last(kind, ("x", "c0", "c1"), window=slid)
            yield TimedOp(f"{name}, {density:.0%}", graph_of((shape, shape), constants, made))


MODELS = (
    *(("mobilenetv3-small", (3, 96, 96)), ("mobilenetv3-small", (3, 32, 32))),
    *(("har-cnn", (9, 128)), ("vit-tiny", (1, 28, 28)), ("slab-vit-tiny", (1, 28, 28))),
)
"""Measured at 100 % and 10 %, as is a block of a Transformer."""

TOKENS = (MAP[3], MAP[1] * MAP[2])
_BLOCK = Sizes(MAP[3], 3, 4 * MAP[3], 1, norm_first=True, biases=True)


class SeriesBlock(nn.Module):
    """A block of a Transformer, of tokens that lie as steps of a series."""

    def __init__(self) -> None:
        super().__init__()
        self.block = TransformerBlock(_BLOCK)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, width, tokens] of as many."""
        out: Tensor = self.block(x.transpose(1, 2)).transpose(1, 2)
        return out


def bench_ops(quick: bool) -> dict[str, Any]:
    """Measure ops of every family, then MobileNetV3-small, a convnet of series, and Transformers.

    Args:
        quick: Three ops, and few turns.

    Raises:
        ExportError: A runtime or a C compiler is missing.
    """
    found, turns = list(cases()), 3 if quick else 15
    rows = [row for case in (found[:3] if quick else found) for row in op_rows(case, turns)]
    for density in () if quick else (1.0, 0.1):
        for name, shape in MODELS:
            rows += model_rows(name, random_model(name, density, shape), shape, density, turns)
        block = pruned_model(SeriesBlock, density)
        rows += model_rows("transformer block", block, TOKENS, density, turns)
    return {"benchmark": "ops", "seed": _SEED, "threads": 1, "rows": rows}


def op_rows(case: TimedOp, turns: int) -> list[dict[str, Any]]:
    """Measure an op; a row per target.

    Args:
        case: The op.
        turns: How often each program is timed.
    """
    without = _without(case.floats)
    with tempfile.TemporaryDirectory(prefix="fedkit-bench-") as folder:
        paths = _saved(case.floats, Path(folder))
        runners: dict[str, Timed] = {target: open_runner(path) for target, path in paths.items()}
        _repeat(paths["c99"])
        runners["c99 more"] = open_runner(paths["c99"], changed=True)
        for target, path in _saved(without, Path(folder) / "without").items():
            runners[f"{target} without"] = open_runner(path)
        with one_core():
            times = {name: np.array(each) for name, each in times_in_turns(runners, turns).items()}
    nets = {
        "c99": (times["c99 more"] - times["c99"]) / _MORE,
        **{target: times[target] - times[f"{target} without"] for target in ("litert", "ort")},
    }
    return _rows({"op": case.name, "shape": list(case.shape)}, nets)


def _saved(floats: ir.Graph, folder: Path) -> dict[str, Path]:
    examples = _inputs(floats.tensors[floats.inputs[0]].shape[1:])
    return _artifacts(quantize(floats, examples), ir.from_graph_layout(examples), folder)


def _artifacts(graph: ir.Graph, inputs: ir.FloatArray, folder: Path) -> dict[str, Path]:
    return {
        target: save(graph, inputs, folder / target, {}).path for target, save in _TARGETS.items()
    }


def _inputs(shape: Sequence[int]) -> ir.FloatArray:
    random = np.random.default_rng(_SEED)
    return random.standard_normal((_CALIBRATION, *shape)).astype(np.float32)


def _without(floats: ir.Graph) -> ir.Graph:
    """Return the graph of what comes before the last op, or of an op that costs nothing."""
    before = [name for name in floats.ops[-1].inputs if floats.producer(name)]
    if before:
        return ir.until(floats, before[0])
    return graph_of(((1, 1), (1, 1)), (), ir.Op("relu", ("x",), ("y",)))


def _repeat(path: Path) -> None:
    """Let a C model call the kernels of its last op more often; what it computes is no matter."""
    source = path / "model.c"
    text = source.read_text(encoding="utf-8")
    calls = _CALL.findall(text)
    if not calls:
        raise BenchError(f"{source} has no call that is marked as {_MEASURED}")
    source.write_text(_CALL.sub(lambda found: found[0] * (1 + _MORE), text), encoding="utf-8")


def model_rows(
    name: str, model: nn.Module, shape: Sequence[int], density: float, turns: int
) -> list[dict[str, Any]]:
    """Measure a whole model; a row per target.

    Args:
        name: In the rows.
        model: The model.
        shape: Of an example, as torch takes it.
        density: Kept share of all prunable weights.
        turns: How often each program is timed.
    """
    inputs = _inputs(shape)
    graph = slim(quantize(float_graph(model, shape), ir.to_graph_layout(inputs)))
    with tempfile.TemporaryDirectory(prefix="fedkit-bench-") as folder:
        paths = _artifacts(graph, inputs, Path(folder))
        runners: dict[str, Timed] = {target: open_runner(path) for target, path in paths.items()}
        with one_core():
            times = times_in_turns(runners, turns)
    return _rows({"op": f"{name}, {density:.0%}", "shape": list(shape)}, times)


def _rows(what: Mapping[str, Any], times: Nets) -> list[dict[str, Any]]:
    return [
        {
            **what,
            "target": target,
            "microseconds": round(statistics.median(times[target]), 3),
            **{
                f"ratio_{other}": round(median_ratio(times[other], times[target]), 3)
                if target == "c99"
                else None
                for other in ("litert", "ort")
            },
        }
        for target in times
    ]


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table of results."""
    found: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in result["rows"]:
        shape = " x ".join(map(str, row["shape"]))
        found.setdefault((row["op"], shape), {})[row["target"]] = row
    head = (
        "| op or model | input | C us | LiteRT us | onnxruntime us | LiteRT / C | onnxruntime / C |"
    )
    lines = (
        f"| {name} | {shape} | "
        + " | ".join(f"{rows[target]['microseconds']:,.1f}" for target in _TARGETS)
        + f" | {markdown.times(rows['c99']['ratio_litert'])}"
        + f" | {markdown.times(rows['c99']['ratio_ort'])} |"
        for (name, shape), rows in found.items()
    )
    return markdown.table(head, lines)
