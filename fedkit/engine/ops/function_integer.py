"""Functions of one value in integers: a table of values and one of slopes, anew for each batch.

The tensor is read to 8 bits in one unit for all its channels, which the tables are indexed by. Both
hold 15 bits: what a function writes is narrowed to 8 bits once the batch is known, like any sum.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from ctypes import byref

import numpy as np
from numpy.typing import NDArray

from fedkit.core.numerics import shift_right_half_even
from fedkit.engine.integer.constants import CODE, WIDE, Chain, Mix, Read, first_bits
from fedkit.engine.integer.integer_op import LEAST, IntegerFamily, IntegerOp, Slope, Units
from fedkit.engine.integer.native_backend import (
    NativeBackend,
    NativeOp,
    address,
    chain_struct,
    read_struct,
)
from fedkit.engine.integer.numpy_backend import Array, NumpyOp
from fedkit.engine.kernels import int_native
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.function import MOST, FunctionOp
from fedkit.graph.ops.functions import BY_KIND

Floats = NDArray[np.float64]
Table = NDArray[np.int16]

_MIDDLE = CODE + 1
"""Where a table of 256 has the result for 0."""

_BITS = 15
"""Of a slope, and of the gradient that it multiplies."""

_STEP_OF_GELU = math.sqrt(2 / math.pi)
_CUBE_OF_GELU = 0.044715


def _value(kind: str, x: Floats) -> Floats:
    return BY_KIND[kind].of(x)


def _gelu_slope(x: Floats) -> Floats:
    density = np.exp(-np.square(x) / 2) / math.sqrt(2 * math.pi)
    return np.asarray((1 + _value("erf", x * math.sqrt(0.5))) / 2 + x * density)


def _gelu_tanh_slope(x: Floats) -> Floats:
    t = np.tanh(_STEP_OF_GELU * (x + _CUBE_OF_GELU * x**3))
    inner = _STEP_OF_GELU * (1 + 3 * _CUBE_OF_GELU * np.square(x))
    return np.asarray((1 + t + x * (1 - np.square(t)) * inner) / 2)


def _silu_slope(x: Floats) -> Floats:
    s = _value("sigmoid", x)
    return s * (1 + x * (1 - s))


def _mish_slope(x: Floats) -> Floats:
    t = np.tanh(np.logaddexp(0, x))
    return np.asarray(t + x * (1 - np.square(t)) * _value("sigmoid", x))


def _hard_sigmoid_slope(x: Floats, slope: float, offset: float) -> Floats:
    y = slope * x + offset
    return np.where((y > 0) & (y < 1), slope, 0)


def _elu_slope(x: Floats, alpha: float, gamma: float, rate: float) -> Floats:
    return np.where(x > 0, gamma, gamma * alpha * rate * np.exp(rate * np.minimum(x, 0)))


def _softplus_slope(x: Floats, beta: float, threshold: float) -> Floats:
    return np.where(beta * x > threshold, 1, _value("sigmoid", beta * x))


_SLOPES: Mapping[str, Callable[..., Floats]] = {
    "sigmoid": lambda x: _value("sigmoid", x) * (1 - _value("sigmoid", x)),
    "tanh": lambda x: 1 - np.square(np.tanh(x)),
    "silu": _silu_slope,
    "gelu": _gelu_slope,
    "gelu_tanh": _gelu_tanh_slope,
    "hard_sigmoid": _hard_sigmoid_slope,
    "hard_swish": lambda x: np.where(x < 3, np.where(x > -3, x / 3 + 0.5, 0), 1),
    "elu": _elu_slope,
    "leaky_relu": lambda x, slope: np.where(x > 0, 1, slope),
    "softplus": _softplus_slope,
    "exp": np.exp,
    "log_sigmoid": lambda x: _value("sigmoid", -x),
    "mish": _mish_slope,
    "erf": lambda x: 2 / math.sqrt(math.pi) * np.exp(-np.square(x)),
    "abs": np.sign,
    "clip": lambda x, low, high: np.where((x >= low) & (x <= high), 1, 0),
}
"""Of each kind, at a kink that which torch takes."""


def tables(op: FunctionOp, unit: float) -> tuple[tuple[Table, float], tuple[Table, float]]:
    """Return values and slopes where -128 to 127 are steps of `unit`, each with what 1 is worth."""
    x = unit * np.arange(-_MIDDLE, _MIDDLE)
    with np.errstate(over="ignore", under="ignore"):
        value = BY_KIND[op.kind].of(x, *op.settings)
        slope = _SLOPES[op.kind](x, *op.settings)
    return _table(value), _table(slope)


def _table(real: Floats) -> tuple[Table, float]:
    real = first_bits(np.clip(real, -MOST, MOST))
    unit = float(np.abs(real[1:]).max()) / WIDE or 1.0  # no read gives -128
    return np.clip(np.rint(real / unit), -WIDE, WIDE).astype(np.int16), unit


class IntegerFunction(IntegerOp[FunctionOp]):
    """Makes the tables, for the largest value that a read can give."""

    compute: NumpyFunction | NativeFunction

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op = self.op
        unit = units.worth[op.source].bound / CODE
        self.reading = units.read(op.source, unit, CODE), unit
        (values, worth), self._slopes = tables(op, unit)
        self.compute.forward(self.reading[0], values)
        units.raw_unit[op.target] = np.full(units.channels(op.target), worth)

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        slopes, worth = self._slopes
        for contribution in given:
            unit = np.maximum(units.passed_bound(self.op.target), LEAST) / WIDE
            chain = units.chain_in(self.op.target, unit, WIDE)
            mix = units.give(contribution, Slope.whole(unit * worth * 2.0**_BITS))
            self.compute.backward(self.reading[0], slopes, chain, mix)


class NumpyFunction(NumpyOp[FunctionOp]):
    """Looks up what is read."""

    def forward(self, read: Read, values: Table) -> None:
        """Write raw = values[128 + read(x)]."""
        self.backend.raw[self.op.target] = self._found(values, read)

    def backward(self, read: Read, slopes: Table, chain: Chain, mix: Mix | None) -> None:
        """Give (passed * slopes[128 + read(x)]) >> 15, rounded half to even."""
        product = self.backend.passed(self.op.target, chain) * self._found(slopes, read)
        self.backend.put(self.op.source, shift_right_half_even(product, _BITS), mix)

    def _found(self, table: Table, read: Read) -> Array:
        return np.take(table.astype(np.int64), self.backend.read(self.op.source, read) + _MIDDLE)


class IntFunction(ctypes.Structure):
    """`struct int_function`."""

    _fields_ = (
        ("source", ctypes.POINTER(int_native.IntTensor)),
        ("target", ctypes.POINTER(int_native.IntTensor)),
        ("read", int_native.IntRead),
        ("chain", int_native.IntChain),
        ("mix", int_native.IntMix),
        ("table", ctypes.c_void_p),
        ("accumulate", ctypes.c_int32),
    )


class NativeFunction(NativeOp[FunctionOp]):
    """The same by a kernel."""

    def __init__(self, op: FunctionOp, number: int, backend: NativeBackend) -> None:
        super().__init__(op, number, backend)
        self._struct = IntFunction(
            source=ctypes.pointer(backend.tensors[op.source]),
            target=ctypes.pointer(backend.tensors[op.target]),
        )

    def forward(self, read: Read, values: Table) -> None:
        """See `NumpyFunction.forward`."""
        self._struct.read, self._struct.table = read_struct(read), address(values)
        self.backend.kernels.int_function_forward(byref(self._struct), 0, self.backend.tiles)

    def backward(self, read: Read, slopes: Table, chain: Chain, mix: Mix | None) -> None:
        """See `NumpyFunction.backward`."""
        struct = self._struct
        struct.read, struct.table = read_struct(read), address(slopes)
        struct.chain = chain_struct(chain)
        self.set_mix(struct, self.op.source, mix)
        self.backend.kernels.int_function_backward(byref(struct), 0, self.backend.tiles)


INTEGER = IntegerFamily(IntegerFunction, NumpyFunction, NativeFunction)
