"""Trains with kernels that were compiled with sanitizers; a program of its own.

    python -m tests.engine.sparse.sanitized LIBRARY SIMD OVERRUN PLAN...

It ends with 0 if no kernel left its memory. OVERRUN is by how many bytes the scratch of each
convolution is guarded too early: 0, or else the sanitizer must stop the program.
"""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from fedkit.engine.kernels import native
from fedkit.engine.ops.conv import CConv, FloatConv
from fedkit.engine.ops.copy import Copy
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.plan import load_plan, verify
from fedkit.engine.plan.structure import Norm, Plan, StoredTensor
from fedkit.engine.sparse import program
from fedkit.engine.sparse.float_op import Mode
from fedkit.engine.sparse.program import SparseProgram
from tests.engine.kernels import programs
from tests.engine.plan.plans import KINDS, LAYERS, PlanCase, random_case, random_data

RANDOM_PLANS = 40
MODES: tuple[Mode, ...] = ("train", "statistics", "evaluate")

# Non-square planes and kernels; stride, dilation, groups and padding differ per axis.
RUGGED = Plan(
    weights={"a": (6, 3, 3, 5), "n": (6,), "b": (9, 2, 3, 2), "bias": (9,), "c": (9, 1, 5, 5),
             "fc": (3, 9 * 3 * 3)},
    stats={"norm.running_mean": (6,), "norm.running_var": (6,)},
    prunable=("a", "b", "c", "fc"),
    tensors=(
        StoredTensor((3, 9, 11)),
        StoredTensor((6, 5, 13), Norm("norm", "l1-batch", 1e-3, "n", None), "relu6"),
        StoredTensor((9, 3, 5), None, "relu"),
        StoredTensor((9, 3, 3)),
        StoredTensor((81, 1, 1)),
        StoredTensor((3, 1, 1)),
    ),
    ops=(
        Conv(0, 1, "a", None, (3, 5), (2, 1), (1, 3), (1, 1), groups=1),
        Conv(1, 2, "b", "bias", (3, 2), (1, 2), (1, 0), (2, 3), groups=3),
        Conv(2, 3, "c", None, (5, 5), (1, 3), (2, 3), (1, 1), groups=9),
        Copy(3, 4),
        Conv(4, 5, "fc", None, (1, 1), (1, 1), (0, 0), (1, 1), groups=1),
    ),
    output=5,
)  # fmt: skip


def padded_line(count: int) -> int:
    """Stand in for `program._line`: whole cache lines, and one that belongs to nobody."""
    return -(-count // programs.GAP) * programs.GAP + programs.GAP


class Poison:
    """Memory that the sanitizer guards although it was allocated."""

    def __init__(self) -> None:
        sanitizer = ctypes.CDLL(None)
        self._add = sanitizer["__asan_poison_memory_region"]
        self._remove = sanitizer["__asan_unpoison_memory_region"]

    @contextmanager
    def over(self, regions: Iterable[tuple[int, int]]) -> Iterator[None]:
        """Guard addresses (begin, end) for a while."""
        guarded = [(ctypes.c_void_p(a), ctypes.c_size_t(b - a)) for a, b in regions if b > a]
        for region in guarded:
            self._add(*region)
        try:
            yield
        finally:
            for region in guarded:
                self._remove(*region)


class GuardedKernels(native.Kernels):
    """Compiled kernels; each convolution may touch only as much scratch as its layer needs."""

    needs: Mapping[int, int]
    """Bytes by the address of the target's struct."""

    scratch_bytes: int

    def __init__(self, library: ctypes.CDLL, simd: str, lanes: int) -> None:
        super().__init__(library, simd, lanes)
        self._poison = Poison()
        self._convolutions = {self.step(self.conv_forward), self.step(self.conv_backward)}
        whole = self._find("conv_full_gradient")
        self.conv_full_gradient = partial(self._full_gradient, whole)

    def walk(
        self, steps: ctypes.Array[native.CStep], first: int, last: int, team: native.CTeam
    ) -> int:
        """Take a step at a time, with the scratch of each thread guarded behind its need."""
        for number in range(first, last):
            step, each = steps[number], 4 * team.scratch_floats
            own = range(team.threads) if step.run in self._convolutions else ()
            regions = [
                self._behind(CConv.from_address(step.pointers[0]), team.scratch + thread * each)
                for thread in own
            ]
            with self._poison.over(regions):
                super().walk(steps, number, number + 1, team)
        return team.threads

    def _full_gradient(self, kernel: native.Kernel, conv: Any, *rest: Any) -> None:
        scratch = rest[4]
        with self._poison.over([self._behind(conv._obj, scratch.value)]):
            kernel(conv, *rest)

    def _behind(self, conv: CConv, scratch: int) -> tuple[int, int]:
        """Return the scratch of one thread that a convolution does not need."""
        need = self.needs[ctypes.addressof(conv.target.contents)]
        return scratch + need, scratch + self.scratch_bytes


def scratch_needs(made: SparseProgram) -> dict[int, int]:
    """Return the bytes of scratch that each layer needs, as `GuardedKernels.needs`."""
    needs, stored = {}, made.schedule.narrow - made.schedule.widened
    for number in made.network.layers:
        op = made._ops[number]
        assert isinstance(op, FloatConv)
        floats = op.scratch_floats(made.network, number, made.mode, stored)
        needs[ctypes.addressof(op.struct.target.contents)] = 4 * floats
    return needs


def gaps(made: SparseProgram) -> Iterator[tuple[int, int]]:
    """Yield the addresses (begin, end) in the arena's allocation that nothing may touch."""
    room = made._arena.base
    assert isinstance(room, np.ndarray)
    used = [programs.memory(made, *key) for key in made._places]
    used += [scratch[: made._scratch_floats()] for scratch in made._scratch]
    spans = sorted({(array.ctypes.data, array.ctypes.data + array.nbytes) for array in used})
    end = room.ctypes.data
    for first, last in [*spans, (room.ctypes.data + room.nbytes, 0)]:
        yield end, first
        end = last


def drive(case: PlanCase, kernels: GuardedKernels, mode: Mode, threads: int, overrun: int) -> None:
    """Run two steps of one mode in guarded memory."""
    with mock.patch.object(program, "_line", padded_line):
        made = programs.make(case, kernels, mode, threads=threads)
    kernels.needs = {key: need - overrun for key, need in scratch_needs(made).items()}
    kernels.scratch_bytes = 4 * made._scratch_floats()
    made._resize(len(case.inputs))
    for norm in made.network.norms.values():
        norm.use_running(case.state)
    with Poison().over(gaps(made)):
        for _ in range(2):
            if mode == "train":
                made.velocity[:] = 0
                programs.step(made, case.inputs, case.targets)
                made.step(0.01, 0.9, 0.001)
            else:
                made.forward(case.inputs, np.arange(len(case.inputs)))
                made.loss(case.targets)
            made.outputs()


def cases(plans: list[Plan]) -> Iterator[PlanCase]:
    """Yield cases of odd sizes; every part but the last fills its scratch."""
    for kinds in (KINDS, ("layer", *LAYERS)):
        for seed in range(RANDOM_PLANS):
            case = random_case(random.Random(seed).choice, kinds, most=4)
            yield replace(case, part_tiles=1 + seed % 2)
    for plan in [RUGGED, *plans]:
        verify(plan)
        for count in (1, 5, 19):
            case = random_data(plan, random.Random(count).choice, (0.1, 0.3, 1.0))
            inputs, targets = np.resize(case.inputs, (count, *plan.tensors[0].shape)), case.targets
            yield replace(case, inputs=inputs, targets=np.resize(targets, count), part_tiles=1)


def main(library: str, simd: str, overrun: str, *files: str) -> None:
    compiled = ctypes.CDLL(library)
    kernels = GuardedKernels(compiled, simd, getattr(compiled, f"kernels_lanes_{simd}")())
    for number, case in enumerate(cases([load_plan(Path(file)) for file in files])):
        for mode in MODES:
            drive(case, kernels, mode, threads=1 + number % 2, overrun=int(overrun))


if __name__ == "__main__":
    main(*sys.argv[1:])
