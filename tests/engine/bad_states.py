"""States and inputs that every engine refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.sparse.state import ModelState

LAYER = "0.0.weight"
BIAS = "7.bias"
STAT = "0.1.running_var"


def with_mask(state: ModelState, mask: NDArray[Any] | None, name: str = LAYER) -> ModelState:
    masks = {n: m for n, m in state.masks.items() if n != name}
    return replace(state, masks=masks if mask is None else {**masks, name: mask})


def with_weight(state: ModelState, name: str, value: Any) -> ModelState:
    weights = {n: w for n, w in state.weights.items() if n != name}
    return replace(state, weights=weights if value is None else {**weights, name: value})


def one_bad(array: NDArray[np.float32], value: float) -> NDArray[np.float32]:
    changed = array.copy()
    changed.reshape(-1)[-1] = value
    return changed


BAD_STATES: dict[str, Callable[[ModelState], ModelState]] = {
    r"mask of 0.0.weight is bool \(16, 9\), the plan has bool \(16, 1, 3, 3\)": lambda s: with_mask(
        s, np.ones((16, 9), bool)
    ),
    "mask of 0.0.weight is uint8": lambda s: with_mask(s, np.ones((16, 1, 3, 3), np.uint8)),
    "name different layers: 0.0.weight; masks must cover": lambda s: with_mask(s, None),
    "name different layers: extra": lambda s: with_mask(s, np.ones(3, bool), "extra"),
    "7.bias is missing, the plan has": lambda s: with_weight(s, BIAS, None),
    r"7.bias is \(4,\), the plan has \(5,\)": lambda s: with_weight(
        s, BIAS, np.zeros(4, np.float32)
    ),
    "0.0.weight holds NaN or infinite values": lambda s: with_weight(
        s, LAYER, one_bad(s.weights[LAYER], np.nan)
    ),
    "7.bias holds NaN or infinite": lambda s: with_weight(
        s, BIAS, one_bad(s.weights[BIAS], np.inf)
    ),
    "0.1.running_var holds NaN": lambda s: replace(
        s, stats={**s.stats, STAT: one_bad(s.stats[STAT], np.nan)}
    ),
    "0.1.running_mean is missing": lambda s: replace(s, stats={}),
}


def inputs(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)
