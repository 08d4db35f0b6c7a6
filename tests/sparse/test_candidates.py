from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedkit.sparse.candidates import CandidatePool, candidate_pool, pool_size
from fedkit.sparse.layout import Layout
from fedkit.sparse.state import ModelState, count_kept
from fedkit.wire import messages

SHAPES = {"a": (12, 8), "bias": (8,), "b": (30,), "c": (20, 10)}
LAYOUT = Layout(SHAPES, {"n.running_mean": (8,), "n.running_var": (8,)}, ("a", "b", "c"))
TOTAL = 12 * 8 + 30 + 200


def dense(seed: int = 0) -> ModelState:
    rng = np.random.default_rng(seed)
    weights = {n: rng.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}
    # Equal magnitudes, so that the choice among ties has to agree on both sides of the wire.
    weights["b"] = np.sign(weights["b"])
    stats = {name: np.ones(shape, np.float32) for name, shape in LAYOUT.stats.items()}
    return ModelState(weights, stats, {n: np.ones(SHAPES[n], np.bool_) for n in LAYOUT.prunable})


def pool(density: float = 0.2, size: int = 4, noise: float = 0.5, seed: int = 0) -> CandidatePool:
    return candidate_pool(
        dense(seed),
        density=density,
        size=size,
        noise=noise,
        distribution="uniform",
        exempt=(),
        seed=seed,
    )


@given(st.integers(5, 100), st.integers(1, 6), st.floats(0, 0.9), st.integers(0, 50))
def test_every_candidate_keeps_exactly_the_budget(
    percent: int, size: int, noise: float, seed: int
) -> None:
    candidates = pool(percent / 100, size, noise, seed)
    assert len(candidates) == size
    for index in range(size):
        state = candidates.candidate(index)
        assert sum(count_kept(state.masks).values()) == percent * TOTAL // 100
        assert all((state.weights[n][~mask] == 0).all() for n, mask in state.masks.items())


def test_candidates_differ_in_their_masks_and_the_first_has_no_noise() -> None:
    candidates = pool()
    first, second = candidates.candidate(0), candidates.candidate(1)
    assert any((first.masks[n] != second.masks[n]).any() for n in first.masks)
    assert all(abs(first.masks[n].mean() - 0.2) < 0.02 for n in first.masks)


def test_a_candidate_keeps_the_largest_weights_of_each_layer() -> None:
    state, start = pool().candidate(1), dense()
    for name, mask in state.masks.items():
        magnitudes = np.abs(start.weights[name])
        assert magnitudes[mask].min() >= magnitudes[~mask].max()
        assert np.array_equal(state.weights[name][mask], start.weights[name][mask])


def test_a_device_rebuilds_every_candidate_from_the_union() -> None:
    sent = pool()
    received = messages.read_pool(messages.pack_pool(sent), LAYOUT)
    for index in range(len(sent)):
        here, there = sent.candidate(index), received.candidate(index)
        for name in SHAPES:
            assert here.weights[name].tobytes() == there.weights[name].tobytes()
        assert all(np.array_equal(here.masks[n], there.masks[n]) for n in here.masks)


def test_the_pool_travels_in_less_than_its_candidates() -> None:
    candidates = pool(density=0.1, size=10)
    each = [messages.pack_state(candidates.candidate(i), None).nbytes for i in range(10)]
    assert messages.pack_pool(candidates).nbytes < 0.5 * sum(each)


def test_default_pool_size() -> None:
    assert [pool_size(d) for d in (0.005, 0.01, 0.02, 0.1, 1.0)] == [20, 10, 5, 3, 3]
