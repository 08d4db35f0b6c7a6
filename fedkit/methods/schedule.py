"""What happens in which round: the schedule that devices and server derive from the config."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from fedkit.config import RunConfig
from fedkit.engine.base import LocalTraining
from fedkit.methods.fedtiny.progressive import quotas
from fedkit.sparse import adjustment
from fedkit.sparse.adjustment import adjusts, block_at
from fedkit.sparse.candidates import CandidatePool, Prune, candidate_pool, prune_at_once
from fedkit.sparse.distribution import DISTRIBUTIONS, kept_counts
from fedkit.sparse.state import Masks, ModelState, Shapes


def learning_rate(config: RunConfig, number: int) -> float:
    """Return the learning rate of round `number` (from 1): a cosine from `lr` to `lr_final`."""
    return _cosine(config, number, config.rounds)


def sparse_learning_rate(config: RunConfig, epoch: int) -> float:
    """Return the learning rate of the server's `epoch`-th epoch (from 1) with a sparse model."""
    return _cosine(config, epoch, config.sparse_epochs)


def _cosine(config: RunConfig, step: int, steps: int) -> float:
    if steps == 1:
        return config.lr
    done = (step - 1) / (steps - 1)
    return config.lr_final + (config.lr - config.lr_final) * (1 + math.cos(math.pi * done)) / 2


def derived_seed(*entropy: int) -> int:
    """Return a seed that all of these numbers decide."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def local_training(
    config: RunConfig,
    epochs: int,
    lr: float,
    trained: frozenset[str] | None = None,
    number: int = 0,
) -> LocalTraining:
    """Return how this run trains, wherever it does, for so many epochs at one learning rate.

    Args:
        config: The run.
        epochs: How many.
        lr: The learning rate.
        trained: Names of the weights that are trained; None: all, as on the server.
        number: The round, from 1; 0 before all rounds.
    """
    rates = (lr, config.momentum, config.weight_decay)
    progress = number / config.rounds
    return LocalTraining(epochs, config.batch_size, *rates, trained, progress)


def kept_per_layer(config: RunConfig, shapes: Shapes) -> dict[str, int]:
    """Return kept weights per layer, before any noise; see `kept_counts`.

    Raises:
        ConfigError: These layers cannot reach the density; noise never decides that.
    """
    relative = DISTRIBUTIONS[config.distribution](shapes)
    return kept_counts(shapes, config.density, relative, config.exempt_layers)


def pool_for(config: RunConfig, dense: ModelState, prune: Prune = prune_at_once) -> CandidatePool:
    """Return the candidate pool that a dense start gives under this config."""
    return candidate_pool(
        dense,
        prune=prune,
        density=config.density,
        size=config.candidates,
        noise=config.noise,
        distribution=config.distribution,
        exempt=config.exempt_layers,
        seed=config.seed,
    )


def adjusts_in(config: RunConfig, number: int) -> bool:
    """Say whether masks change in round `number`.

    No change follows the last round, because nobody would train the grown weights.
    """
    stop = min(config.last_adjustment, config.rounds)
    return config.adjust_share > 0 and adjusts(number, config.adjustment_period, stop)


def last_adjusting_round(config: RunConfig) -> int:
    """Return the last round that changes masks; 0 if none does."""
    return max((n for n in range(1, config.rounds + 1) if adjusts_in(config, n)), default=0)


def adjusting_block(config: RunConfig, prunable: Sequence[str], number: int) -> list[str]:
    """Return the layers of FedTiny's turn at the end of round `number`; none in other rounds."""
    if not prunable or not adjusts_in(config, number):
        return []
    turn = number // config.adjustment_period - 1
    return block_at(prunable, block_count(config, prunable), turn, config.order)


def block_count(config: RunConfig, prunable: Sequence[str]) -> int:
    """Return into how many blocks the layers are divided."""
    return {"layer": len(prunable), "block": config.blocks, "entire": 1}[config.granularity]


def block_quotas(
    config: RunConfig, masks: Masks, block: Sequence[str], number: int
) -> dict[str, int]:
    """Return how many weights each layer of the block swaps at the end of round `number`."""
    return quotas(masks, block, *_steps(config, number), config.adjust_share)


def swapped_share(config: RunConfig, number: int) -> Fraction:
    """Return which share of the kept weights may be swapped at the end of round `number`."""
    return adjustment.swapped_share(*_steps(config, number), config.adjust_share)


def _steps(config: RunConfig, number: int) -> tuple[int, int]:
    """Return the local epochs done after round `number`, and those after which nothing changes."""
    return number * config.epochs, config.last_adjustment * config.epochs
