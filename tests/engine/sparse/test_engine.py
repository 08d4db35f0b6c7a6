"""The sparse engine against the torch engine."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from fedkit.core.errors import EngineError, FleetError
from fedkit.engine.base import LocalTraining, Resting
from fedkit.engine.kernels import network
from fedkit.engine.sparse import engine as module
from fedkit.engine.sparse import program
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.sparse.state import ModelState
from fedkit.sparse.topk import Entries, largest
from fedkit.tasks import digits
from fedkit.tasks.task import Examples
from tests.engine.same_bits import same_bits
from tests.engine.sparse.cases import engines, examples, l1, mobile, pruned, zoo
from tests.sets import slow

HOW = LocalTraining(epochs=2, batch_size=8, lr=0.05, momentum=0.9, weight_decay=1e-3)
SHAPE = (1, 8, 8)
RESNET = zoo("resnet8", SHAPE)

Arrays = dict[str, NDArray[Any]]


def error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


# Training


@pytest.mark.parametrize(
    ("factory", "shape", "data", "density"),
    [
        (zoo("resnet8", SHAPE, 10), SHAPE, digits.train_data, 0.1),
        slow((zoo("ds-cnn", (1, 20, 10)), (1, 20, 10), lambda: examples(320, (1, 20, 10)), 0.3)),
        slow((l1(RESNET), SHAPE, lambda: examples(320, SHAPE), 0.7)),
        slow((mobile(SHAPE, 10), SHAPE, digits.train_data, 0.1)),
    ],
    ids=["resnet8", "ds-cnn", "resnet8-l1", "mobile"],
)
def test_fifty_steps_follow_the_torch_engine(
    factory: Callable[[], nn.Module],
    shape: tuple[int, ...],
    data: Callable[[], Examples],
    density: float,
) -> None:
    reference, engine = engines(factory, shape)
    ours = theirs = pruned(reference.initial_state(), density)
    given = data()
    # Small steps: where a unit takes another branch within rounding, larger ones drift apart.
    how = replace(HOW, epochs=1, batch_size=32, momentum=0.0, lr=0.003)
    for step in range(50):
        batch = given.take(np.arange(32) + 32 * (step % 10))
        ours, loss = engine.train(ours, batch, how, seed=step)
        theirs, expected = reference.train(theirs, batch, how, seed=step)
        assert loss == pytest.approx(expected, abs=1e-3), step
    for name, expected_stats in theirs.stats.items():
        assert error(ours.stats[name], expected_stats) < 1e-2, name
    assert list(ours.weights) == list(theirs.weights)


def test_an_epoch_equals_the_torch_engines_with_momentum_and_decay() -> None:
    reference, engine = engines(RESNET, SHAPE)
    state, data = pruned(reference.initial_state(), 0.2), examples(45, SHAPE)
    ours, loss = engine.train(state, data, HOW, seed=3)
    theirs, expected = reference.train(state, data, HOW, seed=3)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, weight in theirs.weights.items():
        np.testing.assert_allclose(ours.weights[name], weight, rtol=1e-3, atol=1e-5, err_msg=name)
    for name, value in theirs.stats.items():
        assert error(ours.stats[name], value) < 1e-4, name


@pytest.mark.parametrize("density", [0.1, 0.7])
def test_a_pruned_weight_stays_exactly_zero_and_masks_stay(density: float) -> None:
    reference, engine = engines(RESNET, SHAPE)
    state = pruned(reference.initial_state(), density)
    before = {name: mask.copy() for name, mask in state.masks.items()}
    trained, _ = engine.train(state, examples(20, SHAPE), HOW, seed=0)
    for name, mask in trained.masks.items():
        assert np.array_equal(mask, before[name])
        bits = trained.weights[name].view(np.uint32)
        assert not bits[~mask].any()
        assert (trained.weights[name][mask] != state.weights[name][mask]).mean() > 0.9


def test_a_diverging_loss_is_named() -> None:
    reference, engine = engines(RESNET, SHAPE)
    with pytest.raises(FleetError, match="lower lr"):
        engine.train(reference.initial_state(), examples(20, SHAPE), replace(HOW, lr=1e20), 0)
    state = reference.initial_state()
    huge = {name: np.full_like(weight, 1e30) for name, weight in state.weights.items()}
    with pytest.raises(FleetError, match="lower lr"):
        engine.gradients(replace(state, weights=huge), examples(20, SHAPE))


# Evaluation


@pytest.mark.parametrize("factory", [RESNET, l1(RESNET)], ids=["batch", "l1"])
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_moments_losses_and_outputs_equal_the_torch_engines(
    factory: Callable[[], nn.Module], density: float
) -> None:
    reference, engine = engines(factory, SHAPE)
    data = examples(300, SHAPE)  # more than one batch
    state = pruned(reference.initial_state(), density)
    state, _ = reference.train(state, data.take(np.arange(40)), HOW, seed=0)
    ours, theirs = engine.norm_moments(state, data), reference.norm_moments(state, data)
    assert list(ours) == list(theirs)
    for name, moments in theirs.items():
        assert ours[name].n == moments.n
        deviation = np.sqrt(moments.variance.max())
        np.testing.assert_allclose(ours[name].mean, moments.mean, rtol=1e-5, atol=1e-6 * deviation)
        assert error(ours[name].variance, moments.variance) < 1e-5
    assert engine.loss(state, data) == pytest.approx(reference.loss(state, data), rel=1e-5)
    outputs = engine.outputs(state, data.inputs)
    assert outputs.shape == (300, 5) and outputs.dtype == np.float32
    assert error(outputs, reference.outputs(state, data.inputs)) < 1e-5


def test_the_initial_state_is_the_one_given() -> None:
    reference, engine = engines(RESNET, SHAPE)
    assert engine.initial_state() is reference.initial_state()
    assert engine.layout == reference.layout
    with pytest.raises(EngineError, match="the server has it"):
        SparseEngine(engine.plan).initial_state()


# The largest gradients


def full_gradients(engine: SparseEngine, state: ModelState, data: Examples) -> Arrays:
    """Return the whole gradient of each layer, as the program yields it."""
    made = engine.program(state, "train", len(data))
    found: Arrays = {}

    def keep(number: int) -> None:
        if number in made.network.layers:
            name = made.network.layers[number].geometry.op.weight
            found[name] = np.concatenate([tile.copy() for tile in made.full_gradient(number, 3)])

    made.forward(data.inputs, np.arange(len(data)))
    made.loss(data.targets)
    made.backward(before=keep)
    return {name: gradient.reshape(-1) for name, gradient in found.items()}


def by_sorting(gradient: NDArray[np.float32], mask: NDArray[np.bool_], amount: int) -> Entries:
    pruned_ones = np.flatnonzero(~mask.reshape(-1))
    chosen = pruned_ones[largest(gradient[pruned_ones], amount)]
    return Entries(chosen, gradient[chosen])


@pytest.mark.parametrize("tile", [1, 100, 1 << 20])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.7])
def test_top_gradients_are_those_of_the_full_gradient(
    tile: int, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TILE", tile)
    reference, engine = engines(RESNET, SHAPE)
    state, data = pruned(reference.initial_state(), density), examples(21, SHAPE)
    amounts = dict.fromkeys(engine.layout.prunable, 40)
    amounts[engine.layout.prunable[0]] = 0
    amounts[engine.layout.prunable[-1]] = 10**6  # more than there are
    found = engine.top_gradients(state, data, amounts)
    whole = full_gradients(engine, state, data)
    assert list(found) == list(amounts)
    for name, entries in found.items():
        expected = by_sorting(whole[name], state.masks[name], amounts[name])
        assert np.array_equal(entries.indices, expected.indices), name
        assert entries.values.tobytes() == expected.values.tobytes()


@pytest.mark.parametrize("tile", [1, 50, 1 << 20])
def test_equal_gradients_go_to_the_lower_index(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All input channels are equal, so every weight's gradient comes three times."""
    monkeypatch.setattr(module, "_TILE", tile)
    shape = (3, 8, 8)
    reference, engine = engines(zoo("resnet8", shape), shape)
    one = examples(9, (1, 8, 8))
    data = Examples(np.repeat(one.inputs, 3, axis=1), one.targets)
    kept = np.zeros((16, 3, 3, 3), bool)
    kept[:, 1, 1, 1] = True
    dense = reference.initial_state()
    state = dense.with_masks({**dense.masks, "0.0.weight": kept})
    gradient = full_gradients(engine, state, data)["0.0.weight"].reshape(16, 3, 9)
    assert np.array_equal(gradient[:, 0], gradient[:, 1]) and np.abs(gradient).max() > 0
    for amount in (1, 2, 3, 50, 100):
        found = engine.top_gradients(state, data, {"0.0.weight": amount})["0.0.weight"]
        magnitudes = np.where(kept.reshape(-1), -1, np.abs(gradient.reshape(-1)))
        order = np.lexsort((np.arange(magnitudes.size), -magnitudes))
        assert found.indices.tolist() == sorted(order[:amount].tolist())


def test_top_gradients_equal_the_torch_engines() -> None:
    reference, engine = engines(RESNET, SHAPE)
    state, data = pruned(reference.initial_state(), 0.1), examples(21, SHAPE)
    for name in engine.layout.prunable:
        gradient = np.sort(np.abs(full_gradients(engine, state, data)[name]))[::-1]
        # Cut where two neighbours differ clearly, so that rounding cannot swap them.
        ratios = gradient[1:31] / gradient[:30]
        amounts = {name: 1 + int(np.argmin(ratios))}
        ours = engine.top_gradients(state, data, amounts)[name]
        theirs = reference.top_gradients(state, data, amounts)[name]
        assert np.array_equal(ours.indices, theirs.indices)
        assert error(ours.values, theirs.values) < 1e-4


@pytest.mark.parametrize("density", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("name", ["resnet8", "ds-cnn"])
def test_gradients_are_the_full_gradients_whose_largest_are_the_top(
    name: str, density: float
) -> None:
    shape = (1, 20, 10)
    reference, engine = engines(zoo(name, shape), shape)
    state, data = pruned(reference.initial_state(), density), examples(21, shape)
    found, tiles = engine.gradients(state, data), full_gradients(engine, state, data)
    tops = engine.top_gradients(state, data, dict.fromkeys(engine.layout.prunable, 9))
    assert list(found) == list(engine.layout.prunable)
    for layer, gradient in found.items():
        assert gradient.dtype == np.float32 and gradient.shape == engine.layout.weights[layer]
        assert gradient.tobytes() == tiles[layer].tobytes(), layer
        expected = by_sorting(gradient.reshape(-1), state.masks[layer], 9)
        assert np.array_equal(tops[layer].indices, expected.indices)
        assert tops[layer].values.tobytes() == expected.values.tobytes()


@pytest.mark.parametrize("density", [0.01, 0.1, 1.0])
def test_gradients_equal_the_torch_engines(density: float) -> None:
    reference, engine = engines(RESNET, SHAPE)
    state, data = pruned(reference.initial_state(), density), examples(21, SHAPE)
    ours, theirs = engine.gradients(state, data), reference.gradients(state, data)
    assert list(ours) == list(theirs)
    for name, gradient in theirs.items():
        assert ours[name].dtype == gradient.dtype and ours[name].shape == gradient.shape
        assert error(ours[name], gradient) < 1e-4, name


@pytest.mark.parametrize("density", [0.1, 0.7])
def test_a_step_of_training_goes_along_the_gradients(density: float) -> None:
    reference, engine = engines(RESNET, SHAPE)
    state, data = pruned(reference.initial_state(), density), examples(16, SHAPE)
    how = LocalTraining(epochs=1, batch_size=16, lr=0.5, momentum=0.9, weight_decay=0.0)
    trained, _ = engine.train(state, data, how, 0)
    for name, gradient in engine.gradients(state, data).items():
        mask = state.masks[name]
        moved = (state.weights[name] - trained.weights[name])[mask] / how.lr
        # The batch is in another order, and a difference of float32 weights rounds.
        np.testing.assert_allclose(moved, gradient[mask], rtol=1e-3, atol=1e-5, err_msg=name)


def test_top_gradients_need_a_buffer_and_a_tile_beside_the_program() -> None:
    def wide() -> nn.Module:
        body = [nn.Conv2d(64, 1024, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        return nn.Sequential(nn.Conv2d(1, 64, 1), *body, nn.Flatten(), nn.Linear(1024, 5))

    reference, engine = engines(wide, (1, 4, 4))
    state, data = pruned(reference.initial_state(), 0.02), examples(8, (1, 4, 4))
    engine.program(state, "train", len(data))
    engine.top_gradients(state, data, {"1.weight": 500})  # warm: tables are made once
    mask = state.masks["1.weight"]
    layer = 4 * mask.size
    tracemalloc.start()
    engine.top_gradients(state, data, {"1.weight": 500})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    tile, buffer = 4 * module._TILE, 12 * 500
    kept = 8 * int(mask.sum()) + mask.size // 8  # where they are
    assert layer == 36 * tile and peak < kept + 9 * tile + 4 * buffer


# Determinism


@pytest.mark.parametrize("density", [0.1, slow(0.8)])
def test_results_are_the_same_bits_for_any_number_of_threads(density: float) -> None:
    shape = (1, 16, 16)
    data, states, tops = examples(100, shape), [], []
    how = replace(HOW, epochs=1, batch_size=50)
    for threads in (1, 1, 2, 3):
        reference, engine = engines(zoo("resnet8", shape), shape, threads=threads)
        state = pruned(reference.initial_state(), density)
        states.append(engine.train(state, data, how, seed=1)[0])
        tops.append(engine.top_gradients(state, data, {"3.first.0.weight": 99}))
    for state, top in zip(states[1:], tops[1:], strict=True):
        assert same_bits(state, states[0])
        assert top["3.first.0.weight"].values.tobytes() == (
            tops[0]["3.first.0.weight"].values.tobytes()
        )


def test_an_engine_forgets_what_it_did_before() -> None:
    reference, engine = engines(RESNET, SHAPE)
    data, first = examples(20, SHAPE), pruned(reference.initial_state(), 0.3)
    trained, _ = engine.train(first, data, HOW, seed=1)
    other = pruned(reference.initial_state(), 0.2, seed=7)
    engine.norm_moments(other, examples(50, SHAPE, seed=5))
    engine.loss(other, data)
    engine.top_gradients(other, examples(30, SHAPE), {"0.0.weight": 3})
    engine.gradients(other, examples(30, SHAPE))
    assert same_bits(engine.train(first, data, HOW, seed=1)[0], trained)
    fresh = SparseEngine(engine.plan)
    assert same_bits(fresh.train(other, data, HOW, 2)[0], engine.train(other, data, HOW, 2)[0])


def test_other_examples_in_the_last_tile_change_nothing() -> None:
    """Lanes beyond the batch hold what an earlier, larger batch left there."""
    reference, engine = engines(RESNET, SHAPE)
    state, data = pruned(reference.initial_state(), 0.3), examples(24, SHAPE)
    made = engine.program(state, "train", 24)

    def gradient(count: int) -> NDArray[np.float32]:
        made.forward(data.inputs, np.arange(count))
        made.loss(data.targets[:count])
        made.backward()
        return made.gradient.copy()

    few = gradient(5)
    gradient(24)
    assert gradient(5).tobytes() == few.tobytes()


def test_equal_examples_in_an_unfilled_tile_train() -> None:
    """Their variance is 0, so that each norm multiplies what differs from them by 316."""

    def deep() -> nn.Module:
        layers = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(24)]
        return nn.Sequential(*layers, nn.Linear(8, 5))

    reference, engine = engines(deep, (8,))
    one = examples(1, (8,))
    data = Examples(np.repeat(one.inputs, 5, axis=0), np.repeat(one.targets, 5))
    state, how = pruned(reference.initial_state(), 0.9), replace(HOW, lr=1e-3)
    ours, loss = engine.train(state, data, how, 0)
    assert loss == pytest.approx(reference.train(state, data, how, 0)[1], rel=1e-3)
    assert all(np.isfinite(weight).all() for weight in ours.weights.values())


def test_a_variance_is_never_negative() -> None:
    """One value far from all others, where the sums of a channel start."""
    shape = (1, 64, 64)

    def layers() -> list[nn.Module]:
        body = [nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        return [*body, nn.Flatten(), nn.Linear(2, 5)]

    reference, engine = engines(lambda: nn.Sequential(*layers()), shape)
    state = reference.initial_state()
    for outlier in (10.0, 1e3, 1e4, 1e5):
        inputs = np.zeros((64, *shape), np.float32)
        inputs[0, 0, 0, 0] = outlier
        data = Examples(inputs, np.arange(64) % 5)
        assert (engine.norm_moments(state, data)["1"].variance >= 0).all()
        trained, _ = engine.train(state, data, HOW, 0)
        assert all(np.isfinite(weight).all() for weight in trained.weights.values())


# Extremes


@pytest.mark.parametrize("layer", ["0.0.weight", "3.second.0.weight", "7.weight"])
def test_a_fully_pruned_layer(layer: str) -> None:
    reference, engine = engines(RESNET, SHAPE)
    state = pruned(reference.initial_state(), 0.3)
    state = state.with_masks({**state.masks, layer: np.zeros_like(state.masks[layer])})
    check_like_torch(reference, engine, state)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_a_fully_pruned_and_a_dense_model(density: float) -> None:
    reference, engine = engines(RESNET, SHAPE)
    check_like_torch(reference, engine, pruned(reference.initial_state(), density))


def check_like_torch(reference: Any, engine: SparseEngine, state: ModelState) -> None:
    data, how = examples(20, SHAPE), replace(HOW, lr=0.01, epochs=1)
    ours, loss = engine.train(state, data, how, 0)
    theirs, expected = reference.train(state, data, how, 0)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, weight in theirs.weights.items():
        np.testing.assert_allclose(ours.weights[name], weight, rtol=1e-3, atol=1e-5, err_msg=name)
    assert engine.loss(ours, data) == pytest.approx(reference.loss(theirs, data), rel=1e-4)
    amounts = {name: int((~mask).sum()) for name, mask in state.masks.items()}
    for name, entries in engine.top_gradients(state, data, amounts).items():
        assert len(entries.indices) == amounts[name]


def test_one_example_trains_where_planes_are_larger() -> None:
    reference, engine = engines(RESNET, SHAPE)
    check = pruned(reference.initial_state(), 0.5)
    data = examples(1, SHAPE)
    loss = engine.train(check, data, HOW, 0)[1]
    assert loss == pytest.approx(reference.train(check, data, HOW, 0)[1], rel=1e-3)


def test_a_norm_over_one_value_is_refused() -> None:
    def tiny() -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5)
        )

    reference, engine = engines(tiny, (1, 2, 2))
    data = examples(1, (1, 2, 2))
    state = pruned(reference.initial_state(), 0.5)
    with pytest.raises(EngineError, match=r"norm '2' sees one value .* at least 2 examples"):
        engine.train(state, data, HOW, 0)
    with pytest.raises(EngineError, match=r"norm '2' sees one value .* at least 2 examples"):
        reference.train(state, data, HOW, 0)
    assert np.isfinite(engine.loss(state, data))  # running statistics do
    assert engine.train(state, examples(2, (1, 2, 2)), HOW, 0)[1] > 0


# Memory


IMAGE = (3, 16, 16)
WIDE = zoo("resnet18-w16", IMAGE)


@pytest.mark.parametrize(
    ("factory", "density"),
    [
        (zoo("resnet8", IMAGE), 0.1),
        *(slow((WIDE, density)) for density in (0.1, 0.6, 1.0)),
        (mobile(IMAGE), 0.1),
    ],
)
def test_the_memory_is_known_before_the_first_step(
    factory: Callable[[], nn.Module], density: float
) -> None:
    shape = IMAGE
    reference, engine = engines(factory, shape)
    state, data = pruned(reference.initial_state(), density), examples(32, shape)
    network._geometry.cache_clear()
    gc.collect()
    tracemalloc.start()
    made = engine.program(state, "train", 32)
    found, _ = tracemalloc.get_traced_memory()
    made.forward(data.inputs, np.arange(32))
    made.loss(data.targets)
    made.backward()
    made.step(0.1, 0.9, 0.0)
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    made.forward(data.inputs, np.arange(32))
    made.loss(data.targets)
    made.backward()
    made.step(0.1, 0.9, 0.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Room to start at a page is address space, never touched; structs and objects are the rest.
    assert isinstance(made._arena.base, np.ndarray)
    found -= made._arena.base.nbytes - made._arena.nbytes
    assert made.memory.peak <= found < 1.02 * made.memory.peak + 700_000
    assert peak - before < 10_000
    assert made.memory.gradients == made.network.parameters.values.nbytes


def test_tensors_share_memory() -> None:
    shape = (3, 16, 16)
    reference, engine = engines(zoo("resnet18-w16", shape), shape)
    state = pruned(reference.initial_state(), 0.1)
    tensors = sum(4 * 32 * int(np.prod(tensor.shape)) for tensor in engine.plan.tensors)
    training = engine.program(state, "train", 32).memory
    assert training.activations < 1.5 * tensors  # values and gradients alone are 2
    assert training.optimiser == training.gradients > 0
    evaluation = engine.program(state, "evaluate", 32).memory
    assert evaluation.activations < tensors / 4
    assert evaluation.gradients == evaluation.optimiser == 0
    assert training.peak == sum(vars(training).values())


def test_an_engine_at_rest_holds_nothing_and_computes_the_same() -> None:
    reference, engine = engines(RESNET, SHAPE)
    state, data = pruned(reference.initial_state(), 0.7), examples(8, SHAPE)
    first, loss = engine.train(state, data, HOW, 0)
    gc.collect()
    gc.disable()
    try:
        program = weakref.ref(engine.program(state, "train", 8))
        network = weakref.ref(engine.program(state, "train", 8).network)
        assert isinstance(engine, Resting)
        engine.rest()
        assert program() is None and network() is None
    finally:
        gc.enable()
    again, same = engine.train(state, data, HOW, 0)
    assert loss == same
    for name, value in first.weights.items():
        np.testing.assert_array_equal(again.weights[name], value)


def test_a_new_program_replaces_the_old_one_at_once() -> None:
    reference, engine = engines(RESNET, SHAPE)
    state, data = pruned(reference.initial_state(), 0.7), examples(8, SHAPE)
    gc.collect()
    gc.disable()
    try:
        engine.train(state, data, HOW, 0)
        old = weakref.ref(engine.program(state, "train", 8))
        nets = weakref.ref(engine.program(state, "train", 8).network)
        engine.loss(state, data)
        assert old() is None and nets() is not None
        engine.loss(pruned(state, 0.2), data)
        assert nets() is None
    finally:
        gc.enable()


def test_programs_are_kept_for_equal_masks_and_smaller_batches() -> None:
    reference, engine = engines(RESNET, SHAPE)
    state = pruned(reference.initial_state(), 0.7)
    made = engine.program(state, "train", 8)
    again = ModelState(state.weights, state.stats, {n: m.copy() for n, m in state.masks.items()})
    assert engine.program(again, "train", 5) is made
    assert engine.program(again, "train", 9) is not made
    assert isinstance(made, program.SparseProgram)
