"""Differential privacy of devices: what leaves the server tells next to nothing of any one of them.

The server is trusted; who reads its models is not. Each device's change of the kept weights is
clipped to a norm, all count alike, and Gaussian noise is added to their mean (McMahan et al.,
"Learning Differentially Private Recurrent Language Models", 2018, with a fixed divisor). Masks are
common and made without devices' data, so that noise is paid for kept weights only: a sparse model
is more private for the same accuracy. Norm statistics are the server's own.

Two models that differ by one device's taking part are indistinguishable up to (epsilon, delta).
The noise is float32 and comes from the operating system's entropy; attacks on the rounding of
floating-point noise (Mironov, 2012) are not defended against. A private run has other bits each
time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedkit.config import RunConfig
from fedkit.engine.base import Engine
from fedkit.errors import ConfigError
from fedkit.fedtiny.bn_selection import with_norms
from fedkit.messages import Update
from fedkit.method import Method
from fedkit.sparse.state import ModelState, apply_masks
from fedkit.task import Examples


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
        "only a mean has a known sensitivity: set aggregation to mean": config.aggregation
        != "mean",
    }
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise ConfigError(
            f"dp_clip is {config.dp_clip:g}, and this run is not private all the same; "
            + "; ".join(found)
        )


def clip_updates(config: RunConfig, sent: ModelState, updates: Sequence[Update]) -> list[Update]:
    """Return updates that moved by `dp_clip` at most and count alike, with the sent statistics."""
    return [_clipped(config.dp_clip, sent, update) for update in updates]


def _clipped(limit: float, sent: ModelState, update: Update) -> Update:
    changes = {
        name: value.astype(np.float64) - sent.weights[name]
        for name, value in update.state.weights.items()
    }
    norm = math.sqrt(sum(float(np.square(change).sum()) for change in changes.values()))
    scale = min(1.0, limit / norm) if norm else 1.0
    weights = {
        name: (sent.weights[name] + scale * change).astype(np.float32)
        for name, change in changes.items()
    }
    return replace(update, state=ModelState(weights, sent.stats, sent.masks), examples=1, loss=0.0)


def add_noise(config: RunConfig, state: ModelState, devices: int) -> ModelState:
    """Return a mean of `devices` clipped updates with noise on every kept weight."""
    rng, deviation = np.random.default_rng(), config.dp_noise * config.dp_clip / devices
    noisy = {
        name: (value + rng.normal(0, deviation, value.shape)).astype(np.float32)
        for name, value in state.weights.items()
    }
    return ModelState(apply_masks(noisy, state.masks), state.stats, state.masks)


def own_statistics(engine: Engine, state: ModelState, server_data: Examples | None) -> ModelState:
    """Return the model with norm statistics of the server's own examples, if it has any."""
    if server_data is None:
        return state
    return with_norms(state, engine.norm_moments(state, server_data))


def epsilon(config: RunConfig, rounds: int) -> float:
    """Return the epsilon of so many rounds at the config's delta; infinite without noise.

    By zero-concentrated differential privacy: a round costs rho = 1 / (2 noise^2), rounds add up,
    and epsilon = rho + 2 sqrt(rho ln(1 / delta)). No device is left out at random, so nothing is
    gained by sampling.

    Source: Bun and Steinke, "Concentrated Differential Privacy", 2016, propositions 1.3, 1.6, 1.7.
    """
    if config.dp_noise == 0:
        return math.inf
    rho = rounds / (2 * config.dp_noise**2)
    return rho + 2 * math.sqrt(rho * math.log(1 / config.dp_delta))
