"""Each baseline against a slow reference, made from its paper's definition."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call

from fedkit.config import make_config
from fedkit.core.errors import ConfigError, WireError
from fedkit.device.round import Device
from fedkit.engine.base import Engine, LocalTraining, even_batches
from fedkit.engine.torch import TorchEngine
from fedkit.methods import feddst
from fedkit.methods.feddst import FEDDST
from fedkit.methods.interface import Aggregated, LocalRound, Opening
from fedkit.methods.prunefl import PRUNEFL, reconfigure
from fedkit.methods.registry import METHODS
from fedkit.methods.schedule import block_quotas, kept_per_layer
from fedkit.methods.snip import saliency
from fedkit.methods.synflow import flow, synflow_masks
from fedkit.nn.blocks import conv_bn
from fedkit.nn.zoo import seeded
from fedkit.server.aggregation import aggregate, shares
from fedkit.server.rounds import LocalFleet, run_rounds
from fedkit.sparse.masks import global_masks
from fedkit.sparse.state import Masks, ModelState, apply_masks, count_kept
from fedkit.sparse.topk import Entries
from fedkit.tasks.task import Examples, cross_entropy
from fedkit.wire import messages
from fedkit.wire.messages import Packet, Update
from tests.engine.sparse.cases import engines, examples, pruned, zoo
from tests.methods import cases
from tests.methods.cases import SMALL, case, same_bits
from tests.naive import sparse as naive

Arrays = dict[str, NDArray[np.floating[Any]]]

run = functools.cache(cases.run)
SHAPE = (1, 8, 8)
RESNET = zoo("resnet8", SHAPE)


def error(found: NDArray[np.floating[Any]], expected: NDArray[np.floating[Any]]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def batch_gradients(engine: TorchEngine, state: ModelState, data: Examples) -> Arrays:
    """Return torch's own gradients of one batch in training mode."""
    model = engine.module(state).train()
    weights = dict(model.named_parameters())
    loss = cross_entropy(model(torch.from_numpy(data.inputs)), torch.from_numpy(data.targets))
    found = torch.autograd.grad(loss, [weights[name] for name in state.masks])
    return {name: g.numpy().copy() for name, g in zip(state.masks, found, strict=True)}


# Random and magnitude ------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "distribution"), [("random", "uniform"), ("erk", "erk")])
def test_random_masks_have_their_own_layer_densities(name: str, distribution: str) -> None:
    other = {"uniform": "erk", "erk": "uniform"}[distribution]
    made = [case(name, distribution=other, seed=seed).opening for seed in (1, 1, 2)]
    config = made[0].config.changed(distribution=distribution)
    first, again, second = (METHODS[name].start(opening).state for opening in made)
    expected = kept_per_layer(config, made[0].engine.layout.prunable_shapes)
    assert count_kept(first.masks) == count_kept(second.masks) == expected
    assert same_bits(first.masks, again.masks)
    assert not same_bits(first.masks, second.masks)
    correlation = [
        np.corrcoef(np.abs(made[0].dense.weights[n]).reshape(-1), mask.reshape(-1))[0, 1]
        for n, mask in first.masks.items()
        if mask.size > 1000
    ]
    assert np.abs(correlation).max() < 0.1


def test_magnitude_keeps_what_sorting_all_layers_keeps() -> None:
    opening = case("magnitude", density=0.05).opening
    state = METHODS["magnitude"].start(opening).state
    layers = {n: opening.dense.weights[n].reshape(-1).tolist() for n in state.masks}
    nothing = {name: [False] * len(layer) for name, layer in layers.items()}
    expected = naive.global_masks(layers, opening.budget, set(), nothing)
    assert {n: mask.reshape(-1).tolist() for n, mask in state.masks.items()} == expected


# SNIP and SSFL -------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1], ids=["torch", "sparse"])
def test_saliency_is_the_gradient_by_a_mask_of_ones(which: int) -> None:
    both, data = engines(RESNET, SHAPE), examples(20, SHAPE)
    state = both[0].initial_state()
    model = both[0].module(state).train()
    values = dict(model.named_parameters())
    ones = {name: torch.ones_like(values[name], requires_grad=True) for name in state.masks}
    masked = {name: values[name].detach() * one for name, one in ones.items()}
    outputs = functional_call(model, masked, torch.from_numpy(data.inputs))
    loss = cross_entropy(outputs, torch.from_numpy(data.targets))
    expected = torch.autograd.grad(loss, list(ones.values()))
    found = saliency(both[which], state, data)
    assert list(found) == list(ones)
    for (name, score), gradient in zip(found.items(), expected, strict=True):
        assert score.shape == gradient.shape and score.dtype == np.float32
        assert error(score, gradient.abs().numpy()) < 1e-4, name


def test_snip_keeps_the_most_salient_on_the_servers_data() -> None:
    opening = case("snip").opening
    scores = saliency(opening.engine, opening.dense, opening.sample(SMALL["adjust_examples"]))
    masks = METHODS["snip"].start(opening).state.masks
    assert same_bits(masks, global_masks(scores, opening.budget))
    least = min(scores[n][mask].min() for n, mask in masks.items() if mask.sum() > 1)
    assert least >= max(scores[n][~mask].max() for n, mask in masks.items())


@pytest.mark.parametrize("name", ["snip", "prunefl"])
def test_methods_that_score_on_the_server_need_data_there(name: str) -> None:
    opening = replace(case(name).opening, server_data=None)
    with pytest.raises(ConfigError, match=f"method '{name}' scores .*raise it, or take .*ssfl"):
        METHODS[name].start(opening)


def test_ssfl_averages_the_devices_scores_by_their_examples() -> None:
    made = case("ssfl", adjust_examples=8)
    few = made.devices[1].examples.take(np.arange(10))
    devices = [made.devices[0], replace(made.devices[1], examples=few)]
    opening = replace(made.opening, fleet=LocalFleet(devices))
    scores = []
    for device in devices:
        order = np.random.default_rng([made.server.config.seed, 4, 0, device.index])
        chosen = order.permutation(len(device.examples))[:8]
        scores.append(saliency(device.engine, opening.dense, device.examples.take(chosen)))
    mean = {n: ((24 * scores[0][n].astype(np.float64) + 10 * scores[1][n]) / 34) for n in scores[0]}
    masks = METHODS["ssfl"].start(opening).state.masks
    expected = global_masks({n: s.astype(np.float32) for n, s in mean.items()}, opening.budget)
    differing = sum(int((masks[n] != expected[n]).sum()) for n in masks)
    assert differing <= 2  # The order of float64 sums may move the last one.
    plain = global_masks({n: scores[0][n] + scores[1][n] for n in mean}, opening.budget)
    assert sum(int((masks[n] != plain[n]).sum()) for n in masks) > 10


def test_ssfl_sends_the_dense_model_once_and_gets_a_score_per_weight() -> None:
    _, reports, fleet = run("ssfl", rounds=1)
    _, request, replies = fleet.log[0]
    assert [phase for phase, _, _ in fleet.log] == ["survey", "train"]
    dense = reports[0].state
    assert len(request.arrays["values"]) == sum(w.size for w in dense.weights.values())
    sizes = sum(mask.size for mask in dense.masks.values())
    assert [reply.arrays["scores"].shape for reply in replies] == [(sizes,)] * 2
    assert reports[1].bytes_up >= 2 * 4 * sizes


@pytest.mark.parametrize("name", [n for n, row in METHODS.items() if row.survey is None])
def test_a_survey_is_refused_by_methods_without_one(name: str) -> None:
    device = case(name).devices[0]
    request = messages.pack_state(device.engine.initial_state(), None)
    with pytest.raises(
        WireError, match=f"method '{name}' has no survey; server and device run diff"
    ):
        device.handle("survey", request, Packet({}))


# SynFlow -------------------------------------------------------------------------------------


def bare_opening(model: nn.Module, shape: tuple[int, ...], density: float) -> Opening:
    engine = TorchEngine(model, cross_entropy)
    config = make_config({"method": "synflow", "density": density})
    state, fleet = engine.initial_state(), LocalFleet([])
    return Opening(config, engine, state, None, fleet, engine.module, shape)


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 4, bias=False))


def path_scores(first: NDArray[np.float64], second: NDArray[np.float64]) -> list[Any]:
    """Add every path from an input to an output to the scores of both weights on it."""
    one, two = np.zeros_like(first), np.zeros_like(second)
    for (hidden, source), weight in np.ndenumerate(first):
        for target in range(len(second)):
            strength = abs(weight * second[target, hidden])
            one[hidden, source] += strength
            two[target, hidden] += strength
    return [one, two]


def test_flow_is_the_sum_over_all_paths() -> None:
    engine = TorchEngine(seeded(two_layers, 1), cross_entropy)
    state = pruned(engine.initial_state(), 0.7)
    found = flow(engine.module(state), state, (6,))
    expected = path_scores(*(w.astype(np.float64) for w in state.weights.values()))
    for score, reference in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(score, reference, rtol=1e-12)


def test_synflow_prunes_as_a_hundred_rounds_over_all_paths_do() -> None:
    opening = bare_opening(seeded(two_layers, 1), (6,), 0.2)
    weights = [w.astype(np.float64) for w in opening.dense.weights.values()]
    total = sum(w.size for w in weights)
    for step in range(1, 101):
        kept = max(10, round(total * (10 / total) ** (step / 100)))
        scores = path_scores(*weights)
        flat = sorted(np.concatenate([s.reshape(-1) for s in scores]))[::-1]
        weights = [
            np.where(s >= flat[kept - 1], w, 0) for s, w in zip(scores, weights, strict=True)
        ]
    masks = synflow_masks(opening)
    assert [mask.tolist() for mask in masks.values()] == [(w != 0).tolist() for w in weights]
    assert sum(count_kept(masks).values()) == 10


def chain(*middle: nn.Module) -> nn.Module:
    """Three convolutions without biases and a linear layer."""
    parts = [nn.Conv2d(2, 4, 3, padding=1, bias=False), *middle, nn.Conv2d(4, 5, 3, 2, bias=False)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3, bias=False)]
    return nn.Sequential(*parts, nn.ReLU(), *head)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_flow_is_conserved_from_layer_to_layer(activation: type[nn.Module]) -> None:
    """However large it is: a bounded activation would stop it."""
    model = seeded(lambda: chain(activation(), nn.MaxPool2d(2)), 0)
    engine = TorchEngine(model, cross_entropy)
    state = pruned(engine.initial_state(), 0.8)
    state = replace(state, weights={n: 100 * w for n, w in state.weights.items()})
    sums = [float(score.sum()) for score in flow(engine.module(state), state, (2, 8, 8)).values()]
    assert sums[0] > 1e4
    np.testing.assert_allclose(sums, sums[0], rtol=1e-12)
    bound = [part.max_val for part in model.modules() if isinstance(part, nn.ReLU6)]
    assert bound == [6.0] * (activation is nn.ReLU6)


def test_flow_does_not_depend_on_signs_or_threads() -> None:
    engine = TorchEngine(seeded(RESNET, 0), cross_entropy)
    state = pruned(engine.initial_state(), 0.5)
    positive = replace(state, weights={n: np.abs(w) for n, w in state.weights.items()})
    before = torch.get_num_threads()
    found = []
    for threads, given_state in ((1, state), (2, state), (1, positive)):
        torch.set_num_threads(threads)
        found.append(flow(engine.module(state), given_state, SHAPE))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])


def deep() -> nn.Module:
    """VGG-11 at an eighth of its width."""
    layers: list[nn.Module] = []
    cin = 3
    for width in (8, 0, 16, 0, 32, 32, 0, 64, 64, 0, 64, 64, 0):
        layers += [conv_bn(cin, width, 3), nn.ReLU()] if width else [nn.MaxPool2d(2)]
        cin = width or cin
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(cin, 10))


def test_no_layer_collapses_where_magnitude_lets_one() -> None:
    opening = bare_opening(seeded(deep, 0), (3, 32, 32), 0.01)
    synflow, magnitude = (METHODS[n].start(opening).state for n in ("synflow", "magnitude"))
    module = opening.engine.module(opening.dense)  # type: ignore[attr-defined]
    alive = flow(module, synflow, opening.input_shape)
    # The share of kept weights that a path from input to output goes through.
    shares = [float((alive[n][mask] > 0).mean()) for n, mask in synflow.masks.items()]
    assert min(shares) > 0.9
    dead = flow(module, magnitude, opening.input_shape)
    assert min(float((dead[n][mask] > 0).mean()) for n, mask in magnitude.masks.items()) < 0.5
    assert min(count_kept(synflow.masks).values()) > 5


# PruneFL -------------------------------------------------------------------------------------

VALUES = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0])


def slow_reconfigure(
    weights: dict[str, list[float]],
    masks: dict[str, list[bool]],
    counts: dict[str, int],
    squares: dict[str, list[float]],
    share: Fraction,
    whole: set[str],
) -> dict[str, list[bool]] | None:
    stay = {}
    for name, layer in weights.items():
        order = sorted(range(len(layer)), key=lambda i: (not masks[name][i], -abs(layer[i]), i))
        stay[name] = [i in order[: int((1 - share) * counts[name])] for i in range(len(layer))]
    return naive.global_masks(squares, sum(counts.values()), whole, stay)


@given(st.data(), st.fractions(0, 1, max_denominator=1000))
def test_reconfiguring_equals_the_slow_one(data: st.DataObject, share: Fraction) -> None:
    weights, masks, squares = {}, {}, {}
    for name in "abc"[: data.draw(st.integers(1, 3))]:
        size = data.draw(st.integers(1, 10))
        masks[name] = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
        masks[name][data.draw(st.integers(0, size - 1))] = True
        drawn = data.draw(st.lists(VALUES, min_size=size, max_size=size))
        weights[name] = [v * kept for v, kept in zip(drawn, masks[name], strict=True)]
        positive = st.sampled_from([0.0, 0.25, 1.0, 3.0])
        squares[name] = data.draw(st.lists(positive, min_size=size, max_size=size))
    counts = {name: sum(mask) for name, mask in masks.items()}
    exempt = ("first",) if all(masks["a"]) and data.draw(st.booleans()) else ()
    state = ModelState(
        {n: np.array(w, np.float32) for n, w in weights.items()}, {},
        {n: np.array(m) for n, m in masks.items()},
    )  # fmt: skip
    found = reconfigure(state, counts, {n: np.array(s) for n, s in squares.items()}, share, exempt)
    whole = {"a"} if exempt else set()
    expected = slow_reconfigure(weights, masks, counts, squares, share, whole)
    assert {n: mask.tolist() for n, mask in found.items()} == expected


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_gradient_sums_are_those_of_every_step(density: float) -> None:
    """One epoch of two batches; steps so small that weights stay what they are."""
    reference, sparse = engines(RESNET, SHAPE)
    state, data = pruned(reference.initial_state(), density), examples(20, SHAPE)
    how = LocalTraining(epochs=1, batch_size=10, lr=1e-12, momentum=0.9, weight_decay=0.3)
    found: list[dict[str, NDArray[np.float32]]] = [{}, {}]
    both: tuple[Engine, ...] = (reference, sparse)
    for engine, sums in zip(both, found, strict=True):
        with_sums, _ = engine.train(state, data, how, 3, sums)
        without, _ = engine.train(state, data, how, 3)
        assert same_bits(with_sums.weights, without.weights)
    batches = even_batches(np.random.default_rng(3).permutation(20), 10)
    by_hand = [batch_gradients(reference, state, data.take(part)) for part in batches]
    assert found[0].keys() == found[1].keys() == state.masks.keys()
    for name in state.masks:
        expected = by_hand[0][name] + by_hand[1][name]
        assert error(found[0][name], expected) < 1e-5
        assert error(found[1][name], expected) < 1e-4
        assert found[1][name].dtype == np.float32 and found[1][name].shape == expected.shape


def round_of(
    device: Device, number: int, kept: dict[str, Any], layers: Sequence[str]
) -> LocalRound:
    return LocalRound(
        device.config, device.engine, device.examples, device.index, number, layers, kept
    )


def test_squares_add_up_until_they_are_sent() -> None:
    made = case("prunefl", adjust_every=2, rounds=6, adjust_stop=6)
    device, config = made.devices[1], made.server.config
    state = PRUNEFL.start(made.opening).state
    request = messages.pack_state(state, None)
    memory, expected = Packet({}), {n: np.zeros(m.shape) for n, m in state.masks.items()}
    for number in (1, 2, 3):
        train = Packet(request.arrays, {**request.numbers, "round": number})
        reply, memory = device.handle("train", train, memory)
        sums: dict[str, NDArray[np.float32]] = {}
        round_of(device, number, {}, ()).train(state, gradient_sums=sums)
        for name, value in sums.items():
            expected[name] += value.astype(np.float64) ** 2 * config.epochs * len(device.examples)
        assert ("gradients" in reply.arrays) == (number == 2)
        if number == 2:
            layers = list(state.masks)
            sent = messages.read_update(reply, device.engine.layout, state, layers).gradients
            for name, entries in sent.items():
                assert entries.indices.tolist() == list(range(expected[name].size))
                assert error(entries.values, expected[name].reshape(-1)) < 1e-5
            expected = {n: np.zeros(m.shape) for n, m in state.masks.items()}
            assert list(memory.arrays) == ["known_masks"]
        else:
            for name, total in expected.items():
                assert error(memory.arrays[f"kept.{name}"], total) < 1e-5


def test_devices_squares_are_summed_whatever_their_shares() -> None:
    """They hold their numbers of examples already."""
    config = make_config({**SMALL, "method": "prunefl", "adjust_share": 0.5})
    mask = {"w": np.array([True, True, False, False])}
    state = ModelState({"w": np.array([1, 1, 0, 0], np.float32)}, {}, mask)
    sent = [np.array([0, 0, 5, 1], np.float32), np.array([0, 0, 0, 3], np.float32)]
    entries = [{"w": Entries(np.arange(4), squares)} for squares in sent]
    updates = [Update(state, n, 0.0, e) for n, e in zip((1, 9), entries, strict=True)]
    # By shares, 0.1 * 5 would be less than 0.1 * 1 + 0.9 * 3.
    after = PRUNEFL.adjust(Aggregated(config, 1, mask, state, updates, shares(updates)))
    assert after.masks["w"].tolist() == [True, False, True, False]
    assert after.weights["w"].tolist() == [1, 0, 0, 0]


# FedDST --------------------------------------------------------------------------------------


def first_replies(**changes: object) -> tuple[ModelState, list[Update], list[Device]]:
    made = case("feddst", **changes)
    state = FEDDST.start(made.opening).state
    request = messages.pack_state(state, None)
    train = Packet(request.arrays, {**request.numbers, "round": 1})
    replies = [device.handle("train", train, Packet({}))[0] for device in made.devices]
    layout = made.server.engine.layout
    read = [messages.read_update(r, layout, state, [], own_masks=True) for r in replies]
    return state, read, made.devices


def test_a_device_moves_its_quota_in_every_layer() -> None:
    state, updates, devices = first_replies()
    quotas = block_quotas(devices[0].config, state.masks, list(state.masks), 1)
    for update in updates:
        masks = update.state.masks
        assert count_kept(masks) == count_kept(state.masks)
        moved = {n: int((masks[n] & ~mask).sum()) for n, mask in state.masks.items()}
        assert moved == quotas
    assert max(quotas.values()) > 10
    assert not same_bits(updates[0].state.masks, updates[1].state.masks)


def test_a_device_trains_swaps_and_trains() -> None:
    """Half of the epochs, rounded down, before the swap; by hand with the naive one."""
    state, updates, devices = first_replies(epochs=3)
    device, update = devices[0], updates[0]
    part = round_of(device, 1, {}, ())
    before, _ = part.train(state, 1)
    data = part.sample
    moved = {}
    for name, amount in block_quotas(device.config, state.masks, list(state.masks), 1).items():
        gradient = device.engine.gradients(before, data)[name].reshape(-1)
        flags = state.masks[name].reshape(-1).tolist()
        pruned_ones = {i: float(gradient[i]) for i, kept in enumerate(flags) if not kept}
        weights = before.weights[name].reshape(-1).tolist()
        new = naive.swap_layer(weights, flags, pruned_ones, amount)
        moved[name] = np.array(new).reshape(state.masks[name].shape)
    assert same_bits(update.state.masks, moved)
    after, loss = part.train(before.with_masks(moved), 2, part=1)
    assert same_bits(after.weights, update.state.weights)
    assert loss == update.loss


def test_outside_adjusting_rounds_devices_keep_their_masks() -> None:
    state, updates, _ = first_replies(adjust_every=2)
    assert all(same_bits(update.state.masks, state.masks) for update in updates)


def test_the_server_returns_to_the_counts_of_each_layer() -> None:
    state, updates, devices = first_replies()
    config, parts = devices[0].config, shares(updates)
    merged = aggregate(config, updates, parts)
    union = count_kept(merged.masks)
    counts = count_kept(state.masks)
    assert all(union[n] >= count for n, count in counts.items()) and union != counts
    after = FEDDST.adjust(Aggregated(config, 1, state.masks, merged, updates, parts))
    assert count_kept(after.masks) == counts
    for name, mask in after.masks.items():
        assert not (mask & ~merged.masks[name]).any()
        outside = np.abs(merged.weights[name][merged.masks[name] & ~mask])
        assert np.abs(merged.weights[name][mask]).min() >= outside.max(initial=0)
        assert np.array_equal(after.weights[name], np.where(mask, merged.weights[name], 0))


@given(st.data())
def test_a_weight_is_the_mean_over_the_devices_that_keep_it(data: st.DataObject) -> None:
    size, count = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    updates = []
    for _ in range(count):
        flags = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
        values = data.draw(st.lists(st.floats(-9, 9, width=32), min_size=size, max_size=size))
        mask = {"w": np.array(flags)}
        weights = apply_masks({"w": np.array(values, np.float32)}, mask)
        bias = {"b": np.array(values[:1], np.float32)}
        state = ModelState({**weights, **bias}, {}, mask)
        updates.append(Update(state, data.draw(st.integers(1, 50)), 0.0, {}))
    merged = aggregate(make_config({}), updates, shares(updates))
    for i in range(size):
        keepers = [u for u in updates if u.state.masks["w"][i]]
        total = sum(u.examples for u in keepers)
        mean = sum(float(u.state.weights["w"][i]) * u.examples for u in keepers) / (total or 1)
        assert merged.weights["w"][i] == pytest.approx(mean, rel=1e-5, abs=1e-5)
        assert merged.masks["w"][i] == bool(keepers)
    everyone = sum(u.examples for u in updates)
    bias_mean = sum(float(u.state.weights["b"][0]) * u.examples for u in updates) / everyone
    assert merged.weights["b"][0] == pytest.approx(bias_mean, rel=1e-5, abs=1e-5)


@given(st.data())
def test_what_no_device_keeps_is_not_kept_even_among_zeros(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 12))
    union = data.draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any))
    zeros = st.sampled_from([0.0, 0.0, -1.0])
    values = data.draw(st.lists(zeros, min_size=size, max_size=size))
    count = data.draw(st.integers(1, sum(union)))
    masks: Masks = {"w": np.array(union)}
    state = ModelState(apply_masks({"w": np.array(values, np.float32)}, masks), {}, masks)
    sent = {"w": np.arange(size) < count}
    config = make_config({**SMALL, "method": "feddst"})
    after = feddst.adjust(Aggregated(config, 1, sent, state, [], []))
    assert after.masks["w"].sum() == count
    assert not (after.masks["w"] & ~masks["w"]).any()


def test_a_device_with_masks_of_its_own_is_refused_by_other_methods() -> None:
    """The server runs a static method that starts with the same masks as FedDST."""
    served, devices = case("erk"), case("feddst").devices
    assert [name for name, row in METHODS.items() if row.own_masks] == ["feddst"]
    with pytest.raises(WireError, match=r"masks of its own.*give both the same config"):
        list(run_rounds(served.server, LocalFleet(devices), served.server_data))


# FedTiny and its parts -----------------------------------------------------------------------


def phases(name: str) -> list[str]:
    return [phase for phase, _, _ in run(name)[2].log]


def test_each_kind_of_selection_sends_what_it_needs() -> None:
    trains = ["train"] * 3
    assert phases("fedtiny") == ["moments", "losses", *trains]
    assert phases("fedtiny-vanilla") == ["losses", *trains]
    assert phases("fedtiny-no-selection") == trains


def test_vanilla_ranks_and_trains_under_the_dense_starts_statistics() -> None:
    _, reports, fleet = run("fedtiny-vanilla", sparse_epochs=0)
    start, selected = reports[0].state, reports[1].state
    assert same_bits(selected.stats, start.stats)
    _, request, replies = fleet.log[0]
    devices = case("fedtiny-vanilla").devices
    pool = messages.read_pool(request, devices[0].engine.layout)
    losses = np.array(
        [
            [device.engine.loss(pool.candidate(i), device._development) for i in range(len(pool))]
            for device in devices
        ]
    )
    assert [reply.arrays["losses"].tolist() for reply in replies] == losses.tolist()
    chosen = int(losses.mean(axis=0).argmin())  # Both devices hold as many examples.
    assert same_bits(selected.masks, pool.candidate(chosen).masks)
    assert fleet.log[1][1].numbers["candidate"] == chosen
    assert reports[1].loss == pytest.approx(losses.mean(axis=0).min())
    adaptive = run("fedtiny")[1][1].state
    assert not same_bits(adaptive.stats, start.stats)


def test_without_selection_the_candidate_without_noise_is_sent_whole() -> None:
    config, reports, fleet = run("fedtiny-no-selection")
    expected = kept_per_layer(config, case("fedtiny").server.engine.layout.prunable_shapes)
    assert count_kept(reports[1].state.masks) == expected
    assert reports[1].loss is None and reports[1].bytes_down == reports[1].bytes_up == 0
    assert {"masks", "values", "stats"} == set(fleet.log[0][1].arrays)


def test_adaptive_selection_is_what_fedtiny_does_anyway() -> None:
    one, other = run("fedtiny")[1], run("fedtiny", selection="adaptive")[1]
    assert same_bits(one[-1].state.weights, other[-1].state.weights)
    # A user's key is the same as the row that fixes it.
    mine, row = run("fedtiny", selection="vanilla")[1], run("fedtiny-vanilla")[1]
    assert same_bits(mine[-1].state.weights, row[-1].state.weights)


def test_without_progressive_pruning_no_gradient_is_ever_sent() -> None:
    _, reports, fleet = run("fedtiny-no-progressive")
    replies = [reply for phase, _, answers in fleet.log if phase == "train" for reply in answers]
    assert len(replies) == 6
    assert not any({"gradients", "positions"} & set(reply.arrays) for reply in replies)
    assert all(same_bits(r.state.masks, reports[1].state.masks) for r in reports[2:])
    _, _, whole = run("fedtiny")
    assert any("gradients" in reply.arrays for _, _, answers in whole.log for reply in answers)


def test_the_entire_model_takes_its_turn_at_once() -> None:
    _, reports, _ = run("fedtiny-entire")
    before, after = reports[1].state.masks, reports[2].state.masks
    assert all((after[n] != mask).any() for n, mask in before.items() if not mask.all())
    before, after = (report.state.masks for report in run("fedtiny")[1][1:3])
    assert not all((after[n] != mask).any() for n, mask in before.items() if not mask.all())


def test_uniform_candidates_are_about_equally_dense_in_every_layer() -> None:
    _, reports, _ = run("fedtiny-uniform", noise=0.0)
    large = [mask for mask in reports[1].state.masks.values() if mask.size > 500]
    assert len(large) > 5
    assert all(abs(mask.mean() - 0.1) < 0.005 for mask in large)
