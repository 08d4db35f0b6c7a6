"""Trains in integers with kernels that were compiled with sanitizers; a program of its own.

    python -m tests.engine.integer.sanitized LIBRARY SIMD OVERRUN PLAN...

As `tests.engine.sparse.sanitized`, whose cases, and extreme ones, it runs: it ends with 0 if no
kernel left its memory and no sum of signed numbers left its type.
"""

from __future__ import annotations

import ctypes
import math
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from fedkit.engine.integer import native_backend
from fedkit.engine.integer.engine import quantize_inputs
from fedkit.engine.integer.gradients import RULES
from fedkit.engine.integer.native_backend import NativeBackend
from fedkit.engine.integer.program import IntegerProgram
from fedkit.engine.kernels import native
from fedkit.engine.ops import conv_integer
from fedkit.engine.ops.conv_integer import NativeConv
from fedkit.engine.ops.pool import NativePool
from fedkit.engine.plan.plan import load_plan
from tests.engine.integer import steps
from tests.engine.integer.extreme import extreme
from tests.engine.kernels import programs
from tests.engine.plan.plans import PlanCase
from tests.engine.sparse.sanitized import MODES, Poison, cases

GAP = 64
"""Bytes before and behind each tensor."""


class GuardedKernels(native.Kernels):
    """Compiled kernels; each step of a walk may touch only as much scratch as its op needs."""

    needs: dict[int, int]
    """Bytes by the address of the step's struct, where they are any."""

    scratch: tuple[int, int]

    def __init__(self, library: ctypes.CDLL, simd: str, lanes: int) -> None:
        super().__init__(library, simd, lanes)
        self._poison = Poison()
        self.int_walk: native.Kernel = partial(self._walk, self._find("int_walk"))

    def _walk(self, walk: Callable[..., int], table: Any, first: int, last: int) -> int:
        begin, end = self.scratch
        for entry in range(first, last):
            need = self.needs.get(table._obj[entry].what, 0)
            with self._poison.over([(begin + need, end)]):
                if walk(table, entry, entry + 1) == entry:
                    return entry
        return last


def scratch_needs(made: IntegerProgram) -> dict[int, int]:
    """Return the bytes of scratch that steps need, as `GuardedKernels.needs`."""
    needs = {}
    for number, made_op in enumerate(made._ops):
        if isinstance(native := made_op.compute, NativeConv):
            geometry = made.network.layers[number].geometry
            needs[ctypes.addressof(native._step)] = conv_integer.scratch_bytes(geometry)
        elif isinstance(native, NativePool):
            backend = native.backend
            plane = backend.tensors[native.op.source].plane
            needs[ctypes.addressof(native._step)] = 4 * backend.lanes * plane
    return needs


def spans(backend: NativeBackend, batch: int) -> Iterator[tuple[int, int]]:
    """Yield the addresses (begin, end) of the tensors."""
    tiles = -(-batch // backend.lanes)
    for struct, tensor in zip(backend.tensors, backend.plan.tensors, strict=True):
        count = tiles * math.prod(tensor.shape) * backend.lanes
        for field, width in (("x", 1), ("raw", 2), ("gradient", 2)):
            if begin := getattr(struct, field):
                yield begin, begin + width * count


def gaps(backend: NativeBackend, batch: int, scratch: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield the addresses in the arena that nothing may touch."""
    end = backend._arena.ctypes.data
    last = end + backend._arena.nbytes
    for first, after in sorted({*spans(backend, batch), scratch, (last, last)}):
        yield end, first
        end = after


def drive(case: PlanCase, kernels: GuardedKernels, mode: Any, seed: int, overrun: int) -> None:
    """Run two steps of one mode in guarded memory."""
    choose = random.Random(seed).choice
    bits, rule = choose(range(2, 9)), choose(list(RULES))
    with mock.patch.object(native_backend, "place", partial(programs.apart, gap=GAP)):
        made = steps.make(case, kernels, bits, rule, mode)
    backend = made._backend
    assert isinstance(backend, NativeBackend) and backend.scratch.value is not None
    needs = scratch_needs(made)
    begin = backend.scratch.value
    kernels.scratch = begin, begin + max(needs.values())
    kernels.needs = {struct: need - overrun for struct, need in needs.items()}
    with Poison().over(gaps(backend, len(case.inputs), kernels.scratch)):
        run(made, case, kernels)


def run(made: IntegerProgram, case: PlanCase, kernels: GuardedKernels) -> None:
    if made.mode == "train":
        steps.train(made, case, kernels)
        return
    made.use_running(case.state)
    codes, scale = quantize_inputs(case.inputs)
    made.forward(codes, scale, np.arange(len(codes)))
    made.loss(case.targets)


def main(library: str, simd: str, overrun: str, *files: str) -> None:
    compiled = ctypes.CDLL(library)
    kernels = GuardedKernels(compiled, simd, getattr(compiled, f"kernels_lanes_{simd}")())
    for number, case in enumerate(cases([load_plan(Path(file)) for file in files])):
        for given in (case, extreme(case, random.Random(number).choice)):
            for mode in MODES:
                drive(given, kernels, mode, number, int(overrun))


if __name__ == "__main__":
    main(*sys.argv[1:])
