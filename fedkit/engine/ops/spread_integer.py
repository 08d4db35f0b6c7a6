"""Values that all examples have, of a parameter or of numbers, in integers."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref

import numpy as np
from numpy.typing import NDArray

from fedkit.core.numerics import shift_right_half_up
from fedkit.engine.integer.constants import WIDE, Chain, shift_to_fit_all
from fedkit.engine.integer.integer_op import LEAST, IntegerFamily, IntegerOp, Units
from fedkit.engine.integer.native_backend import NativeOp, address, chain_struct
from fedkit.engine.integer.numpy_backend import NumpyOp
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.spread import Spread, numbers_of

Sums = NDArray[np.int64]
Values = NDArray[np.int16]


def narrowed(units: Units, name: str) -> tuple[Values, float]:
    """Return a parameter's fixed-point values in 15 bits, flat, and what 1 is worth of them."""
    whole = units.network.part(name, units.network.weights).astype(np.int64)
    shift = shift_to_fit_all(float(np.abs(whole).max(initial=0)))
    unit = 2.0 ** (shift - units.network.points[name])
    return shift_right_half_up(whole, shift).astype(np.int16), unit


class IntegerSpread(IntegerOp[Spread]):
    """Narrows the values of a parameter anew for each batch."""

    compute: NumpySpread | NativeSpread

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op = self.op
        values, unit = narrowed(units, op.values) if op.parameters else _steps(op)
        self.compute.forward(values)
        units.raw_unit[op.target] = np.full(units.channels(op.target), unit)

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        op = self.op
        if not op.parameters or not units.trains(op.values):
            return
        bound = units.passed_bound(op.target)
        unit = max(float(bound.max()), LEAST) / WIDE
        chain = units.chain_in(op.target, np.full(len(bound), unit), WIDE)
        units.network.part(op.values, units.gradient)[:] = self.compute.sums(chain)
        units.gradient_units[op.values] = np.array([unit])


def _steps(op: Spread) -> tuple[Values, float]:
    numbers = numbers_of(op)
    assert numbers is not None  # the verifier's rule
    unit = float(np.abs(numbers).max()) / WIDE or 1.0
    return np.rint(numbers.astype(np.float64) / unit).astype(np.int16), unit


class NumpySpread(NumpyOp[Spread]):
    """Repeats values."""

    def forward(self, values: Values) -> None:
        """Write raw: int16 values [elements], for each example."""
        shape = self.backend.plan.tensors[self.op.target].shape
        of_one = values.astype(np.int64).reshape(shape)
        self.backend.raw[self.op.target] = np.repeat(of_one[None], self.backend.examples, 0)

    def sums(self, chain: Chain) -> Sums:
        """Return the sum over examples of what passes, int64 [elements]."""
        return np.asarray(self.backend.passed(self.op.target, chain).sum(0).ravel())


class NativeSpread(NativeOp[Spread]):
    """The same by kernels."""

    def forward(self, values: Values) -> None:
        """See `NumpySpread.forward`."""
        backend = self.backend
        backend.kernels.int_spread_forward(
            backend.tensor(self.op.target), address(values), 0, backend.tiles
        )

    def sums(self, chain: Chain) -> Sums:
        """See `NumpySpread.sums`."""
        backend, tensor = self.backend, self.backend.tensors[self.op.target]
        found = np.zeros(tensor.channels * tensor.plane, np.int64)
        backend.kernels.int_spread_sums(
            *(byref(tensor), byref(chain_struct(chain)), 0, backend.tiles, address(found))
        )
        return found


INTEGER = IntegerFamily(IntegerSpread, NumpySpread, NativeSpread)
