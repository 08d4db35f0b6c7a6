"""Differential privacy: sensitivity, noise, what is refused, and what it costs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import quad

from fedkit.config import RunConfig, make_config
from fedkit.core.errors import ConfigError
from fedkit.methods.interface import (
    Aggregated,
    Answer,
    Method,
    Opened,
    Opening,
    Phase,
    Request,
    whole_model,
)
from fedkit.methods.registry import METHODS, load_method, resolve
from fedkit.server.aggregation import aggregate, shares
from fedkit.server.checkpoint import RunFolder
from fedkit.server.participation import choice
from fedkit.server.privacy import (
    add_noise,
    check_private,
    clip_updates,
    epsilon,
    epsilon_known,
    private_model,
)
from fedkit.server.record import record
from fedkit.server.rounds import run_rounds, train_round
from fedkit.sparse.state import ModelState
from fedkit.wire.messages import Packet, Update
from sim.scenario import make_scenario

PRIVATE: dict[str, Any] = {"dp_clip": 0.5, "method": "erk"}

Floats = NDArray[np.float32]


def model(values: Any, bias: float = 0.0) -> ModelState:
    weights = {"w": np.asarray(values, np.float32), "b": np.full(1, bias, np.float32)}
    mask = np.ones(weights["w"].shape, np.bool_)
    return ModelState(weights, {}, {"w": mask})


def distance(one: ModelState, other: ModelState) -> float:
    changes = [one.weights[name].astype(float) - other.weights[name] for name in one.weights]
    return math.sqrt(sum(float(np.square(change).sum()) for change in changes))


# Sensitivity

NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e9])


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[RunConfig, ModelState, list[Update], int]:
    """A run, the model it sent, what devices returned, and which of them is left out."""
    devices = draw(st.integers(1, 40))
    sampled = {"devices_per_round": draw(st.integers(0, devices)), "devices": devices}
    config = make_config(
        {**PRIVATE, **sampled, "dp_clip": draw(st.sampled_from([1e-6, 0.5, 1.0, 1e6]))}
    )
    vectors = st.lists(NUMBERS, min_size=3, max_size=3)
    sent = draw(vectors)
    some = draw(st.lists(vectors, min_size=1, max_size=4))
    answers = draw(st.lists(st.sampled_from(some), min_size=1, max_size=devices))
    counts = draw(st.integers(1, 2**32 - 1))
    updates = [Update(model(values), counts, 1.0, {}) for values in answers]
    return config, model(sent), updates, draw(st.integers(0, len(updates) - 1))


@settings(deadline=None, max_examples=150)
@given(neighbours())
def test_a_device_more_or_less_moves_the_mean_by_no_more_than_the_noise_is_scaled_by(
    case: tuple[RunConfig, ModelState, list[Update], int],
) -> None:
    """Whichever devices leave, whatever the others sent, and however few are left.

    More may be drawn than are asked on average.
    """
    config, sent, updates, out = case
    clipped = clip_updates(config, sent, updates)
    rest = clipped[:out] + clipped[out + 1 :]
    mean = aggregate(config, clipped, shares(clipped))
    less = aggregate(config, rest, shares(rest)) if rest else model([0, 0, 0])
    assert distance(mean, less) <= config.dp_clip / config.asked


@pytest.mark.parametrize("devices", [2, 10, 1000])
def test_the_worst_device_moves_the_mean_by_just_that(devices: int) -> None:
    """All pull one way and one the other: the bound is met, so that no noise is wasted either."""
    config = make_config({**PRIVATE, "devices": devices})
    updates = [Update(model([9.0]), 1, 1.0, {})] * (devices - 1)
    against = [*updates, Update(model([-9.0]), 1, 1.0, {})]
    moved = [
        aggregate(config, clipped, shares(clipped))
        for clipped in (clip_updates(config, model([0.0]), u) for u in (updates, against))
    ]
    bound = config.dp_clip / devices
    assert 0.999 * bound < distance(*moved) <= bound


class Without:
    """A fleet of a scenario's devices of which some are away."""

    traffic = (0, 0)

    def __init__(self, devices: Sequence[Any], away: set[int]) -> None:
        self._devices, self._away = devices, away

    def choose(self, order: Sequence[int], count: int, spare: int = 0) -> None:
        """Ask every device all the same."""

    def exchange(
        self, phase: Phase, request: Request, read: Callable[[Packet], Answer]
    ) -> list[Answer]:
        present = [device for device in self._devices if device.index not in self._away]
        return [read(device.handle(phase, request.whole(), Packet({}))[0]) for device in present]


@pytest.mark.parametrize("wire", ["fp32", "fp16"])
def test_a_round_without_a_device_differs_by_the_sensitivity_at_most(wire: str) -> None:
    """Through all steps from devices to aggregation; without noise, to see the mean."""
    keys = {"devices": 4, "rounds": 1, "epochs": 1, "partition": "iid", "examples_per_device": 20}
    config = make_config({**keys, **PRIVATE, "dp_clip": 0.01, "dp_noise": 0.0, "wire": wire})
    scenario = make_scenario(config)
    server, devices = scenario.server(), [scenario.device(index) for index in range(4)]
    state = scenario.engine.initial_state()

    def after(away: set[int]) -> ModelState:
        return train_round(server, Without(devices, away), whole_model(state), state, 1)[0]

    everybody = after(set())
    rounding = sum(float(np.abs(w).sum()) for w in state.weights.values()) * 2.0**-23
    for away in ({0}, {3}):
        moved = distance(everybody, after(away))
        assert 0 < moved <= config.dp_clip / 4 + rounding
    assert distance(after({0, 1}), after({0, 1, 2})) <= config.dp_clip / 4 + rounding


def test_a_small_change_is_left_alone_and_an_absent_device_is_a_change_of_zero() -> None:
    config, sent = make_config({**PRIVATE, "devices": 4, "dp_noise": 0.0}), model([1.0, 2.0])
    near = Update(model([1.25, 2.0]), 7, 1.0, {})
    assert private_model(config, sent, [near] * 4).weights["w"] == pytest.approx([1.25, 2.0])
    assert private_model(config, sent, [near]).weights["w"] == pytest.approx([1.0625, 2.0])


def test_noise_has_the_deviation_that_epsilon_is_counted_with_and_spares_pruned_weights() -> None:
    config = make_config({**PRIVATE, "dp_noise": 2.0, "devices": 4})
    mask = np.random.default_rng(0).random((300, 300)) < 0.5
    zero = ModelState({"w": np.zeros(mask.shape, np.float32)}, {}, {"w": mask})
    noise = add_noise(config, zero, zero).weights["w"]
    assert not noise[~mask].any()
    assert noise[mask].std() == pytest.approx(2.0 * 0.5 / 4, rel=0.03)
    assert (add_noise(config, zero, zero).weights["w"] != noise).any()  # fresh each time


# A sample


def sampled(devices: int, asked: int, **keys: Any) -> RunConfig:
    return make_config({**PRIVATE, "devices": devices, "devices_per_round": asked, **keys})


def test_each_device_is_drawn_by_a_chance_of_its_own_that_nobody_can_repeat() -> None:
    """Binomial counts, as Poisson sampling has: a fixed number is another mechanism."""
    config = sampled(20, 5)
    drawn = [choice(config, number) for number in [1] * 4000]
    counts = [each.taken for each in drawn if each is not None]
    assert all(each is not None and len(each.order) == each.taken for each in drawn)
    found = np.bincount(counts, minlength=21)
    wanted = 4000 * stats.binom.pmf(np.arange(21), 20, 0.25)
    assert np.abs(found - wanted).max() < 6 * np.sqrt(wanted.max())
    times = np.bincount([d for each in drawn if each for d in each.order], minlength=20)
    assert np.abs(times - 1000).max() < 6 * np.sqrt(750)
    assert choice(config.changed(dp_clip=0.0), 1) == choice(config.changed(dp_clip=0.0), 1)
    assert choice(sampled(5, 5), 1) is not None  # all of them, each time
    assert len(choice(sampled(5, 5), 1).order) == 5  # type: ignore[union-attr]


def test_the_sampled_mean_is_the_mechanism_that_epsilon_is_counted_for() -> None:
    """Clipping, draw, divisor and noise together: a Gaussian around a binomial number of clips."""
    config, sent = sampled(6, 2, dp_noise=0.5), model([0.0])
    far = Update(model([100.0]), 7, 1.0, {})
    found = []
    for _ in range(3000):
        drawn = choice(config, 1)
        assert drawn is not None
        after = private_model(config, sent, [far] * drawn.taken)
        found.append(float(after.weights["w"][0]) / (config.dp_clip / config.asked))

    def below(x: Any) -> Any:
        chances = stats.binom.pmf(np.arange(7), 6, 1 / 3)
        return sum(p * stats.norm.cdf(x, k, 0.5) for k, p in enumerate(chances))

    assert stats.kstest(found, below).pvalue > 1e-6
    assert np.mean(found) == pytest.approx(2, abs=0.15)  # what asking two of them gives


def test_a_round_that_asks_nobody_is_noise() -> None:
    config, sent = sampled(6, 2, dp_noise=0.0), model([1.0, 2.0])
    assert private_model(config, sent, []).weights["w"] == pytest.approx([1.0, 2.0])
    noisy = private_model(config.changed(dp_noise=1.0), sent, [])
    assert distance(noisy, sent) > 0


def test_a_private_run_asks_a_sample(tmp_path: Path) -> None:
    """Over rounds of which some ask nobody: 4 of 5 devices stay out on average."""
    keys = {**SMALL, "rounds": 6, "devices": 5, "devices_per_round": 1}
    scenario = make_scenario(make_config({**keys, **PRIVATE}))
    scenario.check()
    record(scenario, scenario.local_fleet(), tmp_path / "run", lambda step: None)
    *_, first, last = RunFolder.open(tmp_path / "run").metrics()
    assert last["epsilon"] == epsilon(scenario.config, 6) > first["epsilon"]
    assert last["epsilon_known"] == epsilon_known(scenario.config, 6) > last["epsilon"]


def test_a_sample_needs_the_accountant_and_no_spare_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_private(sampled(6, 2), load_method("erk"))
    with pytest.raises(ConfigError, match="a device would take the place of another"):
        check_private(sampled(6, 2, over_selection=0.5), load_method("erk"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_private(make_config(PRIVATE), load_method("erk"))
    with pytest.raises(ConfigError, match=r"pip install 'fedkit\[privacy\]'"):
        check_private(sampled(6, 2), load_method("erk"))


# Cost


def costs(noise: float, delta: float) -> RunConfig:
    return make_config({**PRIVATE, "dp_noise": noise, "dp_delta": delta})


@pytest.mark.parametrize(
    ("noise", "rounds", "delta", "expected"),
    [
        # dp_accounting.get_epsilon_gaussian(noise / sqrt(rounds), delta), dp-accounting 0.6.0.
        (1.0, 1, 1e-5, 4.377178095681225),
        (1.0, 30, 1e-5, 37.622456930989525),
        (0.5, 1, 1e-5, 9.9972561464343),
        (0.5, 30, 1e-5, 105.8760909663677),
        (2.0, 100, 1e-6, 35.56634371413623),
        (5.0, 7, 1e-6, 2.3990293630511213),
        (10.0, 1, 1e-3, 0.19753397323969776),
        (0.05, 3, 1e-5, 746.7972855236617),
    ],
)
def test_epsilon_is_what_the_accounting_library_of_google_says(
    noise: float, rounds: int, delta: float, expected: float
) -> None:
    assert epsilon(costs(noise, delta), rounds) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("noise", "devices", "asked", "rounds", "delta"),
    [
        (1.0, 10, 1, 1, 1e-5),
        (1.0, 10, 1, 30, 1e-5),
        (1.1, 60000, 256, 3516, 1e-5),  # the tutorial of TensorFlow Privacy: 15 epochs of MNIST
        (0.8, 1000, 100, 100, 1e-6),
        (5.0, 100, 50, 200, 1e-6),
    ],
)
def test_epsilon_of_a_sample_is_what_the_accounting_library_says(
    noise: float, devices: int, asked: int, rounds: int, delta: float
) -> None:
    config = sampled(devices, asked, dp_noise=noise, dp_delta=delta)
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    gaussian = dp_accounting.GaussianDpEvent(noise)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(asked / devices, gaussian), rounds)
    # Never less, and no more than a coarser grid of losses makes it.
    assert 1 <= epsilon(config, rounds) / accountant.get_epsilon(delta) + 1e-9 < 1.001
    renyi = rdp.RdpAccountant()
    renyi.compose(dp_accounting.PoissonSampledDpEvent(asked / devices, gaussian), rounds)
    assert epsilon(config, rounds) < renyi.get_epsilon(delta)  # another bound, not as tight
    assert epsilon(config, rounds) < epsilon_known(config, rounds)


@pytest.mark.parametrize("noise", [0.6, 1.0, 3.0])
@pytest.mark.parametrize("asked", [1, 5, 9])
def test_epsilon_of_one_sampled_round_is_its_closed_form(noise: float, asked: int) -> None:
    """delta of a sample at log(1 + q (e^x - 1)) is q times delta of the whole at x."""
    q = asked / 10
    whole = epsilon(costs(noise, 1e-5 / q), 1)
    found = epsilon(sampled(10, asked, dp_noise=noise), 1)
    wanted = math.log1p(q * math.expm1(whole))
    assert wanted <= found <= wanted + 1e-4


def test_epsilon_of_samples_is_defined_everywhere_and_grows() -> None:
    rates = [epsilon(sampled(10, asked, dp_noise=1.0), 20) for asked in range(1, 11)]
    assert rates == sorted(rates)
    assert rates[-1] == epsilon(costs(1.0, 1e-5), 20)
    rounds = [epsilon(sampled(10, 2), n) for n in (0, 1, 2, 10, 1000, 100_000)]
    assert rounds == sorted(rounds) and rounds[0] == 0
    assert math.isinf(epsilon(sampled(10, 2, dp_noise=0.0), 1))
    for noise in (1e-3, 0.05, 1e3):
        assert 0 <= epsilon(sampled(10, 2, dp_noise=noise), 100) < math.inf


@pytest.mark.parametrize("noise", [0.7, 1.0, 4.0])
@pytest.mark.parametrize("rounds", [1, 4])
def test_delta_at_epsilon_is_the_divergence_of_both_outcomes(noise: float, rounds: int) -> None:
    """From the definition: the integral of max(0, p - e^epsilon q) over all sums of releases."""
    delta, deviation = 1e-4, noise * math.sqrt(rounds)

    def density(x: float, mean: float) -> float:
        return math.exp(-((x - mean) ** 2) / 2 / deviation**2) / deviation / math.sqrt(2 * math.pi)

    cost = epsilon(costs(noise, delta), rounds)
    start = deviation**2 * cost / rounds + rounds / 2  # p exceeds e^epsilon q from here on
    excess, _ = quad(
        lambda x: density(x, rounds) - math.exp(cost) * density(x, 0),
        start,
        start + 30 * deviation,
        epsabs=1e-12,
        limit=200,
    )
    assert excess == pytest.approx(delta, rel=1e-4)


def test_two_rounds_cost_what_the_product_of_two_does() -> None:
    """The integral over pairs of releases, without the rule by which rounds add up."""
    noise, delta = 1.5, 1e-3
    axis = np.linspace(-12, 14, 2601)
    p, q = (np.exp(-((axis - mean) ** 2) / 2 / noise**2) for mean in (1, 0))
    scale = ((axis[1] - axis[0]) / noise / math.sqrt(2 * math.pi)) ** 2
    cost = epsilon(costs(noise, delta), 2)
    excess = np.maximum(np.outer(p, p) - math.exp(cost) * np.outer(q, q), 0).sum() * scale
    assert excess == pytest.approx(delta, rel=1e-2)


def test_epsilon_is_defined_everywhere_and_grows_with_rounds() -> None:
    found = [epsilon(costs(5.0, 1e-6), rounds) for rounds in (0, 1, 10, 100, 10**9)]
    assert found[0] == 0 and found == sorted(found) and math.isfinite(found[-1])
    assert epsilon(costs(0.0, 1e-5), 1) == math.inf
    assert epsilon(costs(1e9, 0.5), 1) == 0
    assert math.isfinite(epsilon(costs(1e-6, 1e-12), 10))


# What is refused


@pytest.mark.parametrize("name", METHODS)
def test_what_would_tell_of_devices_by_another_way_is_refused(name: str) -> None:
    config = resolve(make_config({"dp_clip": 1.0, "method": name}))
    private = ("dense", "random", "erk", "magnitude", "snip", "synflow")
    if name in private:
        check_private(config, load_method(name))
        return
    with pytest.raises(ConfigError, match="is not private all the same"):
        check_private(config, load_method(name))


def test_fedtiny_is_private_without_what_asks_devices() -> None:
    config = make_config({"dp_clip": 1.0, "selection": "none", "adjust_share": 0.0})
    check_private(config, load_method("fedtiny"))
    for change in ({"selection": "adaptive"}, {"adjust_share": 0.1}, {"aggregation": "median"}):
        with pytest.raises(ConfigError):
            check_private(config.changed(**change), load_method("fedtiny"))


@pytest.mark.parametrize("keys", [{"dp_noise": 2.0}, {"dp_delta": 1e-6}, {"dp_clip": 1e-20}])
def test_keys_that_would_make_nothing_private_are_refused(keys: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="dp_clip"):
        make_config(keys)


SMALL: dict[str, Any] = {
    "devices": 3,
    "rounds": 2,
    "epochs": 1,
    "partition": "iid",
    "examples_per_device": 20,
    "server_epochs": 0,
    "sparse_epochs": 0,
}


def curious(opening: Opening) -> Opened:
    """Asks devices without saying so in its row."""
    opening.fleet.exchange("moments", whole_model(opening.dense), lambda reply: reply)
    raise AssertionError("devices answered")


def seen(end: Aggregated) -> ModelState:
    """Would make masks of what devices sent, if there were any."""
    assert end.updates == () and end.shares == ()
    mask = {
        name: mask & (np.abs(end.state.weights[name]) > 1e-6) for name, mask in end.sent.items()
    }
    return end.state.with_masks(mask)


def test_a_method_from_outside_learns_of_devices_by_the_noisy_model_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(METHODS, "curious", Method("asks", curious))
    monkeypatch.setitem(METHODS, "seen", replace(METHODS["erk"], adjust=seen))
    for name in ("curious", "seen"):
        scenario = make_scenario(make_config({**SMALL, **PRIVATE, "method": name}))
        steps = run_rounds(scenario.server(), scenario.local_fleet(), scenario.server_data)
        if name == "seen":
            assert [step.round for step in steps][-1] == 2
            continue
        with pytest.raises(ConfigError, match="asks devices in phase 'moments'"):
            list(steps)


def test_rounds_themselves_refuse_what_is_not_private() -> None:
    scenario = make_scenario(make_config({**SMALL, "dp_clip": 1.0}))
    with pytest.raises(ConfigError, match="is not private all the same"):
        next(run_rounds(scenario.server(), scenario.local_fleet(), scenario.server_data))


def test_a_private_run_learns_tells_epsilon_and_keeps_losses_to_itself(tmp_path: Path) -> None:
    keys = {"devices": 5, "rounds": 4, "epochs": 2, "partition": "iid", "server_epochs": 2}
    config = make_config({**keys, "sparse_epochs": 2, **PRIVATE, "dp_clip": 3.0, "dp_noise": 0.01})
    scenario = make_scenario(config)
    scenario.check()
    record(scenario, scenario.local_fleet(), tmp_path / "run", lambda step: None)
    *_, selection, first, _, _, last = RunFolder.open(tmp_path / "run").metrics()
    assert last["accuracy"] > selection["accuracy"] + 0.1
    assert last["loss"] is None and last["epsilon"] > first["epsilon"] > selection["epsilon"] == 0
    assert last["epsilon"] == epsilon(config, 4)
    assert last["delta"] == 1e-5 and last["adjacency"] == "one device added or removed"


def test_without_noise_the_record_says_that_epsilon_has_no_end(tmp_path: Path) -> None:
    scenario = make_scenario(make_config({**SMALL, **PRIVATE, "dp_noise": 0.0}))
    record(scenario, scenario.local_fleet(), tmp_path / "run", lambda step: None)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(lines[-1], parse_constant=refuse)["epsilon"] is None
