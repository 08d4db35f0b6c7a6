"""Every op of the numpy backend, in the middle of training, against Python integers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.core.numerics import Int64s, derive_key
from fedkit.engine.integer.constants import Chain, Ints, Mix, Read, multiplier
from fedkit.engine.integer.engine import quantize_inputs
from fedkit.engine.integer.gradients import RULES
from fedkit.engine.integer.integer_network import EXTRA, Codes, IntegerNetwork, full_weight
from fedkit.engine.integer.layer_norm import Deviation, Scale
from fedkit.engine.integer.loss import cross_entropy
from fedkit.engine.integer.numpy_backend import NumpyBackend
from fedkit.engine.integer.optimiser import Sgd
from fedkit.engine.integer.program import IntegerProgram
from fedkit.engine.kernels import native
from fedkit.engine.ops.add import Add, NumpyAdd
from fedkit.engine.ops.affine import Affine, NumpyAffine
from fedkit.engine.ops.conv_integer import NumpyConv
from fedkit.engine.ops.copy import Copy, NumpyCopy
from fedkit.engine.ops.depth_to_space import DepthToSpace, NumpyDepthToSpace
from fedkit.engine.ops.function_integer import NumpyFunction
from fedkit.engine.ops.join import Join, NumpyJoin
from fedkit.engine.ops.layer_norm_integer import NumpyLayerNorm
from fedkit.engine.ops.pair_integer import NumpyPair
from fedkit.engine.ops.pool import NumpyPool, Pool
from fedkit.engine.ops.put import Put
from fedkit.engine.ops.registry import FAMILIES
from fedkit.engine.ops.reorder import NumpyReorder, Reorder
from fedkit.engine.ops.resize_linear import NumpyResizeLinear, ResizeLinear
from fedkit.engine.ops.take import NumpyTake, Take
from fedkit.engine.plan.channel_norm import ChannelNorm
from fedkit.engine.plan.conv import Conv, TransposedConv
from fedkit.engine.plan.function import FunctionOp
from fedkit.engine.plan.layer_norm import GroupNorm, LayerNorm
from fedkit.engine.plan.pair import PairOp
from fedkit.engine.plan.structure import PlanOp
from tests.engine.integer import checked_tokens, steps
from tests.engine.integer.checked import CheckedBackend
from tests.engine.integer.extreme import extreme
from tests.engine.ops.examples import AROUND, EXAMPLES, case_of
from tests.engine.plan.plans import FUNCTIONS, KINDS, LAYERS, PlanCase, random_case
from tests.naive import integers as naive
from tests.sets import drawn

Array = NDArray[np.int64]
Sums = Array


class CheckedConv(NumpyConv):
    backend: CheckedBackend

    def forward(self, read: Read, codes: Codes, bias: Ints, shift: Ints) -> None:
        super().forward(read, codes, bias, shift)
        op, backend = self.op, self.backend
        weight = full_weight(backend.network, self.number, codes.values)
        x = naive.read(backend.x[op.source], read)
        sums = naive.convolve(op, x, weight, bias, backend.plane(op.target))
        backend.check("conv", backend.raw[op.target], naive.narrowed(sums, shift))

    def backward(
        self, read: Read, chain: Chain, shift: Ints, mix: Mix | None, source: bool, weights: bool
    ) -> tuple[Sums, Sums]:
        op, backend = self.op, self.backend
        p, old = backend.slowly_passed(op.target, chain), backend.g.get(op.source)
        gradient, sums = super().backward(read, chain, shift, mix, source, weights)
        x = naive.read(backend.x[op.source], read)
        to_x, to_weight = naive.convolve_backward(op, x, self.weights, p)
        backend.check("bias gradient", sums, p.sum((0, 2, 3)))
        kept = backend.network.parameters.kept.get(op.weight)
        flat = to_weight.reshape(-1)
        backend.check("weight gradient", gradient, flat if kept is None else flat[kept])
        if source:
            given = naive.unclipped(naive.narrowed(to_x, shift, naive.half_even), x, read)
            backend.check_given("conv", op.source, given, old, mix)
        return gradient, sums


class CheckedAdd(NumpyAdd):
    backend: CheckedBackend

    def forward(self, left: Read, right: Read) -> None:
        super().forward(left, right)
        op, x = self.op, self.backend.x
        sides = (naive.read(x[t], how) for t, how in ((op.left, left), (op.right, right)))
        self.backend.check("add", self.backend.raw[op.target], sum(sides))

    def backward(self, source: int, chain: Chain, mix: Mix | None) -> None:
        before = self.backend.before_copy(source, self.op.target, chain)
        super().backward(source, chain, mix)
        self.backend.check_copied(source, 0, before, mix)


class CheckedCopy(NumpyCopy):
    backend: CheckedBackend

    def forward(self, read: Read) -> None:
        super().forward(read)
        op, raw = self.op, self.backend.raw[self.op.target]
        flat = naive.read(self.backend.x[op.source], read).reshape(len(raw), -1)
        begin = op.channel * raw[0, 0].size
        found = raw.reshape(len(raw), -1)[:, begin : begin + flat.shape[1]]
        self.backend.check("copy", found, flat)

    def backward(self, source: int, chain: Chain, mix: Mix | None) -> None:
        before = self.backend.before_copy(source, self.op.target, chain)
        super().backward(source, chain, mix)
        self.backend.check_copied(source, self.op.channel, before, mix)


class CheckedPool(NumpyPool):
    backend: CheckedBackend

    def forward(self, read: Read, shift: int) -> None:
        super().forward(read, shift)
        op, backend = self.op, self.backend
        sums = naive.pool(op, naive.read(backend.x[op.source], read), backend.plane(op.target))
        backend.check(op.operation, backend.raw[op.target], naive.narrowed(sums, shift))

    def backward(self, read: Read, chain: Chain, shift: int, mix: Mix | None) -> None:
        op, backend = self.op, self.backend
        p, old = backend.slowly_passed(op.target, chain), backend.g.get(op.source)
        super().backward(read, chain, shift, mix)
        sums = naive.pool_backward(op, naive.read(backend.x[op.source], read), p)
        given = naive.narrowed(sums, shift, naive.half_even)
        backend.check_given(op.operation, op.source, given, old, mix)


class CheckedNorm(NumpyLayerNorm):
    backend: CheckedBackend
    found: tuple[Ints, Ints]

    def _parted(self, x: Array) -> Array:
        """Return what is normalised together, [blocks, channels, height, width]."""
        if self.together.places:
            return naive.places_of(x)
        return naive.blocks(x, self.together.count)

    def _joined(self, x: Array) -> Array:
        plane = self.backend.plan.tensors[self.op.source].shape[1:]
        return (
            naive.of_places(x, plane)
            if self.together.places
            else naive.of_blocks(x, self.together.count)
        )

    def forward(self, read: Read, how: Deviation, scale: Scale) -> tuple[Ints, Ints]:
        multiplier, shift = self.found = super().forward(read, how, scale)
        backend, exact = self.backend, self._slowly_read(read)
        # What a step is worth, but for the last of the multiplier's 15 bits and of the root's 31.
        for n, values in enumerate(self._parted(exact)):
            centred = self.together.centred
            size = naive.layer_size(values.ravel().tolist(), how.l1, centred) + how.eps
            size = max(size, 1)
            worth = math.ldexp(how.numerator, -how.exponent) / (size if how.l1 else size**0.5)
            found = math.ldexp(multiplier[n], -int(shift[n]))
            assert found == pytest.approx(min(worth, 32767.0), rel=2.0**-13.9)
        hat = self._slow_hat(exact)
        backend.check("hat", self.hat(read), hat)
        scaled = naive.layer_scaled(hat, self._each(scale.a), self._each(scale.b))
        backend.check(self.op.kind, backend.raw[self.op.target], scaled)
        return multiplier, shift

    def _slowly_read(self, read: Read) -> Array:
        return naive.read(self.backend.x[self.op.source], read)

    def _slow_hat(self, exact: Array) -> Array:
        parted = self._parted(exact)
        return self._joined(naive.normalised(parted, *self.found, self.together.centred))

    def _each(self, values: Ints) -> Ints:
        """Return values per element, of those per channel too."""
        plane = self.backend.plan.tensors[self.op.target].shape[1:]
        return np.repeat(values, math.prod(plane)) if self.op.per_channel else values

    def _slowly(self, read: Read, chain: Chain, factor: Ints) -> tuple[Array, Array, Array]:
        p = self.backend.slowly_passed(self.op.target, chain)
        hat = self._slow_hat(self._slowly_read(read))
        return p, naive.layer_factored(p, self._each(factor), hat), hat

    def sums(self, read: Read, chain: Chain, factor: Ints) -> tuple[Sums, Sums, Ints]:
        elements, examples, peak = super().sums(read, chain, factor)
        whole = self._slowly(read, chain, factor)
        p, t, hat = (self._parted(part) for part in whole)
        (per_element, _), (_, per_block) = naive.layer_sums(*whole), naive.layer_sums(p, t, hat)
        if self.op.per_channel:
            per_element = per_element.reshape(whole[0].shape[1], -1, 2).sum(1)
        self.backend.check(f"{self.op.kind} gradients", elements, per_element)
        self.backend.check(f"{self.op.kind} sums", examples, per_block)
        self.backend.check(f"{self.op.kind} peak", peak, naive.peaks(t.swapaxes(0, 1)))
        return elements, examples, peak

    def backward(self, read: Read, chain: Chain, factor: Ints, out: Chain, mix: Mix | None) -> None:
        source, backend = self.op.source, self.backend
        old, (_, t, hat) = backend.g.get(source), self._slowly(read, chain, factor)
        super().backward(read, chain, factor, out, mix)
        count = len(self._parted(t))
        numbers = np.broadcast_to(np.arange(count)[:, None, None, None], self._parted(t).shape)
        given = naive.layer_out(t, hat, out, self._joined(numbers))
        backend.check_given(self.op.kind, source, given, old, mix)


class CheckedFunction(NumpyFunction):
    backend: CheckedBackend

    def forward(self, read: Read, values: NDArray[np.int16]) -> None:
        super().forward(read, values)
        self.backend.check(
            "function", self.backend.raw[self.op.target], self._slowly_found(read, values)
        )

    def _slowly_found(self, read: Read, table: NDArray[np.int16]) -> Array:
        codes = naive.read(self.backend.x[self.op.source], read)
        found = [int(table[128 + code]) for code in codes.ravel().tolist()]
        return np.array(found, np.int64).reshape(codes.shape)

    def backward(
        self, read: Read, slopes: NDArray[np.int16], chain: Chain, mix: Mix | None
    ) -> None:
        op, backend = self.op, self.backend
        p, old = backend.slowly_passed(op.target, chain), backend.g.get(op.source)
        super().backward(read, slopes, chain, mix)
        given = naive.narrowed(p * self._slowly_found(read, slopes), 15, naive.half_even)
        backend.check_given("function", op.source, given, old, mix)


class CheckedPair(NumpyPair):
    backend: CheckedBackend

    def forward(self, left: Read, right: Read) -> None:
        super().forward(left, right)
        op, x = self.op, self.backend.x
        a, b = (naive.read(x[t], how) for t, how in ((op.left, left), (op.right, right)))
        combined = {"mul": lambda: naive.narrowed(a * b, 15), "sub": lambda: a - b}
        wanted = combined.get(op.kind, lambda: a + b)()
        self.backend.check(op.kind, self.backend.raw[op.target], wanted)

    def backward(self, side: int, other: Read, chain: Chain, mix: Mix | None) -> None:
        given, old = self._slowly(side, other, chain), self.backend.g.get(self.op.sources[side])
        super().backward(side, other, chain, mix)
        self.backend.check_given("pair", self.op.sources[side], given, old, mix)

    def add_up(self, side: int, other: Read, chain: Chain) -> Ints:
        self.of_plane = self._slowly(side, other, chain).sum((2, 3), keepdims=True)
        peak = super().add_up(side, other, chain)
        self.backend.check("gate peak", peak, naive.peaks(self.of_plane))
        return peak

    def put_sums(self, side: int, shift: Ints, mix: Mix | None) -> None:
        old = self.backend.g.get(self.op.sources[side])
        super().put_sums(side, shift, mix)
        given = naive.narrowed(self.of_plane, shift, naive.half_even)
        self.backend.check_given("gate", self.op.sources[side], given, old, mix)

    def _slowly(self, side: int, other: Read, chain: Chain) -> Array:
        op, backend = self.op, self.backend
        p = backend.slowly_passed(op.target, chain)
        if op.kind == "mul":
            factor = naive.read(backend.x[op.sources[1 - side]], other)
            return naive.narrowed(p * factor, 15, naive.half_even)
        return -p if (op.kind, side) == ("sub", 1) else p


class CheckedTake(NumpyTake):
    backend: CheckedBackend

    def forward(self, read: Read) -> None:
        super().forward(read)
        op, raw = self.op, self.backend.raw[self.op.target]
        x = naive.read(self.backend.x[op.source], read)
        self.backend.check("take", raw, naive.take(op, x, raw.shape))

    def backward(self, chain: Chain, shift: int, mix: Mix | None) -> None:
        op, backend = self.op, self.backend
        p, old = backend.slowly_passed(op.target, chain), backend.g.get(op.source)
        super().backward(chain, shift, mix)
        sums = naive.take_backward(op, backend.x[op.source].shape, p)
        given = naive.narrowed(sums, shift, naive.half_even)
        backend.check_given("take", op.source, given, old, mix)


class CheckedAffine(NumpyAffine):
    backend: CheckedBackend

    def forward(self, read: Read, m: Ints, added: Int64s, shift: Ints) -> None:
        super().forward(read, m, added, shift)
        op, backend = self.op, self.backend
        wanted = naive.affine(naive.read(backend.x[op.source], read), m, added, shift)
        backend.check("affine", backend.raw[op.target], wanted)

    def backward(self, sign: Ints, chain: Chain, mix: Mix | None) -> None:
        op, backend = self.op, self.backend
        p, old = backend.slowly_passed(op.target, chain), backend.g.get(op.source)
        super().backward(sign, chain, mix)
        given = np.stack([p[:, c] * int(each) for c, each in enumerate(sign)], 1)
        backend.check_given("affine", op.source, given, old, mix)


class CheckedDepthToSpace(NumpyDepthToSpace):
    backend: CheckedBackend

    def forward(self, read: Read, bias: Ints) -> None:
        super().forward(read, bias)
        op, raw = self.op, self.backend.raw[self.op.target]
        x = naive.read(self.backend.x[op.source], read)
        self.backend.check("depth to space", raw, naive.depth_to_space(op, x, bias, raw.shape))

    def sums(self, chain: Chain) -> NDArray[np.int64]:
        found = super().sums(chain)
        wanted = self.backend.slowly_passed(self.op.target, chain).sum((0, 2, 3))
        self.backend.check("bias of places", found, wanted)
        return found

    def backward(self, chain: Chain, mix: Mix | None) -> None:
        op, backend = self.op, self.backend
        p, old = backend.slowly_passed(op.target, chain), backend.g.get(op.source)
        super().backward(chain, mix)
        given = naive.depth_to_space_backward(op, backend.x[op.source].shape, p)
        backend.check_given("depth to space", op.source, given, old, mix)


class CheckedResizeLinear(NumpyResizeLinear):
    backend: CheckedBackend

    def forward(self, read: Read) -> None:
        super().forward(read)
        op, raw = self.op, self.backend.raw[self.op.target]
        x = naive.read(self.backend.x[op.source], read)
        self.backend.check("resize", raw, naive.resize(op, x))

    def backward(self, chain: Chain, shift: int, mix: Mix | None) -> None:
        op, backend = self.op, self.backend
        p, old = backend.slowly_passed(op.target, chain), backend.g.get(op.source)
        super().backward(chain, shift, mix)
        given = naive.resize_backward(op, backend.x[op.source].shape, p, shift)
        backend.check_given("resize", op.source, given, old, mix)


class CheckedJoin(NumpyJoin):
    backend: CheckedBackend

    def forward(self, part: Put, read: Read) -> None:
        super().forward(part, read)
        raw = self.backend.raw[self.op.target]
        x = naive.read(self.backend.x[part.source], read)
        self.backend.check("put", naive.put(part, raw), x)

    def backward(self, part: Put, chain: Chain, mix: Mix | None) -> None:
        backend = self.backend
        p, old = backend.slowly_passed(part.target, chain), backend.g.get(part.source)
        super().backward(part, chain, mix)
        backend.check_given("put", part.source, naive.put(part, p), old, mix)


class CheckedReorder(NumpyReorder):
    backend: CheckedBackend

    def forward(self, read: Read) -> None:
        super().forward(read)
        x, raw = self.backend.x[self.op.source], self.backend.raw[self.op.target]
        wanted = naive.reordered(naive.read(x, read), self.op.order)
        self.backend.check("reorder", raw.reshape(len(raw), -1), wanted)

    def backward(self, chain: Chain, mix: Mix | None) -> None:
        op, backend = self.op, self.backend
        p, old = backend.slowly_passed(op.target, chain), backend.g.get(op.source)
        super().backward(chain, mix)
        numbers = naive.reordered(np.arange(p.size).reshape(backend.x[op.source].shape), op.order)
        given = np.zeros(p.size, np.int64)
        for place, number in enumerate(numbers.ravel().tolist()):
            given[number] = p.ravel()[place]
        shape = backend.x[op.source].shape
        backend.check_given("reorder", op.source, given.reshape(shape), old, mix)


CHECKED: dict[type[PlanOp], type[Any]] = {
    Conv: CheckedConv,
    Add: CheckedAdd,
    Copy: CheckedCopy,
    Pool: CheckedPool,
    LayerNorm: CheckedNorm,
    GroupNorm: CheckedNorm,
    ChannelNorm: CheckedNorm,
    FunctionOp: CheckedFunction,
    PairOp: CheckedPair,
    Join: CheckedJoin,
    Reorder: CheckedReorder,
    Take: CheckedTake,
    Affine: CheckedAffine,
    DepthToSpace: CheckedDepthToSpace,
    ResizeLinear: CheckedResizeLinear,
    TransposedConv: CheckedConv,
    **checked_tokens.CHECKED,
}


def test_every_op_is_checked() -> None:
    computed = {family.op for family in FAMILIES.values() if family.integer is not None}
    assert set(CHECKED) == computed


def checked(made: IntegerProgram) -> CheckedBackend:
    """Let a checked backend compute."""
    backend = CheckedBackend(made.network)
    with steps.computed_by(CHECKED):
        made.bind(backend)
    return backend


EVERYTHING = {
    *("conv", "add", "copy", "max", "mean", "raw peak", "raw sum", "L1 spread", "raw squares"),
    *("requantise", "squares", "finish", "finish sums", "finish peak", "passed peak"),
    *("bias gradient", "weight gradient"),
    *(f"gradient by {op}" for op in ("conv", "copy", "max", "mean")),
    *(f"gradient by {op}, added" for op in ("conv", "copy", "max")),
}


_OF_NORM = (" gradients", " sums", " peak")

OF_GROUP_NORMS = {"hat", *(f"group{what}" for what in ("", *_OF_NORM)), "gradient by group"}

OF_LAYER_NORMS = {
    "hat",
    *(f"{kind}{what}" for kind in ("layer", "l1-layer") for what in ("", *_OF_NORM)),
    *("gradient by layer", "gradient by l1-layer", "gradient by layer, added"),
}


OF_FUNCTIONS = {
    *("function", "mul", "sub", "add-gate", "gate peak"),
    *("gradient by function", "gradient by pair", "gradient by gate"),
    *("gradient by function, added", "gradient by pair, added"),
}


def small_case(seed: int, kinds: Sequence[str] = KINDS) -> PlanCase:
    choose = random.Random(seed)
    case = random_case(choose.choice, kinds, most=4)
    few = 1 + seed % 3 if len(case.inputs) == 1 else 2 + seed % 2
    case = replace(case, inputs=case.inputs[:few], targets=case.targets[:few])
    elements = sum(np.prod(tensor.shape) for tensor in case.plan.tensors)
    return case if elements < 900 else small_case(seed + 999, kinds)


def test_every_op_of_training_equals_its_reference() -> None:
    seen = set[str]()
    for seed in range(40):
        case, choose = small_case(seed), random.Random(seed)
        made = steps.make(case, None, choose.choice(range(2, 9)), choose.choice(list(RULES)))
        backend = checked(made)
        steps.train(made, case, None, steps=1)
        seen |= set(backend.seen)
    assert seen >= EVERYTHING


def checked_ops(kinds: Sequence[str]) -> set[str]:
    """Return the ops that were checked where small plans of some kinds trained a step."""
    seen = set[str]()
    for seed in range(40):
        case, choose = small_case(seed, kinds), random.Random(seed)
        case = extreme(case, choose.choice) if seed % 3 == 0 else case
        made = steps.make(case, None, choose.choice(range(2, 9)), choose.choice(list(RULES)))
        backend = checked(made)
        steps.train(made, case, None, steps=1)
        seen |= set(backend.seen)
    return seen


def test_every_op_of_layer_norms_equals_its_reference() -> None:
    assert checked_ops(("layer", "layer", *LAYERS)) >= OF_LAYER_NORMS


def test_every_op_of_group_norms_equals_its_reference() -> None:
    assert checked_ops(("group", "group", "conv", "add", "fan")) >= OF_GROUP_NORMS


def test_every_op_of_functions_and_gates_equals_its_reference() -> None:
    assert checked_ops(FUNCTIONS) >= OF_FUNCTIONS


OF_EXAMPLES: dict[type[PlanOp], set[str]] = {
    Join: {"put", "gradient by put"},
    Reorder: {"reorder", "gradient by reorder"},
    Affine: {"affine", "gradient by affine"},
    Take: {"take", "gradient by take"},
    DepthToSpace: {"depth to space", "gradient by depth to space"},
    ResizeLinear: {"resize", "gradient by resize"},
    TransposedConv: {"conv", "weight gradient", "gradient by conv"},
    ChannelNorm: {"channel-norm", *(f"channel-norm{what}" for what in _OF_NORM)},
    **checked_tokens.SEEN,
}


def test_examples_of_what_no_random_plan_has_equal_their_reference() -> None:
    for name, tried in EXAMPLES.items():
        if wanted := OF_EXAMPLES.get(type(tried.op)):
            for around in AROUND:
                case = case_of(tried, around)
                case = replace(case, inputs=case.inputs[:3], targets=case.targets[:3])
                made = steps.make(case, None, 4)
                backend = checked(made)
                steps.train(made, case, None, steps=1)
                assert wanted <= set(backend.seen), name


# Statistics


def test_statistics_are_those_of_the_raw_values() -> None:
    """The variance exactly; an L1 deviation is measured from a whole number beside the mean.

    Values further than int16 from the mean count as that far; only other channels are compared.
    """
    seen = set[str]()
    for seed in range(20):
        case = small_case(seed)
        made = steps.make(case, None, 4, mode="statistics")
        codes, scale = quantize_inputs(case.inputs)
        made.forward(codes, scale, np.arange(len(codes)))
        for tensor, norm in made.network.norms.items():
            found, unit = made.statistics[tensor], made.raw_unit[tensor]
            raw = made._backend.raw_rows(tensor).astype(np.float64)
            mean = raw.mean((0, 2, 3))
            np.testing.assert_allclose(found.mean, mean * unit, rtol=1e-12, atol=1e-12)
            centred = raw - mean[:, None, None]
            near = np.abs(centred).max((0, 2, 3)) < 32767
            deviation = (np.sqrt(found.variance) / unit)[near]
            if norm.kind == "batch":
                expected = raw.std((0, 2, 3))[near]
                np.testing.assert_allclose(deviation, expected, rtol=1e-6, atol=1e-6)
            else:
                expected = np.abs(centred).mean((0, 2, 3))[near] * np.sqrt(np.pi / 2)
                off = np.abs(deviation - expected).max(initial=0.0)
                assert off <= 0.5 * np.sqrt(np.pi / 2) + 1e-9
            seen |= {norm.kind} if near.any() else set()
    assert seen == {"batch", "l1-batch"}


# Data


def test_examples_are_taken_in_their_order() -> None:
    case = small_case(0)
    made = steps.make(case, None, 8)
    rng = np.random.default_rng(0)
    shape = case.plan.tensors[0].shape
    inputs = rng.integers(-127, 128, (5, *shape)).astype(np.int8)
    backend = NumpyBackend(made.network)
    backend.begin(3)
    backend.load(inputs, np.array([4, 0, 2]))
    np.testing.assert_array_equal(backend.codes(0), inputs[[4, 0, 2]])


# The loss


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 1e4, 1e30])
@pytest.mark.parametrize("count", [1, 7])
def test_cross_entropy_is_within_a_step_of_the_real_one(size: float, count: int) -> None:
    rng = np.random.default_rng(count)
    logits = rng.standard_normal((count, 5)) * size
    targets = rng.integers(0, 5, count)
    loss, gradient = cross_entropy(logits, targets)
    expected, slope = naive.cross_entropy(logits, targets)
    assert gradient.dtype == np.int16
    # Half a step, and what a table of 257 powers interpolates.
    np.testing.assert_allclose(gradient / 32767, slope, atol=1.0 / 32767, rtol=0)
    assert loss == pytest.approx(expected, rel=1e-12, abs=1e-5 + 5e-9)


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=6),
    st.sampled_from([1e-300, 1e-3, 1.0, 50.0]),
    st.integers(0, 5),
)
@example([0.0, 1e4], 1e4, 0)
@example([0.0, -1e4], 1e4, 1)
@example([0.0] * 6, 1.0, 0)
def test_no_loss_is_too_large_to_be_told(row: list[float], size: float, target: int) -> None:
    largest = max(map(abs, row)) or 1.0
    logits = [value / largest * size for value in row]
    target %= len(row)
    expected = math.log(math.fsum(math.exp(x - max(logits)) for x in logits))
    expected += max(logits) - logits[target]
    loss, _ = cross_entropy(np.array([logits]), np.array([target]))
    assert loss == pytest.approx(expected, rel=1e-12, abs=1e-5 + 6e-9)


def test_a_wrong_answer_costs_the_distance_of_its_logit() -> None:
    loss, _ = cross_entropy(np.array([[0.0, 1e4]]), np.array([0]))
    assert loss == 10_000


def test_equal_logits_share_the_loss() -> None:
    loss, gradient = cross_entropy(np.full((2, 4), 3.0), np.array([0, 3]))
    assert loss == pytest.approx(np.log(4))
    first, last = ([8192 - 32767 * (i == target) for i in range(4)] for target in (0, 3))
    assert gradient.tolist() == [first, last]


# The optimiser


@pytest.mark.parametrize("backend", ["numpy", *native.available()])
def test_sgd_equals_its_reference_at_any_size(backend: str) -> None:
    kernels = None if backend == "numpy" else native.load_kernels(backend)
    rate, share = st.floats(1e-6, 10.0), st.floats(0, 1)

    @settings(max_examples=drawn(25), deadline=None)
    @given(st.integers(0, 999), rate, share, share)
    def check(seed: int, lr: float, momentum: float, decay: float) -> None:
        network = steps.make(small_case(seed % 20), None, 8).network
        gradient, units = fill(network, np.random.default_rng(seed))
        optimiser = Sgd(network, kernels, momentum, decay, seed=3)
        (factor,), (shift,) = multiplier(np.array([decay * lr * 2.0**EXTRA]), 40, 2**31 - 1)
        shrink = int(factor), int(shift)
        expected = [
            moved
            for index, name in enumerate(network.plan.weights)
            for moved in stepped(
                optimiser, network, name, gradient, units[name] * lr, shrink, index, decay * lr
            )
        ]
        optimiser.step(gradient, units, lr)
        found = zip(network.weights.tolist(), network.velocity.tolist(), strict=True)
        assert list(found) == expected

    check()


def fill(
    network: IntegerNetwork, rng: np.random.Generator
) -> tuple[Array, dict[str, NDArray[np.float64]]]:
    """Draw all of a network, up to the ends of int32; return a gradient and its units."""
    for vector in (network.weights, network.velocity):
        sizes = 2.0 ** rng.uniform(0, 31, len(vector)) - 1
        vector[:] = rng.choice((-1, 1), len(vector)) * sizes
    sizes = 2.0 ** rng.uniform(0, 40, len(network.weights))
    gradient = (rng.choice((-1, 1), len(sizes)) * sizes).astype(np.int64)
    network.parameters.mask_gradient(gradient)
    sgd = Sgd(network, None, 0.0, 0.0, 0)
    units = {name: 10 ** rng.uniform(-15, 3, len(ends)) for name, ends in sgd._ends.items()}
    return gradient, units


def stepped(
    optimiser: Sgd,
    network: IntegerNetwork,
    name: str,
    gradient: Array,
    rates: NDArray[np.float64],
    decay: tuple[int, int],
    index: int,
    shrink: float,
) -> list[tuple[int, int]]:
    """Return the next (weight, velocity) of a parameter, one after another."""
    key, ends = derive_key(3, 0, index, 1), optimiser._ends[name]
    rows = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0)).tolist()
    vectors = (network.weights, network.velocity, gradient)
    weights, velocities, slopes = (network.part(name, v).tolist() for v in vectors)
    if not weights:
        return []
    pushed = max(abs(g) * Fraction(rates[row]) for g, row in zip(slopes, rows, strict=True))
    momentum = Fraction(optimiser.momentum, 2**30)
    point = room(network.points[name], weights, velocities, pushed, momentum, Fraction(shrink))
    lost = min(network.points[name] - point, 62)
    factor, shift = multiplier(np.ldexp(rates, point + EXTRA), 40, 2**31 - 1)
    values = zip(rows, weights, velocities, slopes, strict=True)
    return [
        naive.sgd(
            *(naive.half_even(weight, lost), naive.half_even(velocity, lost), slope),
            rate=(int(factor[row]), int(shift[row])),
            decay=decay,
            momentum=optimiser.momentum,
            extra=EXTRA,
            random=naive.random_bits(key, position),
        )
        for position, (row, weight, velocity, slope) in enumerate(values)
    ]


def room(
    point: int,
    weights: list[int],
    velocities: list[int],
    pushed: Fraction,
    momentum: Fraction,
    shrink: Fraction,
) -> int:
    """Return the first point, counted down, at which no number of a step leaves int32."""
    weight = max(map(abs, weights)) / Fraction(2) ** point
    velocity = max(map(abs, velocities)) / Fraction(2) ** (point + EXTRA)
    moved = (pushed + weight * shrink + velocity * momentum) * Fraction(1025, 1024)
    while (
        max((weight + moved) * Fraction(2) ** point, moved * Fraction(2) ** (point + EXTRA))
        >= 2**31
    ):
        point -= 1
    return point
