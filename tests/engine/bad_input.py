"""States, inputs, orders and targets that every engine refuses, and by which words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.base import Engine, LocalTraining
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples

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


BAD_INPUTS: list[tuple[NDArray[Any], str]] = [
    (inputs(8, 1, 8, 7), r"float32 \(8, 1, 8, 7\); the plan takes .* float32 \[n, 1, 8, 8\]"),
    (inputs(8, 8, 8), r"inputs are float32 \(8, 8, 8\)"),
    (inputs(8, 64), r"inputs are float32 \(8, 64\)"),
    (inputs(8), r"inputs are float32 \(8,\)"),
    (inputs(8, 1, 8, 8, 1), r"inputs are float32 \(8, 1, 8, 8, 1\)"),
]

BAD_ORDERS: list[tuple[NDArray[np.int64], str]] = [
    (np.arange(9), "a batch of 9 examples does not fit: memory is planned for 1 to 8"),
    (np.arange(0), "a batch of 0 examples does not fit"),
    (np.array([0, 20]), "a batch picks examples 0 to 20 of 20; positions count from 0"),
    (np.array([-1, 3]), "a batch picks examples -1 to 3"),
]

BAD_TARGETS: list[tuple[NDArray[Any], str]] = [
    (np.array([0, 1, 2, 5]), "targets are from 0 to 5; the model has 5 classes"),
    (np.array([0, 1, -1, 2]), "targets are from -1 to 2"),
    (np.array([0, 1, 2]), r"targets are int64 \(3,\); .* has 4 examples"),
    (np.array([], np.int64), r"targets are int64 \(0,\)"),
    (np.array([[0, 1, 2, 3]]), r"targets are int64 \(1, 4\)"),
    (np.array([0.0, 1, 2, 3]), "targets are float64"),
    (np.array([True] * 4), "targets are bool"),
]


def calls(
    engine: Engine, state: ModelState, data: Examples, how: LocalTraining
) -> list[Callable[[], object]]:
    """Return everything that an engine can be asked for with a model and examples."""
    return [
        lambda: engine.train(state, data, how, 0),
        lambda: engine.train(state, data, how, 0, {}),
        lambda: engine.norm_moments(state, data),
        lambda: engine.loss(state, data),
        lambda: engine.outputs(state, data.inputs),
        lambda: engine.top_gradients(state, data, {LAYER: 1}),
        lambda: engine.gradients(state, data),
    ]
