"""What a server does with its own examples before the fleet begins: it costs devices nothing."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from fedkit.config import RunConfig
from fedkit.engine.base import Engine
from fedkit.methods.schedule import derived_seed, local_training, sparse_learning_rate
from fedkit.sparse.candidates import prune_at_once
from fedkit.sparse.state import ModelState
from fedkit.stats.norms import with_norms
from fedkit.tasks.task import Examples

_FINAL_SHARE = Fraction(1, 5)  # Share of the epochs of gradual pruning that train the final masks.


def train_dense(
    config: RunConfig, engine: Engine, state: ModelState, examples: Examples | None
) -> ModelState:
    """Train `server_epochs` at the first learning rate; without examples nothing happens."""
    if examples is None or config.server_epochs == 0:
        return state
    how = local_training(config, config.server_epochs, config.lr)
    trained, _ = engine.train(state, examples, how, config.seed)
    return with_norms(trained, engine.norm_moments(trained, examples))


def tune(
    config: RunConfig, engine: Engine, state: ModelState, examples: Examples | None
) -> ModelState:
    """Train a pruned model for `sparse_epochs`; without examples nothing happens."""
    return _train_sparse(config, engine, state, examples, {})


def prune_gradually(
    config: RunConfig,
    engine: Engine,
    dense: ModelState,
    counts: Mapping[str, int],
    examples: Examples | None,
) -> ModelState:
    """Prune by magnitude within layers, a step before each of `sparse_epochs`.

    The weights left can take over what the others did. Those of a layer fall to `counts[layer]`
    along a cubic curve, fast at first. Without examples or epochs they fall at once.

    Args:
        config: The run.
        engine: Trains.
        dense: The start.
        counts: Weights to keep in the end, per prunable layer.
        examples: The server's own.

    Returns:
        The model with exactly `counts` weights.

    Source: Zhu and Gupta, "To prune, or not to prune", 2018.
    """
    if examples is None or config.sparse_epochs == 0:
        return prune_at_once(dense, counts)
    return _train_sparse(config, engine, dense, examples, counts)


def _train_sparse(
    config: RunConfig,
    engine: Engine,
    state: ModelState,
    examples: Examples | None,
    counts: Mapping[str, int],
) -> ModelState:
    if examples is None or config.sparse_epochs == 0:
        return state
    for epoch in range(1, config.sparse_epochs + 1):
        if counts:
            left = max(Fraction(0), 1 - epoch / ((1 - _FINAL_SHARE) * config.sparse_epochs)) ** 3
            kept = {n: c + round(left * (state.masks[n].size - c)) for n, c in counts.items()}
            state = prune_at_once(state, kept)
        how = local_training(config, 1, sparse_learning_rate(config, epoch))
        state, _ = engine.train(state, examples, how, derived_seed(config.seed, 7, epoch))
    return with_norms(state, engine.norm_moments(state, examples))
