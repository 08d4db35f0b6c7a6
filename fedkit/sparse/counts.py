"""How many: whole numbers from shares of a total, decided exactly.

A float product may land beside the whole number that it should be: 0.7 * 90 is
62.99999999999999 and 0.07 * 100 is 7.000000000000001, which floor and ceil turn into a count that
is off by one. So a share is first taken for the number that was meant by it.
"""

from __future__ import annotations

import decimal
import math
from decimal import Decimal
from fractions import Fraction

_SIMPLE = 10**8
"""Fractions with denominators up to this are 1e-16 apart or more, about as floats below 1 are."""

_DIGITS = 60
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
_HALF_COSINES = {
    Fraction(0): Fraction(1),
    Fraction(1, 3): Fraction(3, 4),
    Fraction(1, 2): Fraction(1, 2),
    Fraction(2, 3): Fraction(1, 4),
    Fraction(1): Fraction(0),
}
"""(1 + cos(pi * x)) / 2 where that is rational; at all other rational x in 0 .. 1 it is not."""


def floor_share(share: float, total: int) -> int:
    """Return the whole part of a share of a total.

    >>> floor_share(0.7, 90), floor_share(1 / 3, 3)
    (63, 1)

    Args:
        share: At least 0.
        total: At least 0.
    """
    return math.floor(exact(share) * total)


def ceil_share(share: float, total: int) -> int:
    """Return the least whole number that is not less than a share of a total.

    >>> ceil_share(0.07, 100)
    7
    """
    return math.ceil(exact(share) * total)


def round_share(share: float, total: int) -> int:
    """Return the whole number next to a share of a total, the even one of two.

    >>> round_share(0.575, 100), round_share(0.585, 100)
    (58, 58)
    """
    return round(exact(share) * total)


def exact(share: float) -> Fraction:
    """Return the number that a float was meant to be.

    That is the simplest fraction which rounds to it: 7 / 10 as typed, or 2 / 3 as divided. Where
    the simplest one is not simple, it is the decimal number that the float prints as.

    >>> exact(0.7), exact(2 / 3)
    (Fraction(7, 10), Fraction(2, 3))

    Args:
        share: Finite.
    """
    below, above = (Fraction(math.nextafter(share, end)) for end in (-math.inf, math.inf))
    found = _simplest((below + Fraction(share)) / 2, (above + Fraction(share)) / 2)
    return found if found.denominator <= _SIMPLE else Fraction(repr(float(share)))


def _simplest(low: Fraction, high: Fraction) -> Fraction:
    """Return the fraction of the smallest denominator in low .. high."""
    whole = math.ceil(low)
    if whole <= high:
        return Fraction(whole)
    return whole - 1 + 1 / _simplest(1 / (high - whole + 1), 1 / (low - whole + 1))


def half_cosine(step: int, last_step: int) -> Fraction:
    """Return (1 + cos(pi * step / last_step)) / 2, from 1 at step 0 to 0 at the last and after it.

    Args:
        step: At least 0.
        last_step: Greater than 0.

    Returns:
        Exact where it is a rational number; else within 1e-50, which decides on every product
        with a rational number what its whole part is.
    """
    turn = min(Fraction(step, last_step), Fraction(1))
    found = _HALF_COSINES.get(turn)
    return (1 + _cosine(turn)) / 2 if found is None else found


def _cosine(turn: Fraction) -> Fraction:
    """Return cos(pi * turn) by its series, within 1e-50; 0 <= turn <= 1."""
    with decimal.localcontext(prec=_DIGITS):
        square = (_PI * turn.numerator / turn.denominator) ** 2
        term = total = Decimal(1)
        for n in range(2, 100, 2):
            term *= -square / (n * (n - 1))
            total += term
        return Fraction(total)
