"""What the backward pass reads again, stored in few bits: against an independent definition."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from fedkit.core.errors import EngineError
from fedkit.core.numerics import random_bits
from fedkit.engine.base import LocalTraining
from fedkit.engine.kernels import native
from fedkit.engine.kernels.structs import pointer
from fedkit.engine.plan.execution import Narrow, Widen
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.sparse.stored import STORED_BITS, StoredValues, stored_floats
from fedkit.sparse.state import ModelState
from fedkit.tasks import digits
from fedkit.tasks.task import Examples
from tests.engine.same_bits import same_bits
from tests.engine.sparse.cases import engines, examples, mobile, pruned, zoo
from tests.sets import slow

HOW = LocalTraining(epochs=1, batch_size=33, lr=0.05, momentum=0.9, weight_decay=1e-3)

Floats = NDArray[np.float32]
NARROW = [bits for bits in STORED_BITS if bits < 32]
ACTIVATIONS = ("none", "relu", "relu6")


class Stored:
    """Values [tiles, channels, plane, lanes] that go through few bits, by the kernels alone."""

    def __init__(self, simd: str, x: Floats, activation: str, bits: int, scale: Floats) -> None:
        self.kernels = native.load_kernels(simd)
        tiles, channels, plane, lanes = x.shape
        assert lanes == self.kernels.lanes
        self.x, self.scale, self.shift = x.copy(), scale, np.float32(0.25) * scale[::-1].copy()
        self.wide = np.full_like(x, np.nan)
        self.codes = np.zeros(stored_floats(tiles * channels, plane, lanes, bits), np.float32)
        self.tensor = native.CTensor(
            x=pointer(self.x),
            scale=pointer(self.scale),
            shift=pointer(self.shift),
            examples=tiles * lanes,
            channels=channels,
            plane=plane,
            activation=ACTIVATIONS.index(activation),
        )
        places = pointer(self.x), pointer(self.codes), pointer(self.wide)
        before, codes, after = (place or 0 for place in places)
        sizes = tiles * channels, lanes, bits
        self.stored = StoredValues(self.tensor, before, codes, after, *sizes)

    def through(self, key: int) -> Floats:
        """Return what is there in the backward pass."""
        struct = ctypes.byref(self.stored.struct)
        self.stored.begin(key)
        self.kernels.narrow(struct, 0, len(self.x))
        self.stored.turn()
        self.kernels.widen(struct, 0, len(self.x))
        return self.wide

    def part(self, x: Floats, activation: str) -> NDArray[np.int64]:
        """Return 1 where a read's activation passes a gradient, 0 below and 2 above."""
        if activation == "none":
            return np.zeros(x.shape, np.int64)
        over = [slice(None), None, None]
        exact = x.astype(np.float64) * self.scale[tuple(over)] + self.shift[tuple(over)]
        y = exact.astype(np.float32)
        high = 6.0 if activation == "relu6" else np.inf
        return np.asarray((y > 0).astype(np.int64) + (y >= high))


def values(simd: str, spread: float, planes: int = 6, plane: int = 9) -> Floats:
    lanes = native.load_kernels(simd).lanes
    rng = np.random.default_rng(plane)
    x = rng.normal(0.3, spread, (2, planes, plane, lanes)).astype(np.float32)
    x[0, 0], x[1, 1] = 0.0, 1.5  # planes of one value
    x[0, 2, :, ::2] = -2.0
    x[0, 2, :, 1::2] = 3.0  # of two
    x[1, 3] = np.abs(x[1, 3]) + 100  # far from where an activation ends
    return x


@pytest.mark.parametrize("simd", native.available())
@pytest.mark.parametrize("bits", NARROW)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("spread", [1e-20, 1.0, 4.0, 1e20])
def test_values_stay_in_their_part_and_near(
    simd: str, bits: int, activation: str, spread: float
) -> None:
    x, scale = values(simd, spread), np.array([1.0, -1.0, 2.0, 0.5, 1e-3, -2.0], np.float32)
    case = Stored(simd, x, activation, bits, scale)
    parts = case.part(x, activation)
    for key in range(3):
        found = case.through(key * 2**33 + key)
        np.testing.assert_array_equal(case.part(found, activation), parts)
        for tile, channel in np.ndindex(x.shape[:2]):
            plane, got = x[tile, channel], found[tile, channel]
            # Two codes belong to each part whatever its length, the others are dealt out by it.
            length = np.ptp(plane.astype(np.float64))
            step = length / max(1, 2**bits - 3 * len(ACTIVATIONS))
            most = np.abs(plane).max() + length
            assert np.abs(got - plane).max() <= step + most * 2.0**-22


def dealt(x: Floats, activation: str, bits: int) -> tuple[float, float]:
    """Return from where the steps of a plane are counted, up and down, and how long they are.

    Values are read as they are, so a ReLU's edge is at 0.
    """
    least, most = float(x.min()), float(x.max())
    if activation == "none" or most <= 0:
        return most, (most - least) / (2**bits - 1)
    if least > 0:
        return least, (most - least) / (2**bits - 1)
    # Two codes lie at the edge, and each part has a step at least.
    below = 1 + round((2**bits - 4) * -least / (most - least))
    return 0.0, max(-least / below, most / (2**bits - 2 - below))


@pytest.mark.parametrize("simd", native.available())
@pytest.mark.parametrize("bits", NARROW)
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("mean", [0.3, -9.0, 9.0])
def test_values_are_those_of_the_definition(
    simd: str, bits: int, activation: str, mean: float
) -> None:
    lanes, plane, key = native.load_kernels(simd).lanes, 11, 2**63 + 12345
    rng = np.random.default_rng(3)
    x = rng.normal(mean, 1.0, (2, 3, plane, lanes)).astype(np.float32)
    case = Stored(simd, x, activation, bits, np.ones(3, np.float32))
    case.shift[:] = 0
    found = case.through(key)
    groups = -(-plane // 4)
    counters = np.arange(6 * groups * lanes, dtype=np.uint32).reshape(2, 3, groups, 1, lanes)
    drawn = random_bits(key, counters).astype(np.uint64) * (2**32 + 1)  # turned around by shifts
    bytes_of = 8 * np.arange(4, dtype=np.uint64)[:, None]
    draws = (drawn >> bytes_of & 0xFFFF).reshape(2, 3, 4 * groups, lanes)[:, :, :plane] / 2.0**16
    equal = np.zeros(x.shape, bool)
    for at in np.ndindex(2, 3):
        origin, step = dealt(x[at], activation, bits)
        steps = np.floor((x[at].astype(np.float64) - origin) / step + draws[at])
        expected = origin + step * steps
        equal[at] = np.abs(found[at] - expected) < 1e-5 * np.abs(x[at]).max() + 0.01 * step
    # What nearly lies where a draw turns it may be on either side.
    assert equal.mean() > (0.95 if bits == 16 else 0.999)


@pytest.mark.parametrize("simd", native.available())
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_are_right_on_average(simd: str, bits: int, activation: str) -> None:
    x, scale = values(simd, 1.0), np.array([1.0, -1.0, 2.0, 0.5, 0.7, -2.0], np.float32)
    case, count = Stored(simd, x, activation, bits, scale), 2000
    total, squares = np.zeros(x.shape), np.zeros(x.shape)
    for key in range(count):
        error = case.through(key * 0x9E3779B97F4A7C15 % 2**64).astype(np.float64) - x
        total += error
        squares += error**2
    mean, spread = total / count, np.sqrt(squares / count)
    widest = spread.max((2, 3), keepdims=True)
    # Of what nearly lies on the grid too few draws differ to tell how far they spread.
    moves = spread > 0.1 * widest + 1e-6 * (1 + np.abs(x))
    z = mean[moves] / (spread[moves] / np.sqrt(count))
    assert np.abs(z).max() < 5.5  # of some thousand values
    assert abs(z.mean()) < 5 / np.sqrt(moves.sum())
    assert (np.abs(mean) <= 0.2 * widest + 1e-6 * (1 + np.abs(x))).all()


# Programs


def gradient(engine: SparseEngine, state: ModelState, data: Examples, seed: int) -> Floats:
    program = engine.program(state, "train", len(data))
    program.restart(seed)
    program.forward(data.inputs, np.arange(len(data)))
    program.loss(data.targets)
    program.backward()
    return program.gradient.copy()


@pytest.mark.parametrize("bits", NARROW)
def test_the_forward_pass_is_untouched(bits: int) -> None:
    shape = (3, 16, 16)
    reference, plain = engines(zoo("resnet8", shape), shape)
    state, data = pruned(reference.initial_state(), 0.2), examples(40, shape)
    engine = SparseEngine(plain.plan, stored_bits=bits)
    losses = []
    for each in (plain, engine):
        program = each.program(state, "train", len(data))
        program.forward(data.inputs, np.arange(len(data)))
        losses.append(program.loss(data.targets))
    assert losses[0] == losses[1]
    assert each.loss(state, data) == plain.loss(state, data)
    steps = program.schedule.steps
    assert sum(isinstance(step, Narrow) for step in steps) == len(program.schedule.narrow) > 10
    # Convolutions read codes; what the pooling op reads is made wide again.
    assert sum(isinstance(step, Widen) for step in steps) == len(program.schedule.widened) < 3


@pytest.mark.parametrize(
    ("bits", "most", "share"), [(16, 2e-3, 0.8), (8, 0.2, 0.63), (4, 1.0, 0.58)]
)
@pytest.mark.parametrize("name", ["resnet8", "vit-tiny", slow("mobilenetv2-w0.25")])
def test_gradients_are_near_in_less_memory(name: str, bits: int, most: float, share: float) -> None:
    shape = (1, 28, 28) if name == "vit-tiny" else (3, 32, 32)
    reference, plain = engines(zoo(name, shape), shape)
    state, data = pruned(reference.initial_state(), 0.2), examples(48, shape)
    exact = gradient(plain, state, data, 0)
    engine = SparseEngine(plain.plan, stored_bits=bits)
    found = gradient(engine, state, data, 0)
    # Through the 52 layers of MobileNetV2 4 bits are off by 0.5 to 1.5 of the length, by the draws.
    deep = 1.6 if name.startswith("mobilenet") else 1.0
    assert np.linalg.norm(found - exact) <= deep * most * np.linalg.norm(exact)
    sizes = [each.program(state, "train", len(data)).memory.activations for each in (plain, engine)]
    assert sizes[1] < share * sizes[0]


def check_average(count: int, bits: int) -> None:
    """The mean of many gradients is the exact one."""
    shape = (2, 12, 12)
    reference, plain = engines(zoo("resnet8", shape), shape)
    state, data = pruned(reference.initial_state(), 0.3), examples(32, shape)
    engine = SparseEngine(plain.plan, stored_bits=bits)
    exact = gradient(plain, state, data, 0).astype(np.float64)
    total, squares = np.zeros(exact.shape), np.zeros(exact.shape)
    for seed in range(count):
        error = gradient(engine, state, data, seed) - exact
        total += error
        squares += error**2
    spread = np.sqrt(squares / count)
    moves = spread > 1e-7 * np.abs(exact).max()
    z = (total / count)[moves] / (spread[moves] / np.sqrt(count))
    assert moves.mean() > 0.7  # the last layer reads what is not worth storing
    assert np.abs(z).max() < 6
    assert np.mean(z**2) < 1.2  # of a normal distribution it is 1


@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_are_right_on_average(bits: int) -> None:
    check_average(300, bits)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_are_right_on_average_of_ten_thousand(bits: int) -> None:
    check_average(10_000, bits)


@pytest.mark.parametrize("bits", NARROW)
def test_steps_are_the_same_bits_for_any_number_of_threads(bits: int) -> None:
    shape = (1, 16, 16)
    data, how, states = examples(70, shape), HOW, []
    reference, plain = engines(mobile(shape), shape)
    state = pruned(reference.initial_state(), 0.3)
    for threads in (1, 1, 2, 3):
        engine = SparseEngine(plain.plan, threads=threads, stored_bits=bits)
        states.append(engine.train(state, data, how, seed=1)[0])
    assert all(same_bits(other, states[0]) for other in states[1:])
    other = SparseEngine(plain.plan, stored_bits=bits).train(state, data, how, seed=2)[0]
    assert not same_bits(other, states[0])


@pytest.mark.parametrize("bits", [0, 2, 7, 64])
def test_other_bits_are_refused(bits: int) -> None:
    _, plain = engines(zoo("resnet8", (3, 8, 8)), (3, 8, 8))
    with pytest.raises(EngineError, match=f"in 32, 16, 8 or 4 bits, not in {bits}"):
        SparseEngine(plain.plan, stored_bits=bits)


def test_training_reaches_what_it_does_with_32_bits() -> None:
    train, test = digits.train_data(), digits.test_data()
    reference, plain = engines(zoo("resnet8", (1, 8, 8), 10), (1, 8, 8))
    state, how = pruned(reference.initial_state(), 0.3), replace(HOW, epochs=4, batch_size=8)
    found: dict[int, Any] = {}
    for bits in (32, 8, 4):
        engine = SparseEngine(plain.plan, stored_bits=bits)
        trained, _ = engine.train(state, train, how, seed=1)
        found[bits] = (engine.outputs(trained, test.inputs).argmax(1) == test.targets).mean()
    assert found[32] > 0.9
    # Over 24 seeds the means are equal; those of single ones spread by 0.03.
    assert min(found[8], found[4]) > found[32] - 0.06


@pytest.mark.parametrize("bits", NARROW)
def test_ops_that_read_no_values_again_need_none(bits: int) -> None:
    def model() -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False), nn.AvgPool2d(3, 2, 1)),
            *(nn.Conv2d(5, 5, 3, groups=5), nn.Flatten(), nn.Linear(20, 10)),
        )

    shape = (3, 9, 9)
    reference, plain = engines(model, shape)
    state, data = reference.initial_state(), examples(24, shape)
    exact = gradient(plain, state, data, 0)
    engine = SparseEngine(plain.plan, stored_bits=bits)
    assert not engine.program(state, "train", 24).schedule.widened
    found = gradient(engine, state, data, 0)
    assert np.linalg.norm(found - exact) < 0.5 * np.linalg.norm(exact)


@pytest.mark.parametrize("bits", NARROW)
def test_what_is_stored_does_not_depend_on_how_large_batches_may_be(bits: int) -> None:
    shape = (3, 4, 4)  # planes of few pixels, of which some are not worth it
    reference, plain = engines(zoo("resnet8", shape), shape)
    state, engine = reference.initial_state(), SparseEngine(plain.plan, stored_bits=bits)
    found = {engine.program(state, "train", batch).schedule.narrow for batch in (2, 16, 17, 100)}
    assert len(found) == 1 and 0 < len(*found) < len(plain.plan.tensors)
