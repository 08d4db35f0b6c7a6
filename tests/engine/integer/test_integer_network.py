"""Codes of sparse layers against the formula of their docstring, written over dense rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedkit.engine.integer.constants import CLIP
from fedkit.engine.integer.integer_network import full_weight
from tests.engine.integer.networks import Bools, Floats, network_of

BITS = (8, 4)


def scale_of(row: list[float], bits: int) -> float | None:
    """Return what the code 1 of a row of kept weights is worth; None: nothing decides it."""
    kept = [abs(value) for value in row if value]
    if not kept:
        return None
    spread = math.sqrt(math.fsum(value * value for value in kept) / len(kept))
    return min(max(kept), CLIP[bits] * spread) / (2 ** (bits - 1) - 1)


def assert_codes_are_those_of_each_row(weight: Floats, mask: Bools, bits: int) -> None:
    made = network_of(weight, mask, bits)
    codes = made.codes(1, np.zeros(len(weight)))
    full = full_weight(made, 1, codes.values)
    assert not full[~mask].any()
    most = 2 ** (bits - 1) - 1
    for row, kept, found, scale in zip(weight, mask, full, codes.scale, strict=True):
        wanted = scale_of(np.where(kept, row, 0).ravel().tolist(), bits)
        if wanted is None:
            assert not found.any()
            continue
        assert scale == pytest.approx(wanted, rel=1e-6)
        clipped = np.clip(row[kept], -most * wanted, most * wanted)
        assert np.abs(found[kept] * scale - clipped).max() <= 0.501 * wanted


FIRST, MIDDLE, LAST = [0, 1], [2, 3], [4, 5]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("empty", [[], FIRST, MIDDLE, LAST, FIRST + LAST, list(range(6))])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_codes_where_rows_are_empty(bits: int, empty: list[int], density: float) -> None:
    rng = np.random.default_rng(len(empty))
    weight = rng.standard_normal((6, 3, 3, 3)).astype(np.float32)
    mask = rng.random(weight.shape) < density
    mask[:, 0, 0, 0] = True
    mask[empty] = False
    assert_codes_are_those_of_each_row(weight, mask, bits)


def test_the_last_kept_weight_of_a_row_counts() -> None:
    weight = np.array([[0.03, 1.0]] * 4, np.float32).reshape(4, 2, 1, 1)
    mask = np.zeros(weight.shape, np.bool_)
    mask[0] = True
    made = network_of(weight, mask, 8)
    codes = made.codes(1, np.zeros(4))
    assert codes.values * codes.scale[0] == pytest.approx([0.03, 1.0], abs=0.005)


@settings(deadline=None, max_examples=60)
@given(
    kept=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=7),
    bits=st.sampled_from(range(2, 9)),
    seed=st.integers(0, 2**32 - 1),
)
@example(kept=[[True] * 4, [False] * 4], bits=8, seed=0)
@example(kept=[[False] * 4] * 3, bits=8, seed=0)
def test_codes_under_any_mask(kept: list[list[bool]], bits: int, seed: int) -> None:
    mask = np.array(kept, np.bool_).reshape(-1, 1, 2, 2)
    # The last of a row is the largest, so that the loss of one end of it shows.
    octaves = np.random.default_rng(seed).uniform(-4, 0, (len(mask), 4))
    size = 2.0 ** np.sort(octaves, axis=1).reshape(mask.shape)
    sign = np.random.default_rng(seed + 1).choice([-1, 1], mask.shape)
    assert_codes_are_those_of_each_row((size * sign).astype(np.float32), mask, bits)
