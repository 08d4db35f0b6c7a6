"""Cases whose numbers leave what training is used to: zeros, extremes, constants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedkit.sparse.state import ModelState
from tests.engine.plan.plans import Choose, PlanCase

_WEIGHTS = (1.0, 1.0, 1.0, 0.0, 1e-30, 1e-8, 1e-3, 1e3, 1e8, 1e20)
_INPUTS = (1.0, 1.0, 0.0, 1e-44, 1e-38, 1e-8, 1e8, 1e30)


def extreme(case: PlanCase, choose: Choose) -> PlanCase:
    """Scale each parameter, or each of its channels, and the inputs; some batches are constant."""
    rng = np.random.default_rng(choose(range(1 << 16)))
    weights = {}
    for name, value in case.state.weights.items():
        per_channel = rng.choice(_WEIGHTS, (value.shape[0], *[1] * (value.ndim - 1)))
        scale = choose((choose(_WEIGHTS), per_channel))
        weights[name] = (value * scale).astype(np.float32)
    inputs = case.inputs.astype(np.float64) * choose(_INPUTS)
    if choose((False, False, True)):
        inputs[:] = inputs[:1]
    state = ModelState(weights, case.state.stats, case.state.masks)
    return replace(case, state=state, inputs=inputs.astype(np.float32))
