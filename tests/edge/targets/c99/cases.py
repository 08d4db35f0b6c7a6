"""Random layers, each run by a kernel and by its reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from edge.define.rounding import fixed_log
from edge.targets.c99 import pack
from edge.targets.c99.pack import Planes
from fedkit.graph.ir import Window
from tests.edge.targets.c99.library import (
    InferenceKernels,
    NormArguments,
    RequantArguments,
    SumArguments,
    TensorBuffer,
)
from tests.naive import int8_kernels as naive

Array = NDArray[Any]


@dataclass(frozen=True)
class ConvShape:
    """A convolution's shape."""

    channels: int
    height: int
    width: int
    outputs: int
    groups: int
    window: Window


LAYERS = (
    ConvShape(3, 9, 33, 5, 1, Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))),
    ConvShape(4, 16, 16, 6, 1, Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))),
    ConvShape(6, 8, 8, 9, 1, Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))),
    ConvShape(8, 4, 4, 4, 1, Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))),
    ConvShape(3, 32, 32, 4, 1, Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))),
    ConvShape(2, 6, 70, 3, 1, Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))),
    ConvShape(1, 66, 66, 2, 1, Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))),
    ConvShape(4, 4, 4, 8, 4, Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))),
    ConvShape(6, 3, 70, 4, 2, Window((1, 1))),
)


def random_layer(rng: Generator) -> ConvShape:
    """Draw sizes, strides, dilations and paddings that differ per axis."""
    groups, inner, outer = (int(n) for n in rng.integers(1, 4, 3))
    kernel, stride, dilation = (
        (int(a), int(b)) for a, b in zip(*rng.integers(1, [[5], [4], [3]], (3, 2)).T, strict=True)
    )
    while True:
        padding = [int(n) for n in rng.integers(0, 4, 4)]
        height, width = (int(n) for n in rng.integers(1, [9, 40]))
        window = Window(kernel, stride, dilation, (padding[0], padding[1], padding[2], padding[3]))
        if min(window.output(height, width)) > 0:
            return ConvShape(groups * inner, height, width, groups * outer, groups, window)


def random_image(rng: Generator, *shape: int) -> Array:
    extreme = rng.choice([-128, 127], shape)
    return np.where(rng.random(shape) < 0.3, extreme, rng.integers(-128, 128, shape))


def random_weights(rng: Generator, shape: tuple[int, ...], bits: int) -> Array:
    most = 2 ** (bits - 1) - 1
    small = rng.integers(-most, most + 1, shape)
    weights = np.where(rng.random(shape) < 0.3, rng.choice([-most, most], shape), small)
    density = rng.choice([0.0, 0.05, 0.3, 1.0])
    signs = rng.choice([-1, 0, 1])  # all of one sign, sometimes
    weights = np.abs(weights) * signs if signs else weights
    return (weights * (rng.random(shape) < density)).astype(np.int8)


def random_requant(rng: Generator, outputs: int) -> RequantArguments:
    shift = rng.choice([31, 32, 33, 36, 38, 40, 43, 62], outputs)
    multiplier = rng.integers(2**30, 2**31, outputs)
    multiplier[rng.random(outputs) < 0.3] = 2**30
    wide = rng.random() < 0.2
    bias = rng.integers(-(2**30), 2**30, outputs) if wide else rng.integers(-5000, 5000, outputs)
    zero, low, high = (int(n) for n in rng.integers(-128, [128, 0, 128]))
    low, high = (-128, 127) if rng.random() < 0.5 else (low, max(low, high))
    return RequantArguments(bias, multiplier, shift, zero, low, high)


def random_sum(rng: Generator) -> SumArguments:
    most, shift = (2**15, 15) if rng.random() < 0.5 else (2**20, 20)
    a, b, zero_a, zero_b, zero = (
        int(n) for n in rng.integers([0, 0, -128, -128, -128], [most, most, 128, 128, 128])
    )
    return SumArguments(
        (a, b),
        (zero_a, zero_b),
        int(rng.choice([1, shift - 1, shift, 30])),
        zero,
        -128,
        127 if rng.random() < 0.5 else int(rng.integers(-128, 128)),
    )


def planes(rng: Generator, shape: tuple[int, ...], halo: tuple[int, int], zero: int) -> Planes:
    """Draw at least the halo asked for."""
    extra_y, extra_x = (int(n) for n in rng.integers(0, 3, 2) * (rng.random() < 0.5))
    channels, height, width = shape
    return Planes(channels, height, width, halo[0] + extra_y, halo[1] + extra_x, zero)


def check_conv(kernels: InferenceKernels, rng: Generator, layer: ConvShape, kind: str) -> None:
    """Compare one convolution, alone or with a sum after it, with its reference."""
    bits = 4 if kind == "stream4" or rng.random() < 0.3 else 8
    shape = layer.outputs, layer.channels // layer.groups, *layer.window.kernel
    weights = random_weights(rng, shape, bits)
    image = random_image(rng, layer.channels, layer.height, layer.width)
    zero = int(rng.integers(-128, 128))
    bare = Planes(layer.channels, layer.height, layer.width)
    x = kernels.load(image, planes(rng, image.shape, pack.halo(bare, layer.window), zero + 128))
    how = random_requant(rng, layer.outputs)
    sums = naive.sums(image, weights, how.bias, layer.window, zero)
    expected = naive.requantise(sums, how.multiplier, how.shift, how.zero, how.low, how.high)
    out = planes(rng, sums.shape, (0, 0), int(rng.integers(256)))
    if rng.random() < 0.5:
        out = replace(out, halo_x=max(0, x.planes.row - out.width))
    added = None
    if rng.random() < 0.5:
        other, total = random_image(rng, *sums.shape), random_sum(rng)
        added = total, kernels.load(other, out)
        expected = _added(total, expected, other)
    result = kernels.conv(kind, x, weights, layer.window, how, out, added, rng.random() < 0.5)
    np.testing.assert_array_equal(result.values(), expected)


def _added(how: SumArguments, a: Array, b: Array) -> Array:
    return naive.add(a, b, how.scales, how.zeros, how.shift, how.zero, how.low, how.high)


def check_add(kernels: InferenceKernels, rng: Generator) -> None:
    shape = tuple(int(n) for n in rng.integers(1, [4, 9, 40]))
    a, b, how = random_image(rng, *shape), random_image(rng, *shape), random_sum(rng)
    layout = planes(rng, shape, (0, 0), int(rng.integers(256)))
    x, y = kernels.load(a, layout), kernels.load(b, layout)
    out = [x, y, TensorBuffer(layout)][rng.integers(3)]
    np.testing.assert_array_equal(kernels.add(how, x, y, out).values(), _added(how, a, b))


def check_table(kernels: InferenceKernels, rng: Generator) -> None:
    shape = tuple(int(n) for n in rng.integers(1, [4, 9, 90]))
    layout = planes(rng, shape, (0, 0), int(rng.integers(256)))
    x, table = random_image(rng, *shape), rng.integers(0, 256, 256).astype(np.uint8)
    read = kernels.load(x, layout)
    found = kernels.look_up(table, read, [read, TensorBuffer(layout)][rng.integers(2)])
    np.testing.assert_array_equal(found.values(), table[x + 128].astype(np.int16) - 128)


def check_pair(kernels: InferenceKernels, rng: Generator) -> None:
    shape = tuple(int(n) for n in rng.integers(1, [6, 9, 40]))
    other = tuple(size if rng.random() < 0.6 else 1 for size in shape)
    sizes = [shape, other] if rng.random() < 0.5 else [other, shape]
    images = [random_image(rng, *size) for size in sizes]
    layouts = [planes(rng, size, (0, 0), int(rng.integers(256))) for size in (*sizes, shape)]
    if rng.random() < 0.5:  # usually all maps of a size lie alike
        layouts = [replace(p, halo_y=1, halo_x=1) for p in layouts]
    tensors = [kernels.load(x, p) for x, p in zip(images, layouts, strict=False)]
    a, b = (x.astype(np.int64) + 128 - p.zero for x, p in zip(images, layouts, strict=False))
    shift = int(rng.integers(14, 31))
    factor, less = int(rng.integers(2**13, 2**14 + 1)), -int(rng.integers(2**15))
    for function, sums, factors in (
        ("ek_mul", a * b * factor, (factor, 0)),
        ("ek_sum_of", a * factor + b * less, (factor, less)),
    ):
        expected = np.clip(((sums + (1 << shift - 1)) >> shift) + layouts[2].zero, 0, 255) - 128
        found = kernels.pair(function, tensors, layouts[2], (*factors, shift))
        np.testing.assert_array_equal(found.values(), expected)


def check_linear(kernels: InferenceKernels, rng: Generator) -> None:
    outputs, inputs = (int(n) for n in rng.integers(1, [9, 100]))
    weights, how = random_weights(rng, (outputs, inputs), 8), random_requant(rng, outputs)
    x, zero = random_image(rng, inputs, 1, 1), int(rng.integers(-128, 128))
    sums = weights.astype(np.int64) @ (x[:, 0, 0] - zero) + how.bias
    expected = naive.requantise(sums, how.multiplier, how.shift, how.zero, how.low, how.high)
    result = kernels.linear(kernels.load(x, Planes(inputs, 1, 1, zero=zero + 128)), weights, how)
    np.testing.assert_array_equal(result.values()[:, 0, 0], expected)
    np.testing.assert_array_equal(kernels.store(result), expected)


def check_mean(kernels: InferenceKernels, rng: Generator) -> None:
    shape = tuple(int(n) for n in rng.integers(1, [9, 9, 40]))
    x, zero, how = random_image(rng, *shape), int(rng.integers(-128, 128)), random_requant(rng, 1)
    how = RequantArguments(how.bias * 0, how.multiplier, how.shift, how.zero, how.low, how.high)
    sums = (x - zero).sum((1, 2), keepdims=True)
    every = np.repeat(how.multiplier, shape[0]), np.repeat(how.shift, shape[0])
    expected = naive.requantise(sums, *every, how.zero, how.low, how.high)
    result = kernels.mean(kernels.load(x, planes(rng, shape, (0, 0), zero + 128)), how)
    np.testing.assert_array_equal(result.values(), expected)


def random_norm(rng: Generator, channels: int) -> NormArguments:
    groups = int(rng.choice([n for n in range(1, channels + 1) if channels % n == 0]))
    shift = int(rng.integers(28, 54))
    most = min(2**30, 2 ** (shift - 18))  # results of some hundreds
    factor = rng.integers(-most, most + 1, channels)
    offset = rng.integers(-(2 ** (shift + 7)), 2 ** (shift + 7), channels) + 2 ** (shift - 1)
    eps = int(rng.choice([1, int(rng.integers(1, 2**20)), 2**60]))
    zero, low, high = (int(n) for n in rng.integers(-128, [128, 0, 128]))
    return NormArguments(groups, factor, offset, eps, shift, zero, low, max(low, high))


def check_norm(kernels: InferenceKernels, rng: Generator) -> None:
    """Of a few pixels, and of more than a table of bytes has entries; some of many channels."""
    few, many = ((1, 1, 1), (9, 17, 33)), ((8000, 1, 1), (9000, 2, 3))
    least, past = many if rng.random() < 0.1 else few
    shape = tuple(int(n) for n in rng.integers(least, past))
    x, zero, how = (
        random_image(rng, *shape),
        int(rng.integers(-128, 128)),
        random_norm(rng, shape[0]),
    )
    if rng.random() < 0.2:
        x[:] = x[0, 0, 0]
    expected = naive.group_norm(
        *(x, zero, how.groups, how.factor, how.offset, how.eps),
        *(how.shift, how.zero, how.low, how.high),
    )
    out = planes(rng, shape, (0, 0), int(rng.integers(256)))
    given = kernels.load(x, planes(rng, shape, (0, 0), zero + 128))
    result = kernels.norm("group", how, given, out)
    np.testing.assert_array_equal(result.values(), expected)
    centred = bool(rng.integers(2))
    names = ("factor", "offset", "eps", "shift", "low", "high")
    rest = {name: getattr(how, name) for name in names}
    expected = naive.channel_norm(x, centred, zero, out_zero=how.zero, **rest)
    result = kernels.norm("channel", replace(how, groups=int(centred)), given, out)
    np.testing.assert_array_equal(result.values(), expected)


def check_pool(kernels: InferenceKernels, rng: Generator) -> None:
    layer = random_layer(rng)
    (rows, columns), (dilation_y, dilation_x) = layer.window.kernel, layer.window.dilation
    # A window that sees padding alone has no mean; torch forbids such.
    most = [(rows - 1) * dilation_y // 2] * 2 + [(columns - 1) * dilation_x // 2] * 2
    top, bottom, left, right = (min(a, b) for a, b in zip(layer.window.padding, most, strict=True))
    window = Window(
        (rows, columns),
        layer.window.stride,
        (1, 1),
        (top // dilation_y, bottom // dilation_y, left // dilation_x, right // dilation_x),
    )
    if min(window.output(layer.height, layer.width)) < 1:
        window = Window((1, 1), window.stride)
    image = random_image(rng, layer.channels, layer.height, layer.width)
    x = kernels.load(image, planes(rng, image.shape, (0, 0), 7))
    for kind, reference in (("avg", naive.avg_pool), ("max", naive.max_pool)):
        expected = reference(image, window)
        out = planes(rng, expected.shape, (0, 0), 9)
        np.testing.assert_array_equal(kernels.pool(kind, x, window, out).values(), expected)


def check_wide_pool(kernels: InferenceKernels, rng: Generator) -> None:
    """Dilated windows, long rows, halos, and windows of more pixels than vectors take."""
    size = int(rng.choice([1, 6])), int(rng.choice([1, 5, 7, 16, 33, 50]))
    kernel = tuple(int(rng.choice([1, 2, 3, 9, 17])) for _ in size)
    dilation, stride = (tuple(int(n) for n in rng.integers(1, 4, 2)) for _ in range(2))
    reach = [(k - 1) * step for k, step in zip(kernel, dilation, strict=True)]
    inner = [max(n, far + 1) for n, far in zip(size, reach, strict=True)]
    padding = [
        int(rng.integers(0, k)) // 2 * step for k, step in zip(kernel, dilation, strict=True)
    ]
    window = Window(
        (kernel[0], kernel[1]),
        (stride[0], stride[1]),
        (dilation[0], dilation[1]),
        (padding[0], padding[0], padding[1], padding[1]),
    )
    image = random_image(rng, 2, *inner)
    x = kernels.load(image, planes(rng, image.shape, (1, 1), int(rng.integers(256))))
    for kind, reference in (("avg", naive.avg_pool), ("max", naive.max_pool)):
        expected = reference(image, window)
        out = planes(rng, expected.shape, (1, 1), 9)
        np.testing.assert_array_equal(kernels.pool(kind, x, window, out).values(), expected)


def check_halved_pool(kernels: InferenceKernels, rng: Generator) -> None:
    """Windows of two columns, two apart, over rows that blocks of 32 windows fit in, or not."""
    height, width = int(rng.integers(3, 6)), int(rng.choice([2, 31, 33, 63, 64, 66, 97, 128, 131]))
    rows, down, left = int(rng.integers(1, 4)), int(rng.integers(1, 3)), int(rng.integers(0, 2))
    window = Window((rows, 2), (down, 2), (1, 1), (rows // 2, 0, left, left))
    image = random_image(rng, 3, height, width)
    x = kernels.load(image, planes(rng, image.shape, (1, 1), int(rng.integers(256))))
    expected = naive.max_pool(image, window)
    out = planes(rng, expected.shape, (int(rng.integers(2)), int(rng.integers(3))), 9)
    np.testing.assert_array_equal(kernels.pool("max", x, window, out).values(), expected)


def check_every_mean(kernels: InferenceKernels, rng: Generator) -> None:
    """Every sum that so many bytes have, a column for each."""
    count = int(rng.integers(1, 66))
    sums = np.arange(255 * count + 1)
    columns = np.clip(sums - 255 * np.arange(count)[:, None], 0, 255)
    x = kernels.load(columns[None] - 128, planes(rng, (1, *columns.shape), (0, 0), 7))
    out = planes(rng, (1, 1, len(sums)), (0, 0), 9)
    found = kernels.pool("avg", x, Window((count, 1)), out).values()
    np.testing.assert_array_equal(found.ravel(), (2 * sums + count) // (2 * count) - 128)


def check_take(kernels: InferenceKernels, rng: Generator) -> None:
    """Runs, repeats, reversals and any order, over rows of one vector, several and parts of one."""
    shape = 3, int(rng.integers(1, 7)), int(rng.choice([1, 7, 15, 16, 17, 40]))
    image = random_image(rng, *shape)
    places = [_places(rng, size) for size in (shape[1], shape[2], shape[0])]
    rows, columns, channels = places
    x = kernels.load(image, planes(rng, shape, (0, 0), int(rng.integers(256))))
    expected = image[np.ix_(channels, rows, columns)]
    out = planes(rng, expected.shape, (0, 0), int(rng.integers(256)))
    np.testing.assert_array_equal(kernels.take(x, places, out).values(), expected)


def _places(rng: Generator, size: int) -> Array:
    start, times = int(rng.integers(size)), int(rng.integers(1, 4))
    orders = (
        np.arange(start, size),
        np.repeat(np.arange(size), times),
        np.arange(size)[::-1],
        rng.integers(0, size, int(rng.integers(1, 40))),
    )
    return orders[int(rng.integers(len(orders)))]


def check_softmax(kernels: InferenceKernels, rng: Generator) -> None:
    """Both kinds, by Python's integers; sums up to the largest that is allowed."""
    shape = int(rng.choice([1, 2, 10, 200])), int(rng.integers(1, 4)), int(rng.integers(1, 20))
    image = random_image(rng, *shape)
    one = min(2**23 - 1, (2**32 - 1) // shape[0])
    entries = (one * np.exp(-np.arange(256) * rng.choice([1e-4, 0.05, 1.0]))).astype(np.int64)
    x = kernels.load(image, planes(rng, shape, (0, 0), int(rng.integers(256))))
    powers = entries[image.max(0) - image]
    total = powers.sum(0)
    expected = np.minimum((256 * powers + total // 2) // total, 255) - 128
    out = planes(rng, shape, (0, 0), 0)
    found = kernels.softmax("softmax", x, entries, 0, 0, out)
    np.testing.assert_array_equal(found.values(), expected)
    step, log_one = int(rng.integers(1, 2**26)), int(fixed_log(np.array([one]))[0])
    below = step * (image - image.max(0)) - (fixed_log(total) - log_one)
    out = planes(rng, shape, (0, 0), 255)
    found = kernels.softmax("log_softmax", x, entries, step, log_one, out)
    nearest = ((below + 2**23) >> 24) + 127
    np.testing.assert_array_equal(found.values(), np.clip(nearest, -128, 127))


def check_layouts(kernels: InferenceKernels, rng: Generator) -> None:
    shape = tuple(int(n) for n in rng.integers(1, [20, 9, 40]))
    image = random_image(rng, *shape)
    x = kernels.load(image, planes(rng, shape, (0, 0), 3))
    np.testing.assert_array_equal(x.values(), image)
    np.testing.assert_array_equal(kernels.flatten(x).values()[:, 0, 0], image.ravel())
    interleaved = kernels.flatten(x, "interleave").values()[:, 0, 0]
    np.testing.assert_array_equal(interleaved, image.transpose(1, 2, 0).ravel())
    top, bottom, left, right = (int(n) for n in rng.integers(0, 3, 4))
    zero = int(rng.integers(-128, 128))
    around = ((0, 0), (top, bottom), (left, right))
    padded = np.pad(image, around, constant_values=zero)
    out = planes(rng, padded.shape, (0, 0), zero + 128)
    np.testing.assert_array_equal(kernels.pad(x, out, top, left).values(), padded)


Check = Callable[[InferenceKernels, Generator], None]
CHECKS: Mapping[str, Check] = {
    "add": check_add,
    "table": check_table,
    "pair": check_pair,
    "linear": check_linear,
    "mean": check_mean,
    "norm": check_norm,
    "pool": check_pool,
    "wide pool": check_wide_pool,
    "halved pool": check_halved_pool,
    "every mean": check_every_mean,
    "take": check_take,
    "softmax": check_softmax,
    "layouts": check_layouts,
}
CONVS = ("sparse", "stream8", "stream4", "dense", "full")


def check_random_conv(kernels: InferenceKernels, rng: Generator, kind: str) -> None:
    layer = random_layer(rng)
    check_conv(kernels, rng, ungrouped(layer) if kind in ("dense", "full") else layer, kind)


def ungrouped(layer: ConvShape) -> ConvShape:
    return replace(layer, groups=1)
