"""Where maxima were, as bytes: against an independent definition, and against looking again."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from ctypes import byref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from fedkit.engine.kernels import native, structs
from fedkit.engine.ops.pool import CPool, Pool, pool_struct
from fedkit.engine.plan.execution import LossStep, lives_of, touched
from fedkit.engine.plan.structure import Plan, StoredTensor
from fedkit.engine.plan.windows import window_plane
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.sparse.program import SparseProgram
from fedkit.engine.sparse.stored import STORED_BITS
from fedkit.tasks.task import Examples
from tests.engine.sparse.cases import engines, examples, pruned
from tests.engine.sparse.gradients import searching
from tests.sets import drawn, slow

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


# One pool, by the kernels alone


class OnePool:
    """A max-pool of `channels` planes, of which each lane is an example."""

    def __init__(self, simd: str, op: Pool, x: Floats, gradient: Floats, activation: Any) -> None:
        self.kernels, self.op = native.load_kernels(simd), op
        tiles, channels, height, width, lanes = x.shape
        source = channels, height, width
        goal = channels, *window_plane(source, op.kernel, op.stride, op.padding)
        self.tensors = StoredTensor(source, None, activation), StoredTensor(goal)
        self.x, self.gradient = x, gradient
        self.y = np.empty((tiles, *goal, lanes), np.float32)
        self.argmax = np.full(self.y.shape, 255, np.uint8)
        self.scale = np.array([2.0, -1.0, 0.5], np.float32)[:channels]
        self.shift = np.array([0.0, 1.0, -1.0], np.float32)[:channels]

    def read(self) -> Floats:
        """Return what is read of the source; all of it is exact."""
        over = [slice(None), None, None, None]
        y = self.scale[tuple(over)] * self.x + self.shift[tuple(over)]
        kind = self.tensors[0].activation
        return y if kind == "none" else np.clip(y, 0, 6 if kind == "relu6" else np.inf)

    def run(self, given: Floats, keeps: bool, accumulate: bool, examples: int) -> Floats:
        """Return the gradient of the source, where `given` lies before."""
        to = given.copy()
        arrays = (self.x, to), (self.y, self.gradient)
        plan = Plan({}, {}, (), self.tensors, (self.op,), 1)
        made = [
            structs.tensor(tensor, None, np.zeros(1), *map(structs.pointer, each))
            for tensor, each in zip(self.tensors, arrays, strict=True)
        ]
        made[0].scale, made[0].shift = map(structs.pointer, (self.scale, self.shift))
        for tensor in made:
            tensor.examples = examples
        struct: CPool = pool_struct(self.op, plan, made)
        struct.accumulate = accumulate
        struct.argmax = structs.pointer(self.argmax) if keeps else None
        tiles = len(self.x)
        self.kernels.pool_forward(byref(struct), 0, tiles)
        if keeps:  # and reads no source then
            blank = np.full_like(self.x, np.nan)
            made[0].x = structs.pointer(blank)
        for first in range(tiles):  # as threads share it
            self.kernels.pool_backward(byref(struct), first, first + 1)
        return to


def defined(op: Pool, read: Floats, found: Floats, gradient: Floats, to: Floats) -> Bytes:
    """Add gradients to the first pixel that equals what was found; return where it was.

    It counts in row-major order through what of a window lies on the plane.
    """
    height, width = read.shape[2:4]
    places = np.empty(found.shape, np.uint8)
    for oy, ox in np.ndindex(*found.shape[2:4]):
        spans = [
            range(max(0, o * s - p), min(size, o * s - p + k))
            for o, s, p, k, size in zip(
                (oy, ox), op.stride, op.padding, op.kernel, (height, width), strict=True
            )
        ]
        pixels = [(y, x) for y in spans[0] for x in spans[1]]
        left = np.ones(found[:, :, oy, ox].shape, bool)
        places[:, :, oy, ox] = min(len(pixels), 255)
        for number, (y, x) in enumerate(pixels):
            here = left & (read[:, :, y, x] == found[:, :, oy, ox])
            to[:, :, y, x] = np.where(here, to[:, :, y, x] + gradient[:, :, oy, ox], to[:, :, y, x])
            places[:, :, oy, ox][here] = min(number, 255)
            left &= ~here
    return places


@st.composite
def pools(draw: st.DrawFn) -> tuple[Pool, tuple[int, int]]:
    """Draw a max-pool and the plane that it reads."""
    axes = []
    for _ in range(2):
        kernel = draw(st.integers(1, 5))
        padding = draw(st.integers(0, kernel // 2))
        size = draw(st.integers(max(1, kernel - 2 * padding), 9))
        axes.append((kernel, draw(st.integers(1, 4)), padding, size))
    one, other = axes
    kernels, strides, paddings, plane = zip(one, other, strict=True)
    return Pool(0, 1, kernels, strides, paddings, "max"), plane


def values(seed: int, shape: tuple[int, ...], odd: bool) -> Floats:
    """Return values of which many are equal; odd ones are NaN, infinite, or zeros of both signs."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, shape).astype(np.float32)
    if odd:
        some = rng.choice(np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32), shape)
        x = np.where(rng.random(shape) < 0.3, some, x)
    return np.asarray(x, np.float32)


def check_pool(
    simd: str, op: Pool, plane: tuple[int, int], seed: int, activation: str, odd: bool
) -> None:
    lanes, rng = native.load_kernels(simd).lanes, np.random.default_rng([seed, 1])
    tiles, channels = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    x = values(seed, (tiles, channels, *plane, lanes), odd)
    goal = window_plane((channels, *plane), op.kernel, op.stride, op.padding)
    gradient = rng.standard_normal((tiles, channels, *goal, lanes)).astype(np.float32)
    case = OnePool(simd, op, x, gradient, activation)
    given = rng.standard_normal(x.shape).astype(np.float32)
    count = tiles * lanes - int(rng.integers(0, lanes))
    with np.errstate(invalid="ignore"):
        read = case.read()
    for accumulate in (False, True):
        again = case.run(given, False, accumulate, count)
        kept = case.run(given, True, accumulate, count) if op.keeps_argmax else again
        to = given.copy() if accumulate else np.zeros_like(given)
        places = defined(op, read, case.y, gradient, to)
        np.testing.assert_array_equal(again, to)
        assert kept.tobytes() == again.tobytes()
        if op.keeps_argmax:
            np.testing.assert_array_equal(case.argmax, places)
    if not odd:
        assert np.isfinite(case.y).all()


@pytest.mark.parametrize("simd", native.available())
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@settings(max_examples=drawn(40), deadline=None, derandomize=True)
@given(pool=pools(), seed=st.integers(0, 999), odd=st.booleans())
def test_a_gradient_goes_to_the_first_of_equal_values(
    simd: str, activation: str, pool: tuple[Pool, tuple[int, int]], seed: int, odd: bool
) -> None:
    check_pool(simd, *pool, seed, activation, odd)


WIDEST = [((15, 17), True), ((1, 255), True), ((16, 16), False), ((1, 256), False)]


@pytest.mark.parametrize("simd", native.available())
@pytest.mark.parametrize(("kernel", "keeps"), WIDEST)
def test_a_byte_tells_of_windows_of_255_pixels(
    simd: str, kernel: tuple[int, int], keeps: bool
) -> None:
    op = Pool(0, 1, kernel, (2, 3), (0, 0), "max")
    assert op.keeps_argmax == keeps != op.needs_exact
    plane = kernel[0] + 2, kernel[1] + 3
    for seed, odd in enumerate((False, True)):
        check_pool(simd, op, plane, seed, "none", odd)
    lanes = native.load_kernels(simd).lanes
    x = np.zeros((1, 1, *kernel, lanes), np.float32)
    x[0, 0, -1, -1] = 1.0  # the last pixel of all
    case = OnePool(simd, op, x, np.ones((1, 1, 1, 1, lanes), np.float32), "none")
    for kept in {keeps, False}:
        np.testing.assert_array_equal(case.run(np.zeros_like(x), kept, False, lanes), x)


# Programs


def chain(pool: Callable[[], nn.Module], shape: tuple[int, ...]) -> Callable[[], nn.Module]:
    """Return a factory of a model without norms: gradients of biases depend on no stored value."""

    def build() -> nn.Module:
        model = nn.Sequential(
            *(nn.Conv2d(shape[0], 6, 3, padding=1), nn.ReLU(), pool(), nn.Conv2d(6, 5, 3, 1, 1)),
            *(pool(), nn.ReLU6(), nn.Conv2d(5, 4, 3, 1, 1), nn.ReLU(), nn.AdaptiveMaxPool2d(1)),
            *(nn.Flatten(), nn.Linear(4, 5)),
        )
        for parameter in model.parameters():  # so that many values are equal
            parameter.data = (4 * parameter.data).round() / 4
        return model

    return build


POOLS: dict[str, Callable[[], nn.Module]] = {
    "2": lambda: nn.MaxPool2d(2),
    "3, overlapping, padded": lambda: nn.MaxPool2d(3, 2, 1),
    "3 x 2 by 1 x 3": lambda: nn.MaxPool2d((3, 2), (1, 3), (1, 0)),
    "dilated": lambda: nn.MaxPool2d(2, 1, 0, 2),
}


def step(program: SparseProgram, data: Examples) -> dict[str, Floats]:
    """Return the gradients of a step."""
    program.restart(3)
    program.forward(data.inputs, np.arange(len(data)))
    program.loss(data.targets)
    program.backward()
    part = program.network.parameters.part
    return {name: part(name, program.gradient).copy() for name in program.plan.weights}


@pytest.mark.parametrize("count", [1, 19, 40])
@pytest.mark.parametrize("name", POOLS)
def test_maxima_are_where_they_were_in_few_bits(name: str, count: int) -> None:
    shape = (2, 15, 13)
    reference, plain = engines(chain(POOLS[name], shape), shape)
    state, data = pruned(reference.initial_state(), 0.7), whole(examples(count, shape))
    exact = step(plain.program(state, "train", count), data)
    biases = [name for name in exact if name.endswith("bias")]
    assert count == 1 or all(exact[name].any() for name in biases)
    for bits in STORED_BITS:
        gradients = []
        for threads in (1, 2, 3):
            engine = SparseEngine(plain.plan, stored_bits=bits, threads=threads)
            program = engine.program(state, "train", count + 5)
            gradients.append(step(program, data))
            pooled = {op.source for op in program.plan.ops if isinstance(op, Pool)}
            assert len(program.schedule.argmax) == len(pooled) == 3
            assert bits == 32 or program.schedule.narrow >= read_again(program) & pooled
        for each in gradients:
            assert all((each[name] == exact[name]).all() for name in biases)
            assert all((each[name] == gradients[0][name]).all() for name in each)
        if bits == 32:
            assert all((each[name] == exact[name]).all() for name in exact)


def whole(data: Examples) -> Examples:
    """Return examples of whole numbers."""
    return Examples(data.inputs.round(), data.targets)


def read_again(program: SparseProgram) -> set[int]:
    """Return the tensors that the backward pass reads."""
    steps = program.schedule.steps
    loss = next(n for n, each in enumerate(steps) if isinstance(each, LossStep))
    keys = (program.schedule.touched(program.plan, each, touched) for each in steps[loss + 1 :])
    kinds = "x", "code", "wide"
    return {tensor for kind, tensor in itertools.chain(*keys) if kind in kinds}


@pytest.mark.parametrize("bits", [32, 8])
def test_what_only_a_maximum_reads_ends_with_the_forward_pass(bits: int) -> None:
    shape = (2, 15, 13)
    _, plain = engines(chain(POOLS["2"], shape), shape)
    engine = SparseEngine(plain.plan, stored_bits=bits)
    program = engine.program(plain.initial_state(), "train", 20)
    unread = next(op.source for op in program.plan.ops[2:] if isinstance(op, Pool))
    assert program.plan.tensors[unread].activation == "none"
    assert unread not in read_again(program)
    lives = lives_of(program.plan, program.schedule, touched)
    kept = [lives[key] for key in lives if key[0] == "argmax"]
    assert len(kept) == 3
    assert all(first < lives["g", program.plan.output][0] < last for first, last in kept)
    assert lives["x", unread][1] in [first for first, _ in kept]


@pytest.mark.parametrize("mode", ["evaluate", "statistics"])
def test_a_forward_pass_keeps_no_places(mode: Any) -> None:
    shape = (2, 15, 13)
    _, plain = engines(chain(POOLS["2"], shape), shape)
    program = plain.program(plain.initial_state(), mode, 20)
    assert not any(kind == "argmax" for kind, _ in program._places)
    assert {program.argmax(tensor) for tensor in range(len(program.plan.tensors))} == {None}


def blocks(shape: tuple[int, ...], sizes: tuple[int, ...]) -> Callable[[], nn.Module]:
    """Return a factory of a model with a max-pool behind every layer."""

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        channels = shape[0]
        for size in sizes:
            layers += [nn.Conv2d(channels, size, 3, padding=1, bias=False), nn.BatchNorm2d(size)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
            channels = size
        return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(channels, 5))

    return build


@pytest.mark.parametrize(("bits", "off", "share"), [(16, 1e-3, 0.8), (8, 0.1, 0.6), (4, 0.7, 0.55)])
def test_models_of_pools_need_less_memory(bits: int, off: float, share: float) -> None:
    shape = (3, 32, 32)
    reference, plain = engines(blocks(shape, (16, 32, 64)), shape)
    state, data = pruned(reference.initial_state(), 0.1), examples(48, shape)
    program = plain.program(state, "train", 48)
    exact, most = flat(step(program, data)), program.memory.activations
    narrow = SparseEngine(plain.plan, stored_bits=bits).program(state, "train", 48)
    found = flat(step(narrow, data))
    assert narrow.memory.activations < share * most
    assert np.linalg.norm(found - exact) <= off * np.linalg.norm(exact)
    assert not narrow.schedule.widened
    again = searching(program)
    assert step_bits(again, data) == step_bits(program, data)
    # A byte for four pixels of float32.
    assert again.memory.activations < program.memory.activations < 1.06 * again.memory.activations
    assert program.moved_bytes() < again.moved_bytes()


def flat(gradients: dict[str, Floats]) -> Floats:
    return np.concatenate(list(gradients.values()))


def step_bits(program: SparseProgram, data: Examples) -> bytes:
    return flat(step(program, data)).tobytes()


@pytest.mark.parametrize(("bits", "off"), [(16, 1e-3), (8, 0.1), (4, 0.7)])
def test_a_norm_behind_a_pool_finds_its_values_wide(bits: int, off: float) -> None:
    def model() -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3), nn.MaxPool2d(3, 1), nn.Flatten(), nn.Linear(8 * 36, 5)),
        )

    shape = (3, 20, 20)
    reference, plain = engines(model, shape)
    state, data = pruned(reference.initial_state(), 0.5), examples(35, shape)
    exact = flat(step(plain.program(state, "train", 35), data))
    found = []
    for threads in (1, 2, 3):
        engine = SparseEngine(plain.plan, stored_bits=bits, threads=threads)
        program = engine.program(state, "train", 35)
        assert {plain.plan.ops[1].target} == program.schedule.widened
        found.append(flat(step(program, data)))
    assert all(each.tobytes() == found[0].tobytes() for each in found)
    assert np.linalg.norm(found[0] - exact) <= off * np.linalg.norm(exact)


def check_average(count: int, bits: int) -> None:
    """The mean of many gradients is the exact one, to five deviations of it."""
    shape = (2, 12, 12)
    reference, plain = engines(chain(POOLS["3, overlapping, padded"], shape), shape)
    state, data = reference.initial_state(), examples(24, shape)
    exact = flat(step(plain.program(state, "train", 24), data)).astype(np.float64)
    program = SparseEngine(plain.plan, stored_bits=bits).program(state, "train", 24)
    total, squares = np.zeros(exact.shape), np.zeros(exact.shape)
    for seed in range(count):
        program.restart(seed)
        program.forward(data.inputs, np.arange(24))
        program.loss(data.targets)
        program.backward()
        error = program.gradient - exact
        total += error
        squares += error**2
    spread = np.sqrt(squares / count)
    moves = spread > 1e-6 * np.abs(exact).max()
    z = (total / count)[moves] / (spread[moves] / np.sqrt(count))
    assert moves.sum() > 100
    assert np.abs(z).max() < 5
    assert np.mean(z**2) < 1.3


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("count", [200, slow(5000)])
def test_gradients_are_right_on_average(bits: int, count: int) -> None:
    check_average(count, bits)


def test_a_window_of_many_pixels_is_looked_through_again() -> None:
    shape = (2, 16, 16)

    def model() -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(16)),
            *(nn.Flatten(), nn.Linear(6, 5)),
        )

    reference, plain = engines(model, shape)
    state, data = reference.initial_state(), examples(19, shape)
    program = SparseEngine(plain.plan, stored_bits=4).program(state, "train", 19)
    (op,) = (op for op in plain.plan.ops if isinstance(op, Pool))
    assert op.needs_exact and op.source not in program.schedule.narrow
    exact, found = step(plain.program(state, "train", 19), data), step(program, data)
    assert not program.schedule.argmax
    assert all((found[name] == exact[name]).all() for name in ("0.bias", "1.weight", "1.bias"))
