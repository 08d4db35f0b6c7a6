"""A static mask from saliency that all devices score, in the manner of SSFL.

Source: Ohib et al., "SSFL: Discovering Sparse Unified Subnetworks at Initialization for Efficient
Federated Learning", 2024: each device scores |weight * gradient| on one batch of its own data, the
server averages the scores and keeps the largest. The dense model and the scores travel once.
"""

from __future__ import annotations

import numpy as np

from fedkit.methods.interface import LocalRound, Method, Opening, static, whole_model
from fedkit.methods.snip import saliency
from fedkit.sparse.masks import Scores, global_masks
from fedkit.sparse.state import Masks, ModelState, Weights, weighted_mean
from fedkit.stats.robust import middle
from fedkit.wire.validation import admit_scores


def ssfl_masks(opening: Opening) -> Masks:
    """Keep the weights of largest mean saliency over the devices, by their numbers of examples.

    Robust aggregation takes the middle of the devices' scores instead.
    """
    shapes, config = opening.engine.layout.prunable_shapes, opening.config
    read = opening.fleet.exchange(
        "survey", whole_model(opening.dense), lambda reply: admit_scores(reply, shapes, config)
    )
    scores: Scores
    if config.aggregation == "mean":
        total = sum(examples for _, examples in read)
        scores = weighted_mean([s for s, _ in read], [examples / total for _, examples in read])
    else:
        scores = {
            name: middle(np.stack([s[name] for s, _ in read]), config.aggregation)
            for name in shapes
        }
    return global_masks(scores, opening.budget, config.exempt_layers)


def survey(round_: LocalRound, state: ModelState) -> Weights:
    """Score every weight on a sample of this device's data."""
    return saliency(round_.engine, state, round_.sample)


SSFL = Method(
    "static mask from saliency averaged over the devices (SSFL, Ohib et al., 2024)",
    static(ssfl_masks),
    survey=survey,
)
METHODS = {"ssfl": SSFL}
