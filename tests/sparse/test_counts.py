from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedkit.sparse.counts import ceil_share, exact, floor_share, half_cosine, round_share

DECIMALS = st.tuples(st.integers(0, 10**6), st.integers(0, 6)).map(
    lambda d: Fraction(d[0], 10 ** d[1])
)


@settings(deadline=None)
@given(DECIMALS, st.integers(0, 10**9))
@example(Fraction(7, 10), 90)
@example(Fraction(7, 100), 100)
@example(Fraction(575, 1000), 100)
@example(Fraction(3, 10), 10**9)
def test_a_decimal_share_is_that_decimal(share: Fraction, total: int) -> None:
    product = share * total
    assert floor_share(float(share), total) == math.floor(product)
    assert ceil_share(float(share), total) == math.ceil(product)
    assert round_share(float(share), total) == round(product)


@settings(deadline=None)
@given(st.integers(1, 10**7), st.data())
@example(3, None)
def test_a_quotient_of_the_total_is_the_part(total: int, data: st.DataObject | None) -> None:
    part = 1 if data is None else data.draw(st.integers(0, total))
    share = part / total
    counts = (floor_share(share, total), ceil_share(share, total), round_share(share, total))
    assert counts == (part, part, part)


@settings(deadline=None)
@given(st.floats(0, 1e9, allow_subnormal=False))
def test_what_was_meant_is_the_same_float(share: float) -> None:
    assert float(exact(share)) == share


def test_half_cosines_that_are_rational_are_exact() -> None:
    found = [half_cosine(step, 12) for step in (0, 4, 6, 8, 12, 99)]
    assert found == [1, Fraction(3, 4), Fraction(1, 2), Fraction(1, 4), 0, 0]


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_half_cosines_are_those_of_math(step: int, last_step: int) -> None:
    expected = (1 + math.cos(math.pi * min(step / last_step, 1))) / 2
    assert float(half_cosine(step, last_step)) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_half_cosines_of_a_turn_and_of_the_rest_of_it_add_up(turn: tuple[int, int]) -> None:
    """cos(pi - x) = -cos(x), and cos(2x) = 2 cos(x)^2 - 1: far beyond what floats can tell."""
    step, last = turn
    half = half_cosine(step, last)
    assert abs(half + half_cosine(last - step, last) - 1) < Fraction(1, 10**50)
    if 2 * step <= last:
        assert abs(half_cosine(2 * step, last) - (2 * half - 1) ** 2) < Fraction(1, 10**49)
