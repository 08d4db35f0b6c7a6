"""Int8 graphs of one op at given scales and zero points, with inputs that reach its sums.

Nothing here is calibrated: a graph takes any scales that `fedkit.graph.ir` allows, as a concat or a
widened range may bring them about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedkit.graph import ir
from fedkit.graph.ops.registry import CHANNEL_AXIS
from fedkit.graph.verify import verify

Random = np.random.Generator
Codes = NDArray[np.int8]
Points = tuple[int, int]
"""Zero points of input and output."""

Case = tuple[ir.Graph, Codes]
"""A graph from "x" to "y", and its inputs [n, h, w, c] or [n, f]."""

Make = Callable[[Random, float, Points], Case]
"""Takes what the scale of the inputs is in steps of the output."""

EVERY = np.arange(-128, 128).astype(np.int8)
MOST_PIXELS = 100
ENDS_AND_MIDDLE = [(-128, -128), (127, 127), (0, 0), (-128, 127), (127, -128), (-3, 41)]


def activation(name: str, shape: ir.Shape, scale: float, zero_point: int) -> ir.Tensor:
    quantization = ir.Quantization((float(np.float32(scale)),), (zero_point,))
    return ir.Tensor(name, shape, "int8", None, quantization)


def constants(
    op: str, kind: ir.Kind, weight: ir.Array, bias: ir.Array, scales: ir.Array, x: ir.Tensor
) -> list[ir.Tensor]:
    """Return weights and biases whose scales, per channel, are those given."""
    rounded = scales.astype(np.float32).astype(np.float64)
    axes = {"w": CHANNEL_AXIS[kind], "b": 0}
    made = []
    for name, data, scale in (("w", weight, rounded), ("b", bias, x.scale * rounded)):
        q = ir.Quantization(tuple(scale.tolist()), (0,) * len(scale), axes[name])
        dtype: ir.DType = "int8" if name == "w" else "int32"
        data = data.astype(dtype)
        made.append(ir.Tensor(f"{op}.{name}", data.shape, dtype, data, q))
    return made


def graph_of(tensors: list[ir.Tensor], *ops: ir.Op) -> ir.Graph:
    graph = ir.Graph({tensor.name: tensor for tensor in tensors}, ops, ("x",), ("y",))
    verify(graph)
    return graph


def a_scale(random: Random) -> float:
    """Return a power of two, the quotient of small integers, or anything else."""
    choices = (
        2.0 ** random.integers(-5, 4),
        random.integers(1, 200) / random.integers(1, 200),
        np.exp(random.uniform(-3, 3)),
    )
    return float(np.float32(random.choice(choices)))


def a_ratio(random: Random) -> float:
    """Return one within 2^-8 .. 2^4; half of them bring sums half way between two integers."""
    if random.random() < 0.5:
        return float(np.exp2(random.uniform(-8, 4)))
    return float(np.clip(random.integers(1, 64) / (2 * random.integers(1, 64)), 2.0**-8, 2.0**4))


def a_scale_for_six(random: Random) -> float:
    """Return a scale of outputs; for every other one 6 is half way between two integers."""
    tie = 12 / (2 * int(random.integers(0, 130)) + 1)
    return float(np.float32(tie)) if random.random() < 0.5 else a_scale(random)


def alone(kind: ir.Kind) -> Make:
    """Every value through an activation by itself."""

    def make(random: Random, ratio: float, points: Points) -> Case:
        out = a_scale_for_six(random) if kind == "relu6" else a_scale(random)
        shape: ir.Shape = (1, 256) if random.random() < 0.5 else (1, 4, 4, 16)
        x = activation("x", shape, out * ratio, points[0])
        y = activation("y", shape, out, points[1])
        return graph_of([x, y], ir.Op(kind, ("x",), ("y",))), EVERY.reshape(shape)

    return make


def addition(random: Random, ratio: float, points: Points) -> Case:
    """Every pair of values; either operand is one channel of the input, by a factor of 1."""
    act: ir.Activation = random.choice(["none", "relu", "relu6"])
    out = a_scale_for_six(random) if act == "relu6" else a_scale(random)
    other = random.choice([ratio, 1.0, 0.5, float(np.exp2(random.uniform(-13, 4)))])
    zero = int(random.choice([-128, -7, 0, 127]))
    operands = ("left", "right") if random.random() < 0.5 else ("right", "left")
    scales = (out * ratio, out * other, out)
    return sum_of_pairs(scales, (points[0], zero, points[1]), act, operands)


def sum_of_pairs(
    scales: Sequence[float],
    zero_points: Sequence[int],
    act: ir.Activation = "none",
    operands: tuple[str, str] = ("left", "right"),
    kind: ir.Kind = "add",
) -> Case:
    """Every pair of values; scales and zero points are those of left, right and the sum."""
    shape = (1, 256, 256, 1)
    x = activation("x", (1, 256, 256, 2), 1.0, 0)
    left, right, y = (
        activation(name, shape, scale, zero)
        for name, scale, zero in zip(("left", "right", "y"), scales, zero_points, strict=True)
    )
    tensors, ops = [x, y, left, right], []
    for channel, each in enumerate((left, right)):
        weight = np.eye(2)[channel].reshape(1, 1, 1, 2)
        made = constants(
            each.name,
            "conv2d",
            weight,
            np.array([-each.zero_point]),
            np.array([each.scale]),
            x,
        )
        tensors += made
        inputs = ("x", *(one.name for one in made))
        ops.append(ir.Op("conv2d", inputs, (each.name,), ir.Window()))
    pairs = np.stack(np.meshgrid(EVERY, EVERY), -1)[None]
    return graph_of(tensors, *ops, ir.Op(kind, operands, ("y",), activation=act)), pairs


def mean(random: Random, ratio: float, points: Points) -> Case:
    """Sums of any number of pixels, every one if there are few."""
    count = int(random.integers(1, MOST_PIXELS + 1))
    high = int(random.choice([n for n in range(1, count + 1) if count % n == 0]))
    out, values = a_scale(random), pixels(random, count)
    x = activation("x", (1, high, count // high, values.shape[-1]), out * ratio, points[0])
    end = (1, x.shape[3]) if random.random() < 0.5 else (1, 1, 1, x.shape[3])
    graph = graph_of([x, activation("y", end, out, points[1])], ir.Op("mean", ("x",), ("y",)))
    return graph, values.reshape(x.shape)


def pixels(random: Random, count: int) -> Codes:
    """Return [count, channels]: pixels that come to each sum, or to many of them."""
    sums = np.arange(-128 * count, 127 * count + 1)
    if len(sums) > 2048:
        sums = np.sort(random.choice(sums, 2048, replace=False))
    whole, rest = np.divmod(sums, count)
    return np.asarray(whole + (np.arange(count)[:, None] < rest), np.int8)


def average(random: Random, ratio: float, points: Points) -> Case:
    """A window that slides, or pads as TFLite can say it; it keeps its scale."""
    high, wide = (int(size) for size in random.integers(1, 9, 2))
    kernel = int(random.integers(1, high + 1)), int(random.integers(1, wide + 1))
    pads = (0, 0, 0, 0)
    stride = int(random.integers(1, 4)), int(random.integers(1, 4))
    if random.random() < 0.4:
        kernel, stride = (3, 3), (1, 1)
        pads = (1, 1, 1, 1)
    window = ir.Window(kernel, stride, (1, 1), pads)
    x = activation("x", (1, high, wide, 64), a_scale(random), points[0])
    y = replace(x, name="y", shape=(1, *window.output(high, wide), 64))
    spread = int(random.choice([2, 30, 255]))
    values = random.integers(-128, 128, (4, 1, 1, 64)) + random.integers(
        -spread, spread + 1, (4, high, wide, 64)
    )
    graph = graph_of([x, y], ir.Op("avg_pool2d", ("x",), ("y",), window))
    return graph, np.clip(values, -128, 127).astype(np.int8)


def average_of_all(random: Random, ratio: float, points: Points) -> Case:
    """A window that is the whole map, at every sum of it."""
    high, wide = (int(size) for size in random.integers(1, 9, 2))
    values = pixels(random, high * wide)
    x = activation("x", (1, high, wide, values.shape[1]), a_scale(random), points[0])
    stride = int(random.integers(1, 9)), int(random.integers(1, 9))
    window = ir.Window((high, wide), stride)
    y = replace(x, name="y", shape=(1, 1, 1, x.shape[3]))
    graph = graph_of([x, y], ir.Op("avg_pool2d", ("x",), ("y",), window))
    return graph, values.reshape(x.shape)


def moving(kind: ir.Kind) -> Make:
    """What chooses or moves values: they are those of the input, or its zero point."""

    def make(random: Random, ratio: float, points: Points) -> Case:
        x = activation("x", (1, 5, 6, 16), a_scale(random), points[0])
        side = int(random.integers(0, 2))
        windows = {
            "max_pool2d": ir.Window((3, 3), (2, 2), (1, 1), (side, 1, 1, side)),
            "pad": ir.Window(padding=(side, 1, 0, 2)),
        }
        window = windows.get(kind)
        sizes: Mapping[str, ir.Shape] = {
            "concat": (1, 5, 6, 48),
            "reshape": (1, 480) if random.random() < 0.5 else (1, 10, 3, 16),
            "flatten_nchw": (1, 480),
        }
        shape = (1, *window.output(5, 6), 16) if window else sizes[kind]
        inputs = ("x",) * (3 if kind == "concat" else 1)
        op = ir.Op(kind, inputs, ("y",), window)
        values = random.integers(-128, 128, (3, 5, 6, 16)).astype(np.int8)
        return graph_of([x, replace(x, name="y", shape=shape)], op), values

    return make


_KERNELS = [(1, 1), (2, 2), (3, 3), (5, 5), (7, 7), (3, 1)]


def weighted(kind: ir.Kind) -> Make:
    """Sums of products within some 300 steps of the output, most of them half way between two.

    Biases bring each channel there. Factors of channels lie up to 2^4 around the ratio, or far
    below, where sums have 30 bits.
    """

    def make(random: Random, ratio: float, points: Points) -> Case:
        act: ir.Activation = random.choice(["none", "relu", "relu6"])
        out = a_scale_for_six(random) if act == "relu6" else a_scale(random)
        shape, end, weight, window = _geometry(random, kind)
        x = activation("x", shape, a_scale(random), points[0])
        y = activation("y", end, out, points[1])
        spread = np.exp2(random.uniform(-4, 0, end[-1]) - int(random.choice([0, 0, 8, 20])))
        if random.random() < 0.6:
            spread = random.integers(1, 16, end[-1]) / 2.0 ** random.integers(4, 9, end[-1])
        scales = np.maximum(ratio * spread, 2.0**-30) * y.scale / x.scale
        factor = x.scale * scales.astype(np.float32) / y.scale
        wanted = random.uniform(-300, 300, end[-1])
        wanted = np.where(random.random(end[-1]) < 0.6, np.floor(wanted) + 0.5, wanted)
        bias = np.clip(np.rint(wanted / factor), -(2**30), 2**30)
        made = constants("op", kind, weight, bias, scales, x)
        op = ir.Op(kind, ("x", *(each.name for each in made)), ("y",), window, act)
        values = random.integers(-128, 128, (3, *shape[1:])).astype(np.int8)
        return graph_of([x, y, *made], op), values

    return make


def _geometry(
    random: Random, kind: ir.Kind
) -> tuple[ir.Shape, ir.Shape, ir.Array, ir.Window | None]:
    """Return shapes of input and output, weights (mostly zeros), and the window."""
    shape: ir.Shape = (1, int(random.integers(1, 100)))
    window = None
    out = int(random.integers(1, 300))
    weight_shape: ir.Shape = (out, shape[1])
    end: ir.Shape = (1, out)
    if kind != "linear":
        kernel = _KERNELS[int(random.integers(len(_KERNELS)))]
        dilation = 2 if kernel == (3, 3) and random.random() < 0.3 else 1
        side = int(random.choice([0, kernel[1] // 2]))
        stride = int(random.choice([1, 2])) if dilation == 1 else 1
        window = ir.Window(kernel, (stride,) * 2, (dilation,) * 2, (side,) * 4)
        channels = int(random.integers(1, 36))
        shape = (1, *(int(size) for size in random.integers(7, 10, 2)), channels)
        out = out % 40 + 1
        weight_shape = (out, *kernel, channels)
        if kind == "depthwise_conv2d":
            out = channels * int(random.choice([1, 1, 2, 3]))
            weight_shape = (1, *kernel, out)
        elif kind == "grouped_conv2d":
            groups, of_group, outs = (int(size) for size in random.integers(2, 10, 3))
            shape, out = (*shape[:3], groups * of_group), groups * outs
            weight_shape = (out, *kernel, of_group)
        end = (1, *window.output(shape[1], shape[2]), out)
    kept = random.random(weight_shape) < random.choice([0.05, 1.0])
    return shape, end, kept * random.integers(-127, 128, weight_shape), window


RESCALING: Mapping[str, Make] = {
    "relu": alone("relu"),
    "relu6": alone("relu6"),
    "add": addition,
    "mean": mean,
    "conv2d": weighted("conv2d"),
    "depthwise_conv2d": weighted("depthwise_conv2d"),
    "grouped_conv2d": weighted("grouped_conv2d"),
    "linear": weighted("linear"),
}
"""Kinds whose result has a scale of its own."""

KEEPING: Mapping[str, Make] = {
    "avg_pool2d": average,
    "avg_pool2d of all": average_of_all,
    **{kind: moving(kind) for kind in ("max_pool2d", "concat", "pad", "reshape", "flatten_nchw")},
}
"""Kinds whose result has the scale of what they read."""
