"""The constants of kernels as the kernels choose them, called one by one from Python.

In the library they are static functions; here a few lines of C give them names.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from ctypes import byref, c_double, c_int, c_int32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.integer.constants import Carrier, Ints, Mix, Read, Reals
from fedkit.engine.integer.gradients import RULES
from fedkit.engine.integer.integer_network import Codes
from fedkit.engine.integer.integer_op import Slope
from fedkit.engine.kernels import int_native
from fedkit.engine.kernels.structs import ACTIVATIONS, pointer
from fedkit.engine.plan.structure import Activation
from tests.engine.kernels.kernel_sets import KERNELS

_CARRIERS: tuple[Carrier, ...] = ("none", "x", "sign")

_SOURCE = r"""
#define ISA_PLAIN
#include "int_steps.h"

void multipliers(const double *x, const int32_t *most_shift, double most, int n, int32_t *m,
                 int32_t *shift) {
    for (int i = 0; i < n; i++) m[i] = multiplier_of(x[i], most_shift[i], most, &shift[i]);
}
void shifts_to_fit(const double *x, int n, int32_t *shift) {
    for (int i = 0; i < n; i++) shift[i] = shift_to_fit(x[i]);
}
void first_bits_of(double *x, int n) {
    for (int i = 0; i < n; i++) x[i] = first_bits(x[i]);
}
void rectified_of(double *mean, const double *deviation, int n) {
    for (int i = 0; i < n; i++) mean[i] = rectified(mean[i], deviation[i]);
}
void sum_into(const double *x, int n, double *sum) { *sum = sum_of(x, n); }
void key_of(const uint64_t *words, int n, uint64_t *key) {
    for (int i = *key = 0; i < n; i++) *key = key_with(*key, words[i]);
}
void read_of(const struct int_worth *w, double unit, int32_t high, struct int_read *read) {
    choose_read(w, unit, high, read);
}
void active_of(const struct int_worth *w, int32_t *first, int32_t *last) {
    active_codes(w, first, last);
}
void unclipped_of(const struct int_read *read, int n, int32_t *first, int32_t *last) {
    unclipped_codes(read, n, first, last);
}
void chains_of(const struct int_worth *w, const double *unit, const struct int_chain *chain) {
    for (int c = 0; c < w->tensor->channels; c++) pass_channel(w, c, unit[c], chain);
}
void bounds_of(const struct int_worth *w, double *bound) {
    for (int c = 0; c < w->tensor->channels; c++) bound[c] = passed_bound(w, c);
}
void give_to(struct int_worth *w, int accumulate, const double *unit) { give(w, accumulate, unit); }
void scaled(int rule, int most, double *ranges, int n, double *unit) {
    *unit = scale_gradient(rule, most, ranges, n);
}
void codes_of(const struct int_codes *codes, const struct int_parameter *p, const double *least) {
    quantise_weights(codes, p, least);
}
void columns_of(const struct int_codes *codes, const double *factor, double *sums) {
    column_sums(codes, factor, sums);
}
"""


@functools.cache
def library(*options: str) -> ctypes.CDLL:
    """Compile the functions with these options, such as -O3."""
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder, "constants.c"), Path(folder, "constants.so")
        source.write_text(_SOURCE, encoding="utf-8")
        flags = ["-std=c99", "-ffp-contract=off", "-fwrapv", "-fPIC", "-shared", f"-I{KERNELS}"]
        command = ["cc", *options, *flags, str(source), "-o", str(built), "-lm"]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(built))


def at(array: NDArray[Any]) -> c_void_p:
    assert array.flags.c_contiguous
    return c_void_p(array.ctypes.data)


class Constants:
    """Chooses constants as `fedkit.engine.integer` does, by compiled functions."""

    def __init__(self, *options: str) -> None:
        self._c = library(*options)

    def multiplier(self, factor: Reals, most_shift: Ints, most: float) -> tuple[Ints, Ints]:
        m, shift = np.zeros((2, len(factor)), np.int32)
        self._c.multipliers(
            *(at(factor), at(most_shift), c_double(most), c_int(len(m)), at(m), at(shift))
        )
        return m, shift

    def shift_to_fit(self, bound: Reals) -> Ints:
        shift = np.zeros(len(bound), np.int32)
        self._c.shifts_to_fit(at(bound), c_int(len(bound)), at(shift))
        return shift

    def first_bits(self, values: Reals) -> Reals:
        found = values.copy()
        self._c.first_bits_of(at(found), c_int(len(found)))
        return found

    def rectified(self, mean: Reals, deviation: Reals) -> Reals:
        found = mean.copy()
        self._c.rectified_of(at(found), at(deviation), c_int(len(found)))
        return found

    def sum(self, values: Reals) -> float:
        total = c_double()
        self._c.sum_into(at(values), c_int(len(values)), byref(total))
        return total.value

    def key(self, *words: int) -> int:
        key = c_uint64()
        self._c.key_of((c_uint64 * len(words))(*words), c_int(len(words)), byref(key))
        return key.value

    def read(
        self, factor: Reals, offset: Reals, activation: Activation, unit: float, high: int
    ) -> tuple[Ints, Ints, Ints, int, int]:
        worth = _worth(factor=factor, offset=offset)
        worth.activation = ACTIVATIONS[activation]
        arrays = np.zeros((3, len(factor)), np.int32)
        struct = int_native.IntRead(*(array.ctypes.data for array in arrays))
        self._c.read_of(byref(worth), c_double(unit), c_int32(high), byref(struct))
        a, b, shift = arrays
        return a, b, shift, struct.low, struct.high

    def active(
        self, factor: Reals, offset: Reals, activation: Activation, bound: float
    ) -> tuple[Ints, Ints]:
        worth = _worth(factor=factor, offset=offset)
        worth.activation, worth.bound = ACTIVATIONS[activation], bound
        first, last = np.zeros((2, len(factor)), np.int32)
        self._c.active_of(byref(worth), at(first), at(last))
        return first, last

    def unclipped(self, read: Read) -> tuple[Ints, Ints]:
        first, last = np.zeros((2, len(read.a)), np.int32)
        arrays = (read.a.ctypes.data, read.b.ctypes.data, read.shift.ctypes.data)
        struct = int_native.IntRead(*arrays, read.low, read.high)
        self._c.unclipped_of(byref(struct), c_int(len(first)), at(first), at(last))
        return first, last

    def chain(
        self, passed: tuple[Reals, Reals, Reals, Carrier], slope: Slope, unit: Reals
    ) -> tuple[Ints, Ints, Ints, Ints]:
        worth = _passing(passed, slope)
        arrays = np.zeros((4, len(unit)), np.int32)
        struct = int_native.IntChain(*(array.ctypes.data for array in arrays))
        self._c.chains_of(byref(worth), at(unit), byref(struct))
        a, b, c, shift = arrays
        return a, b, c, shift

    def bound(self, passed: tuple[Reals, Reals, Reals, Carrier], slope: Slope) -> Reals:
        found = np.zeros(len(slope.unit))
        self._c.bounds_of(byref(_passing(passed, slope)), at(found))
        return found

    def give(self, old: Slope, new: Reals) -> tuple[Slope, Mix]:
        unit, most = old.unit.copy(), old.most.copy()
        worth = _worth(unit=unit, most=most)
        a, b, shift = np.zeros((3, len(new)), np.int32)
        units = int_native.IntUnits()
        units.mix = int_native.IntMix(a.ctypes.data, b.ctypes.data, shift.ctypes.data)
        worth.units = ctypes.pointer(units)
        self._c.give_to(byref(worth), c_int(1), at(new))
        return Slope(unit, most), Mix(a, b, shift)

    def scaled(self, rule: str, bits: int, ranges: Reals) -> tuple[Reals, float]:
        factor, unit = ranges.copy(), c_double()
        most = 2 ** (bits - 1) - 1
        number = list(RULES).index(rule)
        self._c.scaled(c_int(number), c_int(most), at(factor), c_int(len(ranges)), byref(unit))
        return factor, unit.value

    def codes(
        self, weights: Ints, ends: Ints, point: int, clip: float, most: int, least: Reals
    ) -> Codes:
        code, scale = np.zeros(len(weights), np.int16), np.zeros(len(ends))
        struct = int_native.IntCodes(
            *(code.ctypes.data, scale.ctypes.data, ends.ctypes.data),
            clip=clip,
            rows=len(ends),
            most=most,
        )
        behind = c_int32(point)
        parameter = int_native.IntParameter(weights.ctypes.data, ctypes.addressof(behind))
        self._c.codes_of(byref(struct), byref(parameter), at(least))
        return Codes(code, scale)

    def column_sums(
        self,
        codes: NDArray[np.int16],
        ends: Ints,
        factor: Reals,
        columns: Ints | None,
        count: int,
        area: int,
    ) -> Reals:
        sums = np.ones(count)
        struct = int_native.IntCodes(
            code=codes.ctypes.data,
            ends=ends.ctypes.data,
            column=pointer(columns),
            rows=len(ends),
            columns=count,
            area=area,
        )
        self._c.columns_of(byref(struct), at(factor), at(sums))
        return sums


def _worth(**arrays: Reals) -> int_native.IntWorth:
    """Return the struct of a tensor; the caller keeps the arrays alive."""
    (channels,) = {len(array) for array in arrays.values()}
    tensor = int_native.IntTensor(channels=channels, plane=1, examples=1)
    addresses = {name: array.ctypes.data for name, array in arrays.items()}
    return int_native.IntWorth(tensor=ctypes.pointer(tensor), **addresses)


def _passing(passed: tuple[Reals, Reals, Reals, Carrier], slope: Slope) -> int_native.IntWorth:
    a, b, c, carrier = passed
    worth = _worth(a=a, b=b, c=c, unit=slope.unit, most=slope.most)
    worth.carrier = _CARRIERS.index(carrier)
    return worth
