"""Packed weights hold the weights, and keep what the kernels rely on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.targets.c99 import pack
from edge.targets.c99.pack import Phases, Planes
from fedkit.core.errors import ExportError
from fedkit.graph.ir import Window
from tests.edge.targets.c99.cases import Array, random_weights

SHAPE = (5, 8, 3, 3)
seeds = st.integers(0, 2**32 - 1)
SAME = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))


def packed(seed: int, bits: int) -> tuple[Array, Array, pack.Sparse]:
    weights = random_weights(np.random.default_rng(seed), SHAPE, bits)
    at = pack.distances(Planes(8, 6, 7, 1, 1), SAME)
    return weights, at, pack.sparse(weights, at)


@given(seeds, st.sampled_from([4, 8]))
def test_every_weight_is_packed_once(seed: int, bits: int) -> None:
    weights, at, result = packed(seed, bits)
    quads, pairs = iter(result.quads), iter(result.pairs)
    assert sorted(result.filters["channel"]) == list(range(len(weights)))
    for header in result.filters:
        weight = weights[header["channel"]]
        parts = [next(quads) for _ in range(header["quads"])]
        parts += [next(pairs) for _ in range(header["pairs"])]
        found = Counter(
            (int(place), int(value))
            for part in parts
            for place, value in zip(part["at"], part["weight"], strict=True)
            if value
        )
        kept = weight != 0
        assert found == Counter(zip(at[kept].tolist(), weight[kept].tolist(), strict=True))
    assert next(quads, None) is None and next(pairs, None) is None


@given(seeds, st.sampled_from([4, 8]))
def test_sums_fit_int16_for_any_bytes(seed: int, bits: int) -> None:
    _, _, result = packed(seed, bits)
    start = 0
    for header in result.filters:
        weights = result.quads["weight"][start : start + header["quads"]].astype(int)
        start += header["quads"]
        for first in range(0, len(weights), header["run"]):
            halves = weights[first : first + header["run"]].reshape(-1, 2, 2)
            for sign in (1, -1):
                most = np.maximum(sign * halves, 0).sum((0, 2))
                assert (255 * most < 2**15).all()


def test_small_weights_are_summed_in_int16_for_long() -> None:
    weights = np.full(SHAPE, 7, np.int8)
    weights[:, ::2] = -7
    result = pack.sparse(weights, pack.distances(Planes(8, 6, 7, 1, 1), SAME))
    assert (result.filters["run"] == 16).all()


def test_bytes_of_a_stream_fall_with_density() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 8, (64, 64, 3, 3)).astype(np.int8)
    for density in (0.2, 0.05, 0.01):
        kept = (weights * (rng.random(weights.shape) < density)).astype(np.int8)
        count = np.count_nonzero(kept)
        gaps = 1.1 * count + 2 * 64
        assert pack.stream(kept).size <= gaps + count
        assert pack.stream(kept, bits=4).size <= gaps + count / 2 + 32


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ExportError, match="beyond 7; 4 bits"):
        pack.stream(np.full((1, 1, 1, 1), 8, np.int8), bits=4)


def test_a_sum_beyond_int32_is_refused() -> None:
    with pytest.raises(ExportError, match=r"channel 1 .* beyond 32 bits"):
        pack.folded_bias(np.array([0, 2**31 - 100], np.int32), np.ones((2, 1, 1, 1), np.int8), 128)


def test_a_window_must_fit_the_halo() -> None:
    with pytest.raises(ExportError, match="needs a halo of 1 rows and 1 columns"):
        pack.distances(Planes(1, 4, 4), SAME)
    with pytest.raises(ExportError, match="split the tensor first"):
        pack.distances(Planes(1, 4, 4, 1, 1), Window((1, 1), (2, 2)))
    strided = Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))
    with pytest.raises(ExportError, match="splitting needs a halo"):
        Phases(Planes(1, 4, 4), strided, 2).distances(strided)


def test_a_smaller_window_of_the_same_stride_reads_the_same_phases() -> None:
    source = Planes(2, 8, 8, 1, 1)
    phases = Phases(source, Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1)), 5)
    wide = phases.distances(phases.window)
    assert phases.distances(Window((1, 1), (2, 2)))[:, 0, 0].tolist() == wide[:, 1, 1].tolist()
    with pytest.raises(ExportError, match="cannot read phases"):
        phases.distances(Window((5, 5), (2, 2), (1, 1), (1, 1, 1, 1)))
