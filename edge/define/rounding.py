"""Rounding policies: how sums and products of a quantised graph become int8 again.

`half_up` is ours, what the C and FPGA targets compute: fixed-point multipliers, one rounding. The
others say what a runtime of others computes, so that the interpreter can be compared with it
integer by integer:

  gemmlowp   the kernels built into TFLite (tflite-runtime): a multiplier of 31 bits whose product
             is rounded twice
  half_even  LiteRT by default, which is XNNPACK where it takes an op: float32 products, halves to
             even; TFLite's own kernels where it does not, as lone ReLUs and average pooling
  onnxruntime  its CPU kernels on x86-64: the same, but zero points join before a sum is rounded,
             and averages are taken in float32

How they round was read in their sources where these are public, and found by comparing every kind
of op with the runtimes, integer by integer, at any scale (tests/edge/test_policies.py). LiteRT
without XNNPACK is not a policy: it is `gemmlowp`, but that depthwise convolutions and means round
halves up in whole blocks of 8 and of 16 channels, elsewhere away from zero; so a value depends on
the place of its channel, which slimming moves. What floats of a file become integers, it rounds
halves to even, tflite-runtime away from zero. `tests/edge/litert_alone.py` computes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import ExportError
from fedkit.core.numerics import (
    FixedPoint,
    Int64s,
    fixed_point,
    multiply_half_up,
    shift_right_half_away,
    shift_right_half_up,
)
from fedkit.graph import integers, ir

Scales = NDArray[np.float64]

Summed = Literal["products", "channels", "single"]
"""What is rescaled: sums over all channels (products of matrices), sums within one channel, or
values that stand alone. Runtimes have kernels for each, which round in their own ways."""

Rescale = Callable[[Int64s, Scales, float, Summed], Int64s]
Mean = Callable[[Int64s, int, ir.Tensor, ir.Tensor], Int64s]
Add = Callable[[Int64s, Int64s, ir.Tensor, ir.Tensor, ir.Tensor], Int64s]
Product = Callable[[Int64s, ir.Tensor, ir.Tensor, ir.Tensor], Int64s]
Average = Callable[[Sequence[Int64s], Int64s, ir.Tensor, bool], Int64s]
Six = Callable[[ir.Graph, ir.Op], int]
Tabulate = Callable[[NDArray[Any], ir.Tensor, bool], Int64s]
Softmax = Callable[[Int64s, ir.Tensor], Int64s]
LogSoftmax = Callable[[Int64s, ir.Tensor, ir.Tensor], Int64s]
Leaky = Callable[[Int64s, float, ir.Tensor, ir.Tensor], Int64s]
Format = Literal["own", "tflite", "onnx"]

_ADD_BITS = 15
_PRODUCT_BITS = 14  # by which products of two differences of int8 stay within int32
_LEAST_OF_XNNPACK = 2.0**-10  # ratio of scales for which it adds
_LEAST_PRODUCT_OF_XNNPACK = 2.0**-16


@dataclass(frozen=True)
class Policy:
    """How real results are rounded.

    Attributes:
        name: Its key in `POLICIES`.
        rescale: (sums [..., channels], scale of the sums per channel, scale of the result, of what
            they are sums) -> the sums in steps of the result.
        mean: (sums of values as they are, how many each, input, output) -> means in steps of the
            output.
        add: (left and right values, left, right, result) -> their sum in steps of the result; the
            values are less their zero points.
        average: (values under each tap of a window, 0 where it pads; how many do not pad; input;
            whether the one window is the whole map) -> averages in steps of the input; the values
            are less their zero points.
        six: (graph, an op with a relu6) -> the integer at which it cuts off, of any size.
        subtract: As `add`, of their difference.
        product: (products of values less their zero points, left, right, result) -> them in steps
            of the result; at most `fedkit.graph.integers.LARGEST_OF_PRODUCTS` each.
        format: Of the files whose numbers these are.
        tabulate: (a function's results, float64 for our own targets and float32 for others; what
            holds them; whether XNNPACK makes the table) -> them as integers, not clipped.
        leaky: (values less their zero point, slope below 0, input, result) -> what a leaky ReLU
            gives, not clipped.
        softmax: (values [..., channels], what they are of) -> the softmax over channels in steps of
            1/256.
        log_softmax: (values [..., channels], what they are of, result) -> its logarithm in steps of
            the result.
        whole: (float32) -> the nearest integers, where a file computes in floats and quantises.
    """

    name: str
    rescale: Rescale
    mean: Mean
    add: Add
    average: Average
    six: Six
    subtract: Add
    product: Product
    format: Format
    tabulate: Tabulate
    leaky: Leaky
    softmax: Softmax
    log_softmax: LogSoftmax
    whole: Callable[[NDArray[Any]], Int64s]


def policy(name: str) -> Policy:
    """Return a policy by its name.

    Raises:
        ExportError: Nothing has that name.
    """
    if name not in POLICIES:
        raise ExportError(f"rounding policy {name!r} is unknown; choose one of {sorted(POLICIES)}")
    return POLICIES[name]


# Ours


def _rescale_half_up(sums: Int64s, scale: Scales, out: float, of: Summed) -> Int64s:
    return multiply_half_up(sums, multipliers(scale / out))


def multipliers(real: Scales) -> FixedPoint:
    """Return the fixed-point factors of `half_up`: 31 significant bits."""
    return fixed_point(real, bits=31)


def add_multipliers(left: float, right: float) -> tuple[int, int, int]:
    """Return (a, b, shift) so that (a * x + b * y) / 2^shift adds int8 values within int32.

    Both are below 2^15, which keeps products of int16 exact in every instruction set.

    Args:
        left: Scale of x, in steps of the sum; at most 128, as is that of y.
        right: Scale of y.
    """
    a, b, shift = _aligned(left, right, _ADD_BITS)
    return (a, b, shift) if max(a, b) < 2**_ADD_BITS else _aligned(left, right, _ADD_BITS - 1)


def _aligned(left: float, right: float, bits: int) -> tuple[int, int, int]:
    shift = min(30, bits - math.frexp(max(left, right))[1])
    return round(math.ldexp(left, shift)), round(math.ldexp(right, shift)), shift


def _add_half_up(x: Int64s, y: Int64s, left: ir.Tensor, right: ir.Tensor, out: ir.Tensor) -> Int64s:
    a, b, shift = add_multipliers(left.scale / out.scale, right.scale / out.scale)
    return shift_right_half_up(a * x + b * y, shift)


def _subtract_half_up(
    x: Int64s, y: Int64s, left: ir.Tensor, right: ir.Tensor, out: ir.Tensor
) -> Int64s:
    return _add_half_up(x, -y, left, right, out)


def product_multiplier(ratio: float) -> tuple[int, int]:
    """Return (a, shift) so that a * x / 2^shift multiplies products of int8 values within int32.

    Args:
        ratio: What a step of the products is in steps of the result, at most
            `fedkit.graph.integers.LARGEST_OF_PRODUCTS`.
    """
    shift = min(30, _PRODUCT_BITS - math.frexp(ratio)[1])
    return round(math.ldexp(ratio, shift)), shift


def _product_half_up(x: Int64s, left: ir.Tensor, right: ir.Tensor, out: ir.Tensor) -> Int64s:
    factor, shift = product_multiplier(left.scale * right.scale / out.scale)
    return shift_right_half_up(factor * x, shift)


def _mean_by(rescale: Rescale) -> Mean:
    """Return a mean that is a sum less its zero points, rescaled."""

    def mean(sums: Int64s, count: int, x: ir.Tensor, out: ir.Tensor) -> Int64s:
        scale = np.asarray(x.scale / count)
        return rescale(sums - count * x.zero_point, scale, out.scale, "channels")

    return mean


def _average_half_up(
    values: Sequence[Int64s], counts: Int64s, x: ir.Tensor, is_whole: bool
) -> Int64s:
    return np.asarray((2 * sum(values) + counts) // (2 * counts))


def _six_half_even(graph: ir.Graph, op: ir.Op) -> int:
    return integers.limits(graph, op)[1]


def _tabulate_half_up(results: NDArray[Any], out: ir.Tensor, by_xnnpack: bool) -> Int64s:
    return _whole(np.floor(results / out.scale + 0.5)) + out.zero_point


_LOG_BITS = 24
_MOST_STEP = 2**40  # beyond any result, and 255 of them within int64


def powers_of(scale: float, channels: int) -> tuple[Int64s, int]:
    """Return e^(-scale * k) for k = 0 .. 255 as integers, and what stands for 1.

    The sum over all channels, and 256 times the largest, are below 2^32.
    """
    one = min((2**32 - 1) // channels, 2**23 - 1)
    return np.rint(one * np.exp(-scale * np.arange(256))).astype(np.int64), one


def log_factors(scale: float, one: int, out: float) -> tuple[int, int]:
    """Return what a step of the input is, and the logarithm of `one`, both in 2^-24 of the output.

    The logarithm is as `fixed_log` has it, so that both are off by the same.
    """
    step = min(round(scale / out * 2**_LOG_BITS), _MOST_STEP)
    return step, int(fixed_log(np.asarray(one, np.int64)))


def fixed_log(x: Int64s) -> Int64s:
    """Return 16 * ln(x) of integers 1 .. 2^32 - 1, in 2^-24, a little below."""
    exponent = np.frexp(x.astype(np.float64))[1].astype(np.int64) - 1
    mantissa = x.astype(np.uint64) << (31 - exponent).astype(np.uint64)
    found = exponent
    for _ in range(_LOG_BITS):
        mantissa = (mantissa * mantissa) >> np.uint64(31)
        carry = mantissa >> np.uint64(32)
        mantissa >>= carry
        found = 2 * found + carry.astype(np.int64)
    return np.asarray((found * _SIXTEEN_LN_2) >> 26)


_SIXTEEN_LN_2 = round(16 * math.log(2) * 2**26)


def _softmax_half_up(x: Int64s, tensor: ir.Tensor) -> Int64s:
    powers = powers_of(tensor.scale, x.shape[-1])[0][x.max(axis=-1, keepdims=True) - x]
    total = powers.sum(axis=-1, keepdims=True)
    return np.asarray(np.minimum((256 * powers + (total >> 1)) // total, 255))


def _log_softmax_half_up(x: Int64s, tensor: ir.Tensor, out: ir.Tensor) -> Int64s:
    powers, one = powers_of(tensor.scale, x.shape[-1])
    step, log_one = log_factors(tensor.scale, one, out.scale)
    most = x.max(axis=-1, keepdims=True)
    total = fixed_log(powers[most - x].sum(axis=-1, keepdims=True)) - log_one
    return shift_right_half_up(step * (x - most) - total, _LOG_BITS)


def _leaky_by(tabulate: Tabulate, dtype: type[np.floating[Any]]) -> Leaky:
    """Return a leaky ReLU that is a table of the real function."""

    def leaky(x: Int64s, slope: float, tensor: ir.Tensor, out: ir.Tensor) -> Int64s:
        real = x.astype(dtype) * dtype(tensor.scale)
        return tabulate(np.where(real >= 0, real, dtype(slope) * real), out, False)

    return leaky


def _whole(steps: NDArray[Any]) -> Int64s:
    """Return whole numbers as integers, those beyond any int8 as some that are."""
    return np.asarray(np.clip(steps, -(2**20), 2**20), np.int64)


# TFLite's own kernels


def _rescale_gemmlowp(sums: Int64s, scale: Scales, out: float, of: Summed) -> Int64s:
    if of == "single":  # by a quotient of float32
        factor = scale.astype(np.float32) / np.float32(out)
        return _multiply_gemmlowp(sums, factor.astype(np.float64))
    # Convolutions and products of matrices are ruy's, whose second rounding is another.
    last = shift_right_half_away if of == "channels" else shift_right_half_up
    return _multiply_gemmlowp(sums, scale / out, last)


def _multiply_gemmlowp(
    x: Int64s, real: Scales, last: Callable[[Int64s, Int64s], Int64s] = shift_right_half_away
) -> Int64s:
    """Return x * real: shifted left, doubled high part of the product, shifted right."""
    fraction, exponent = np.frexp(real)
    multiplier = np.floor(np.ldexp(fraction, 31) + 0.5).astype(np.int64)
    carried = multiplier == 2**31
    multiplier, exponent = multiplier >> carried, exponent + carried
    is_nothing = exponent < -31  # what TFLite makes 0 of, as no shift holds it
    multiplier, exponent = np.where(is_nothing, 0, multiplier), np.where(is_nothing, 0, exponent)
    left, right = np.maximum(exponent, 0), np.maximum(-exponent, 0)
    product = (x << left) * multiplier
    # Rounded half away from zero, but by an addition and a division that cuts off.
    nudge = np.where(product >= 0, 2**30, 1 - 2**30)
    high = np.sign(product + nudge) * (np.abs(product + nudge) // 2**31)
    return last(high, right.astype(np.int64))


def _half_away(real: NDArray[Any]) -> Int64s:
    wide = real.astype(np.float64)
    return np.asarray(np.copysign(np.floor(np.abs(wide) + 0.5), wide), np.int64)


def _mean_gemmlowp(sums: Int64s, count: int, x: ir.Tensor, out: ir.Tensor) -> Int64s:
    # The zero point's share is rounded apart from the sum, in float32.
    ratio = np.float32(x.scale) / (np.float32(count) * np.float32(out.scale))
    share = np.float32(x.zero_point) * np.float32(x.scale) / np.float32(out.scale)
    offset = int(share + np.float32(0.5 if share > 0 else -0.5))
    return _multiply_gemmlowp(sums, np.asarray(ratio, np.float64)) - offset


def _add_gemmlowp(
    x: Int64s, y: Int64s, left: ir.Tensor, right: ir.Tensor, out: ir.Tensor
) -> Int64s:
    return _sum_gemmlowp(x, y, left, right, out, 1)


def _subtract_gemmlowp(
    x: Int64s, y: Int64s, left: ir.Tensor, right: ir.Tensor, out: ir.Tensor
) -> Int64s:
    return _sum_gemmlowp(x, y, left, right, out, -1)


def _sum_gemmlowp(
    x: Int64s, y: Int64s, left: ir.Tensor, right: ir.Tensor, out: ir.Tensor, sign: int
) -> Int64s:
    twice = 2 * max(left.scale, right.scale)
    scaled = [
        _multiply_gemmlowp(value << 20, np.asarray(tensor.scale / twice))
        for value, tensor in ((x, left), (y, right))
    ]
    total = scaled[0] + sign * scaled[1]
    return _multiply_gemmlowp(total, np.asarray(twice / (2**20 * out.scale)))


def _product_gemmlowp(x: Int64s, left: ir.Tensor, right: ir.Tensor, out: ir.Tensor) -> Int64s:
    return _multiply_gemmlowp(x, np.asarray(_product_ratio(left, right, out), np.float64))


def _product_ratio(left: ir.Tensor, right: ir.Tensor, out: ir.Tensor) -> np.float32:
    return np.float32(left.scale) * np.float32(right.scale) / np.float32(out.scale)


def _average_half_away(
    values: Sequence[Int64s], counts: Int64s, x: ir.Tensor, is_whole: bool
) -> Int64s:
    # Away from the integer 0, not from the zero point.
    sums = sum(values) + counts * x.zero_point
    return np.asarray(np.sign(sums) * ((np.abs(sums) + counts // 2) // counts)) - x.zero_point


_NORMS = ("group_norm", "channel_norm")


def _six_half_away(graph: ir.Graph, op: ir.Op) -> int:
    if op.kind in _NORMS:  # a constant in the file
        return _six_half_even(graph, op)
    out = graph.tensors[op.output]
    return out.zero_point + int(_steps_to_six(out) + np.float32(0.5))


def _steps_to_six(out: ir.Tensor) -> np.float32:
    return np.float32(6) / np.float32(out.scale)


def _tabulate_gemmlowp(results: NDArray[Any], out: ir.Tensor, by_xnnpack: bool) -> Int64s:
    steps = results * (np.float32(1) / np.float32(out.scale))
    return _whole(np.trunc(steps + np.copysign(np.float32(0.5), steps))) + out.zero_point


def _leaky_gemmlowp(x: Int64s, slope: float, tensor: ir.Tensor, out: ir.Tensor) -> Int64s:
    ratio = float(_ratio(tensor, out))
    above, below = (
        _multiply_gemmlowp(x, np.asarray(factor))
        for factor in (ratio, ratio * float(np.float32(slope)))
    )
    return np.where(x >= 0, above, below) + out.zero_point


def _float_powers(x: Int64s, tensor: ir.Tensor) -> tuple[NDArray[np.float32], ...]:
    """Return e^(x - largest), and its sum in order, in float32."""
    exponents = np.float32(tensor.scale) * np.arange(256, dtype=np.float32)
    powers = np.exp(-exponents.astype(np.float64)).astype(np.float32)
    each = powers[x.max(axis=-1, keepdims=True) - x]
    return each, np.add.accumulate(each, axis=-1, dtype=np.float32)[..., -1:]


def _softmax_tflite(x: Int64s, tensor: ir.Tensor) -> Int64s:
    each, total = _float_powers(x, tensor)
    return _half_away(each * (np.float32(1) / (total * np.float32(1 / 256))))


def _log_softmax_tflite(x: Int64s, tensor: ir.Tensor, out: ir.Tensor) -> Int64s:
    step, total = np.float32(out.scale), _float_powers(x, tensor)[1]
    log = np.log(total.astype(np.float64)).astype(np.float32)
    most = x.max(axis=-1, keepdims=True).astype(np.float32)
    offset = (np.float32(tensor.scale) * most + log) / step
    return _nearest(np.float32(tensor.scale) / step * x.astype(np.float32) - offset)


# XNNPACK


def _rescale_xnnpack(sums: Int64s, scale: Scales, out: float, of: Summed) -> Int64s:
    if of == "single":  # XNNPACK has no integer kernels for these; TFLite's stay
        return _rescale_gemmlowp(sums, scale, out, of)
    return _rescale_half_even(sums, scale, out, of)


def _rescale_half_even(sums: Int64s, scale: Scales, out: float, of: Summed) -> Int64s:
    factor = scale.astype(np.float32) / np.float32(out)
    return _nearest(sums.astype(np.float32) * factor)


def _mean_xnnpack(sums: Int64s, count: int, x: ir.Tensor, out: ir.Tensor) -> Int64s:
    # Both zero points are one float32 summand, beside which the sum's last digits are cut off.
    factor = _ratio(x, out) * (np.float32(1) / np.float32(count))
    offset = np.float32(out.zero_point) - np.float32(count * x.zero_point) * factor
    steps = sums.astype(np.float32) * factor
    return _nearest(steps + offset) - out.zero_point


def _nearest(real: NDArray[np.float32]) -> Int64s:
    """Return the nearest integers, halves to even."""
    return np.asarray(np.rint(real), np.int64)


def _add_xnnpack(x: Int64s, y: Int64s, left: ir.Tensor, right: ir.Tensor, out: ir.Tensor) -> Int64s:
    if not _xnnpack_adds(left, right, out):
        return _add_gemmlowp(x, y, left, right, out)
    a, b, shift = _aligned(float(_ratio(left, out)), float(_ratio(right, out)), 21)
    return shift_right_half_up(a * x + b * y, shift)


def _subtract_xnnpack(
    x: Int64s, y: Int64s, left: ir.Tensor, right: ir.Tensor, out: ir.Tensor
) -> Int64s:
    if not _xnnpack_adds(left, right, out):
        return _subtract_gemmlowp(x, y, left, right, out)
    return _add_xnnpack(x, -y, left, right, out)


def _product_xnnpack(x: Int64s, left: ir.Tensor, right: ir.Tensor, out: ir.Tensor) -> Int64s:
    factor = _product_ratio(left, right, out)
    if factor < _LEAST_PRODUCT_OF_XNNPACK:
        return _product_gemmlowp(x, left, right, out)
    return _nearest(x.astype(np.float32) * factor)


def _xnnpack_adds(left: ir.Tensor, right: ir.Tensor, out: ir.Tensor) -> bool:
    """Return whether XNNPACK takes an addition; otherwise LiteRT keeps TFLite's own."""
    ratios = [_ratio(each, out) for each in (left, right)]
    return all(_LEAST_OF_XNNPACK <= ratio < integers.LARGEST_MULTIPLIER for ratio in ratios)


def _six_xnnpack(graph: ir.Graph, op: ir.Op) -> int:
    if op.kind in _NORMS:
        return _six_half_even(graph, op)
    out = graph.tensors[op.output]
    inputs = [graph.tensors[name] for name in op.inputs[:2]]
    if op.kind == "relu6" or (op.kind == "add" and not _xnnpack_adds(inputs[0], inputs[1], out)):
        return _six_half_away(graph, op)
    return int(np.rint(_steps_to_six(out) + np.float32(out.zero_point)))


def _tabulate_xnnpack(results: NDArray[Any], out: ir.Tensor, by_xnnpack: bool) -> Int64s:
    if not by_xnnpack:
        return _tabulate_gemmlowp(results, out, by_xnnpack)
    steps = results * (np.float32(1) / np.float32(out.scale))
    return _whole(np.rint(steps + np.float32(out.zero_point)))


def _leaky_xnnpack(x: Int64s, slope: float, tensor: ir.Tensor, out: ir.Tensor) -> Int64s:
    ratio = _ratio(tensor, out)
    below = ratio * np.float32(slope)
    takes = 2.0**-8 <= ratio <= 2.0**7 and abs(below) >= 2.0**-8 and -128 < below <= 128
    if not takes:
        return _leaky_gemmlowp(x, slope, tensor, out)
    factors = (np.rint(256 * each).astype(np.int64) for each in (ratio, below))
    steps = x * np.where(x >= 0, *factors)
    return shift_right_half_up(steps, 8) + out.zero_point


def _ratio(x: ir.Tensor, out: ir.Tensor) -> np.float32:
    return np.float32(x.scale) / np.float32(out.scale)


# onnxruntime


def _rescale_onnxruntime(sums: Int64s, scale: Scales, out: float, of: Summed) -> Int64s:
    if of == "single":  # dequantised and quantised again, which divides
        real = sums.astype(np.float32) * scale.astype(np.float32)
        return _nearest(real / np.float32(out))
    return _rescale_half_even(sums, scale, out, of)


def _mean_onnxruntime(sums: Int64s, count: int, x: ir.Tensor, out: ir.Tensor) -> Int64s:
    factor = np.float32(x.scale) / (np.float32(out.scale) * np.float32(count))
    return _nearest((sums - count * x.zero_point).astype(np.float32) * factor)


def _add_onnxruntime(
    x: Int64s, y: Int64s, left: ir.Tensor, right: ir.Tensor, out: ir.Tensor
) -> Int64s:
    # Two fused multiply-adds, the right operand first, onto what the zero points come to: that is
    # compiled to a product, a fused multiply-add and a difference.
    a, b = _ratio(left, out), _ratio(right, out)
    of_right = np.float64(b * np.float32(right.zero_point))
    of_both = np.float32(np.float64(a) * left.zero_point + of_right)
    offset = np.float32(out.zero_point) - of_both
    total = _fused(a, x + left.zero_point, _fused(b, y + right.zero_point, offset))
    return _nearest(total) - out.zero_point


def _fused(
    factor: np.float32, x: Int64s, offset: np.float32 | NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return factor * x + offset in float32, rounded once: in float64 the product is exact."""
    return (np.float64(factor) * x + np.float64(offset)).astype(np.float32)


def _subtract_onnxruntime(
    x: Int64s, y: Int64s, left: ir.Tensor, right: ir.Tensor, out: ir.Tensor
) -> Int64s:
    # It has no integer form: what is between two scales is float.
    a, b = (
        value.astype(np.float32) * np.float32(tensor.scale)
        for value, tensor in ((x, left), (y, right))
    )
    return _nearest((a - b) / np.float32(out.scale))


def _product_onnxruntime(x: Int64s, left: ir.Tensor, right: ir.Tensor, out: ir.Tensor) -> Int64s:
    steps = x.astype(np.float32) * _product_ratio(left, right, out)
    return _nearest(steps + np.float32(out.zero_point)) - out.zero_point


def _average_onnxruntime(
    values: Sequence[Int64s], counts: Int64s, x: ir.Tensor, is_whole: bool
) -> Int64s:
    if is_whole:  # handed to the kernel of means
        return _mean_onnxruntime(sum(values) + counts * x.zero_point, len(values), x, x)
    step = np.float32(x.scale)
    total = np.zeros_like(values[0], np.float32)
    for value in values:
        total += value.astype(np.float32) * step
    steps = total / counts.astype(np.float32) / step
    return _nearest(steps + np.float32(x.zero_point)) - x.zero_point


def _six_onnxruntime(graph: ir.Graph, op: ir.Op) -> int:
    if op.kind == "relu6":  # of floats, which are quantised again
        out = graph.tensors[op.output]
        return int(np.rint(_steps_to_six(out))) + out.zero_point
    return _six_half_even(graph, op)  # an integer in the file


def _tabulate_onnxruntime(results: NDArray[Any], out: ir.Tensor, by_xnnpack: bool) -> Int64s:
    return _whole(np.rint(results / np.float32(out.scale))) + out.zero_point


def _real_log_softmax(x: Int64s, tensor: ir.Tensor) -> NDArray[np.float64]:
    below = (x - x.max(axis=-1, keepdims=True)) * tensor.scale
    return np.asarray(below - np.log(np.exp(below).sum(axis=-1, keepdims=True)))


def float_powers(tensor: ir.Tensor) -> NDArray[np.float32] | None:
    """Return e^(-scale * k) for k = 0 .. 255 as whole float32 whose sums are exact in any order.

    They are what a softmax over channels of maps is made of in an .onnx file, as onnxruntime's own
    is off by a step for few values in ten millions. None for features, and for many channels, of
    which they would be too coarse: these are left to it.
    """
    channels = tensor.shape[-1]
    if len(tensor.shape) != 4 or channels > _MOST_CHANNELS:
        return None
    one = min((2**24 - 1) // channels, 2**16 - 1)
    return np.asarray(np.rint(one * np.exp(-tensor.scale * np.arange(256))), np.float32)


_MOST_CHANNELS = 2**12


def _softmax_onnxruntime(x: Int64s, tensor: ir.Tensor) -> Int64s:
    powers = float_powers(tensor)
    if powers is not None:
        each = powers[x.max(axis=-1, keepdims=True) - x]
        return _nearest(each * np.float32(256) / each.sum(axis=-1, keepdims=True))
    return _whole(np.rint(256 * np.exp(_real_log_softmax(x, tensor))))


def _log_softmax_onnxruntime(x: Int64s, tensor: ir.Tensor, out: ir.Tensor) -> Int64s:
    return _whole(np.rint(_real_log_softmax(x, tensor) / out.scale))


POLICIES: Mapping[str, Policy] = {
    made.name: made
    for made in (
        Policy(
            name="half_up",
            rescale=_rescale_half_up,
            mean=_mean_by(_rescale_half_up),
            add=_add_half_up,
            average=_average_half_up,
            six=_six_half_even,
            format="own",
            tabulate=_tabulate_half_up,
            leaky=_leaky_by(_tabulate_half_up, np.float64),
            subtract=_subtract_half_up,
            product=_product_half_up,
            softmax=_softmax_half_up,
            log_softmax=_log_softmax_half_up,
            whole=_nearest,  # none of its own files do so
        ),
        Policy(
            name="gemmlowp",
            rescale=_rescale_gemmlowp,
            mean=_mean_gemmlowp,
            add=_add_gemmlowp,
            average=_average_half_away,
            six=_six_half_away,
            format="tflite",
            tabulate=_tabulate_gemmlowp,
            leaky=_leaky_gemmlowp,
            subtract=_subtract_gemmlowp,
            product=_product_gemmlowp,
            softmax=_softmax_tflite,
            log_softmax=_log_softmax_tflite,
            whole=_half_away,
        ),
        Policy(
            name="half_even",
            rescale=_rescale_xnnpack,
            mean=_mean_xnnpack,
            add=_add_xnnpack,
            average=_average_half_away,  # TFLite's own, too
            six=_six_xnnpack,
            format="tflite",
            tabulate=_tabulate_xnnpack,
            leaky=_leaky_xnnpack,
            subtract=_subtract_xnnpack,
            product=_product_xnnpack,
            softmax=_softmax_tflite,
            log_softmax=_log_softmax_tflite,
            whole=_nearest,
        ),
        Policy(
            name="onnxruntime",
            rescale=_rescale_onnxruntime,
            mean=_mean_onnxruntime,
            add=_add_onnxruntime,
            average=_average_onnxruntime,
            six=_six_onnxruntime,
            format="onnx",
            tabulate=_tabulate_onnxruntime,
            leaky=_leaky_by(_tabulate_onnxruntime, np.float32),
            subtract=_subtract_onnxruntime,
            product=_product_onnxruntime,
            softmax=_softmax_onnxruntime,
            log_softmax=_log_softmax_onnxruntime,
            whole=_nearest,
        ),
    )
}
