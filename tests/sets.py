"""The default set of tests, and the slow one beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings

QUICK_EXAMPLES = 40
"""Of 100 examples that hypothesis draws, so many in the default set."""


def slow_but(quick: Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """Mark parameters as slow, but for those that stand for them in the default set.

    Args:
        quick: What stays in the default set.
        values: All parameters, those among them; a tuple is one of several arguments.
    """
    kept, every = list(quick), list(values)
    assert kept and all(value in every for value in kept), f"{kept} are not all among {every}"
    return [value if value in kept else slow(value) for value in every]


def drawn(count: int) -> int:
    """Return how many of `count` examples hypothesis draws: 40 % in the default set."""
    return max(1, count * settings().max_examples // 100)


def slow(value: Any) -> Any:
    """Return a parameter of the slow set."""
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
