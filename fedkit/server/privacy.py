"""Differential privacy of devices: the models that a server makes tell little of any one device.

The server is trusted; readers of its models are not. Each device's change of the kept weights is
clipped to a norm C, the changes are added up and divided by the number of devices that a round
asks, not of those that answered, and Gaussian noise is added: the estimator with a fixed
denominator of McMahan et al., "Learning Differentially Private Recurrent Language Models", 2018.
Masks are common and made without devices' data, so that noise is paid for kept weights only. Norm
statistics are the server's own.

What is promised. Two runs are neighbours if one has all that the other has but for one device, all
of whose data is added or removed; in the run without it, it counts as a change of zero, as a device
does that is absent or refused. Sequences of models of neighbouring runs are indistinguishable up to
(epsilon, delta). One device moves the sum by C at most, and the divisor is the same in both, so the
mean moves by C / asked. (Were it divided by the number of answers, it could move by twice that.)

Where a round asks a part of the devices, each is asked by a chance of its own (Poisson sampling),
drawn from the operating system's entropy, and epsilon counts on that: a Gaussian mechanism over
such a sample, by Google's library dp-accounting. It holds for readers of the models who do not know
who was asked; for those who do, `epsilon_known` stands beside it, that of a device which is asked
in every round.

What is not in the promise: who took part. A run's events, its bytes and its seconds tell that, and
devices' messages are seen by the server. The noise comes from the operating system's entropy;
attacks on the rounding of floating-point noise (Mironov, 2012) are not defended against. A private
run has other bits each time.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.config import RunConfig
from fedkit.core.errors import ConfigError
from fedkit.engine.base import Engine
from fedkit.methods.interface import Answer, Dispatcher, Method, Phase, Request
from fedkit.server.aggregation import aggregate, shares
from fedkit.sparse.kept import kept_weights, nothing, shapes_of
from fedkit.sparse.state import ModelState
from fedkit.stats.norms import with_norms
from fedkit.tasks.task import Examples
from fedkit.wire.messages import Update

ADJACENCY = "one device added or removed"
"""What neighbouring runs differ by; stands beside every epsilon."""


def check_private(config: RunConfig, method: Method) -> None:
    """Refuse a run whose model would tell of devices by other ways than its clipped weights.

    Raises:
        ConfigError: Names what does not go with `dp_clip`.
    """
    if not config.dp_clip:
        return
    reasons = {
        "the method asks devices for scores": method.survey is not None,
        "devices choose masks of their own": method.own_masks,
        "masks follow devices' gradients: set adjust_share to 0": bool(
            config.adjust_share and method.adjusts_by_devices
        ),
        "devices rank candidates: set selection to none": bool(
            method.selects and config.selection != "none"
        ),
        "devices are asked for norm statistics: set bn_merge to pooled": config.bn_merge
        in ("exact", "exact-last"),
        "devices tell a metric of their data: set device_eval and validation_share to 0": bool(
            config.device_eval
        ),
        "only a mean has a known sensitivity: set aggregation to mean": config.aggregation
        != "mean",
        "a device would take the place of another: set over_selection to 0": bool(config.spare),
    }
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise ConfigError(
            f"dp_clip is {config.dp_clip:g}, and this run is not private all the same; "
            + "; ".join(found)
        )
    if config.sampling_rate < 1 and importlib.util.find_spec("dp_accounting") is None:
        raise ConfigError(
            "the epsilon of a private run that asks a part of the devices is counted by "
            "dp-accounting, which is not installed: pip install 'fedkit[privacy]', or leave "
            "devices_per_round at 0"
        )


class SilentFleet:
    """A fleet that is asked nothing before the rounds: what a private run opens with.

    Implements `fedkit.methods.interface.Dispatcher`, so that a method of any kind that asks devices
    for more than clipped updates ends here instead of in a model that tells of them.
    """

    traffic = (0, 0)

    def choose(self, order: Sequence[int], count: int, spare: int = 0) -> None:
        """Do nothing, as nobody is asked."""

    def exchange(self, phase: Phase, request: Request, read: Any) -> list[Answer]:
        """Refuse.

        Raises:
            ConfigError: Always; names the phase.
        """
        del request, read
        raise ConfigError(
            f"the method asks devices in phase {phase!r} before they train, and what it learns "
            "there is not private: leave dp_clip at 0, or take a method that does not ask, such "
            "as erk"
        )


def opening_fleet(config: RunConfig, fleet: Dispatcher) -> Dispatcher:
    """Return the fleet that a method may ask for its first masks: none where the run is private."""
    return SilentFleet() if config.dp_clip else fleet


def private_model(config: RunConfig, sent: ModelState, updates: Sequence[Update]) -> ModelState:
    """Return the model after a private round: the one sent, plus the noisy mean of changes.

    Args:
        config: The run; the devices that it asks in a round divide, however many updates there
            are.
        sent: The model as devices received it.
        updates: What devices returned.
    """
    clipped = clip_updates(config, sent, updates)
    if not clipped:  # the draw asked nobody
        unmoved = nothing(shapes_of(sent.weights))
        return add_noise(config, sent, ModelState(unmoved, {}, sent.masks))
    return add_noise(config, sent, aggregate(config, clipped, shares(clipped)))


def clip_updates(config: RunConfig, sent: ModelState, updates: Sequence[Update]) -> list[Update]:
    """Return updates whose weights are changes, of a norm of `dp_clip` at most, that count alike.

    Numbers of examples, losses, entries and statistics are left out of them.
    """
    # `aggregate` rounds each product and the mean to float32. So much less than the clip's norm
    # bounds what a device moves even then, with any number of others.
    limit = config.dp_clip / (1 + (config.devices + 1) * 2.0**-22)
    return [_clipped(limit, sent, update) for update in updates]


def _clipped(limit: float, sent: ModelState, update: Update) -> Update:
    own, before = (kept_weights(s.weights, sent.masks) for s in (update.state, sent))
    changes = {name: v.astype(np.float64) - before.kept[name] for name, v in own.kept.items()}
    norm = math.sqrt(sum(float(np.square(change).sum()) for change in changes.values()))
    scale = min(1.0, limit / norm) if norm else 1.0
    weights = own.changed(lambda name, _: (scale * changes[name]).astype(np.float32))
    return Update(ModelState(weights, {}, sent.masks), examples=1, loss=0.0, gradients={})


def add_noise(config: RunConfig, sent: ModelState, change: ModelState) -> ModelState:
    """Return the sent model moved by a mean of clipped changes, with noise on every kept weight.

    The noise has a deviation of `dp_noise` sensitivities, which are `dp_clip` / `asked` each.
    """
    rng, deviation = np.random.default_rng(), config.dp_noise * config.dp_clip / config.asked
    moves = kept_weights(change.weights, sent.masks)

    def moved(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        noise = rng.normal(0, deviation, values.shape)
        return (values.astype(np.float64) + moves.kept[name] + noise).astype(np.float32)

    return replace(sent, weights=kept_weights(sent.weights, sent.masks).changed(moved))


def own_statistics(engine: Engine, state: ModelState, server_data: Examples | None) -> ModelState:
    """Return the model with norm statistics of the server's own examples, if it has any."""
    if server_data is None:
        return state
    return with_norms(state, engine.norm_moments(state, server_data))


def spent(config: RunConfig, rounds: int) -> dict[str, Any]:
    """Return what so many rounds cost, for a run's record.

    Returns:
        `epsilon` (None: infinite), its `delta`, and `adjacency`, what neighbours differ by; where
        a part of the devices is asked, `epsilon_known` for those who know which.
    """
    cost, known = epsilon(config, rounds), epsilon_known(config, rounds)
    sampled = {"epsilon_known": _finite(known)} if config.sampling_rate < 1 else {}
    told = {"epsilon": _finite(cost), "delta": config.dp_delta, "adjacency": ADJACENCY}
    return {**told, **sampled}


def _finite(cost: float) -> float | None:
    return cost if math.isfinite(cost) else None


def epsilon(config: RunConfig, rounds: int) -> float:
    """Return an epsilon of so many rounds at the config's delta; infinite without noise.

    Where a round asks every device it is the least, `epsilon_known`. Else it is what dp-accounting
    finds for a Gaussian mechanism over a Poisson sample, by the distribution of the privacy loss,
    whose grid makes it a little too large, never too small.
    """
    known, rate = epsilon_known(config, rounds), config.sampling_rate
    if rate == 1 or known == 0 or math.isinf(known):
        return known
    size = max(known / 1000, epsilon_known(config, 1) / 20)
    loss = _loss(config.dp_noise, rate, _GRID * 2.0 ** max(0, math.ceil(math.log2(size))))
    return min(known, loss.at(rounds, config.dp_delta))


_GRID = 1e-4
"""Step of the losses, as dp-accounting's own accountant has it; some doublings of it where losses
are so large that the grid would take seconds and gigabytes."""


class _Loss:
    """The distribution of a round's privacy loss, of some noise and rate on some grid."""

    def __init__(self, noise: float, rate: float, grid: float) -> None:
        from dp_accounting.pld import privacy_loss_distribution as losses  # takes a second

        self._of_a_round = losses.from_gaussian_mechanism(
            standard_deviation=noise, value_discretization_interval=grid, sampling_prob=rate
        )

    def at(self, rounds: int, delta: float) -> float:
        """Return the epsilon of so many rounds."""
        with np.errstate(over="ignore"):  # of losses that nobody could bear
            return float(self._of_a_round.self_compose(rounds).get_epsilon_for_delta(delta))


_loss = functools.lru_cache(maxsize=4)(_Loss)


def epsilon_known(config: RunConfig, rounds: int) -> float:
    """Return the least epsilon against those who know who is asked; infinite without noise.

    Counted for a device that is asked in every round, so every round is a Gaussian mechanism of
    noise `dp_noise` and sensitivity 1, and T of them, each chosen with the results of those before
    in view, are exactly as private as one of noise `dp_noise` / sqrt(T). Of that one

        delta(epsilon) = Phi(m / 2 - epsilon / m) - e^epsilon Phi(-m / 2 - epsilon / m),

    m = sqrt(T) / `dp_noise`, is exact, and is solved for epsilon.

    Sources: Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", 2018,
    theorem 8; Dong, Roth and Su, "Gaussian Differential Privacy", 2022, corollary 3.3.
    """
    if rounds == 0:
        return 0.0
    if config.dp_noise == 0:
        return math.inf
    m, wanted = math.sqrt(rounds) / config.dp_noise, math.log(config.dp_delta)

    def excess(cost: float) -> float:
        return _log_delta(m, cost) - wanted

    if excess(0.0) <= 0:
        return 0.0
    most = m * m / 2 + m * math.sqrt(-2 * wanted)  # where the first term alone is delta at most
    from scipy.optimize import brentq  # takes a second, and few runs are private

    return float(brentq(excess, 0.0, most, xtol=1e-12 * most, rtol=1e-14))


def _log_delta(m: float, cost: float) -> float:
    """Return the logarithm of delta; both of its terms may be too small for a float."""
    from scipy.special import log_ndtr

    first = float(log_ndtr(m / 2 - cost / m))
    second = cost + float(log_ndtr(-m / 2 - cost / m))
    return first + math.log(-math.expm1(second - first)) if second < first else -math.inf
