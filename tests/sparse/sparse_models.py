"""Models of any sparsity for tests, dense: layers that keep nothing, some or all weights."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.sparse.kept import KeptWeights, kept_weights
from fedkit.sparse.packed import packed
from fedkit.sparse.state import ModelState, apply_masks

SHAPES = {
    "conv.weight": (3, 2, 3, 3),
    "conv.bias": (3,),
    "scale": (),
    "tiny.weight": (1, 1),
    "fc.weight": (5, 13),
    "fc.bias": (5,),
}
"""Of layers whose sizes are no multiples of 8, of biases, and of a single number."""

PRUNABLE = ("conv.weight", "tiny.weight", "fc.weight")


@st.composite
def dense_models(draw: st.DrawFn, others: int = 0) -> list[ModelState]:
    """Return dense models of one layout, each under masks of its own."""
    return [_model(draw) for _ in range(1 + others)]


def _model(draw: st.DrawFn) -> ModelState:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = {n: rng.random(SHAPES[n]) < draw(st.sampled_from([0, 0.1, 0.6, 1])) for n in PRUNABLE}
    steps = draw(st.sampled_from([1, 4, 1000]))  # few steps: equal magnitudes, and kept zeros
    weights = {n: _numbers(rng, shape, steps) for n, shape in SHAPES.items()}
    stats = {"norm.running_mean": _numbers(rng, (3,), steps)}
    return ModelState(apply_masks(weights, masks), stats, masks)


def _numbers(rng: np.random.Generator, shape: tuple[int, ...], steps: int) -> NDArray[np.float32]:
    return np.asarray(rng.integers(-steps, steps + 1, shape) / steps, np.float32)


def compact(state: ModelState) -> ModelState:
    """Return a model that holds kept values and packed masks."""
    masks = packed(state.masks)
    return ModelState(kept_weights(state.weights, masks), state.stats, masks)


def assert_same(found: ModelState, expected: ModelState) -> None:
    """Compare every bit of two models, whatever holds them."""
    for one, other in ((found.weights, expected.weights), (found.masks, expected.masks)):
        assert list(one) == list(other)
        for name in other:
            assert one[name].dtype == other[name].dtype
            assert one[name].shape == other[name].shape
            assert one[name].tobytes() == other[name].tobytes()


def held_values(state: ModelState) -> int:
    """Return how many values of a compact model are in memory."""
    assert isinstance(state.weights, KeptWeights)
    return sum(map(len, state.weights.kept.values()))
