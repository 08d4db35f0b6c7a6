"""Models with layers over tokens in everything that runs exports."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from edge.ops import matrices
from edge.ops.integer_spec import rescaled
from tests.edge.in_runtimes import (
    assert_same_in,
    assert_same_in_c,
    halves_away,
    integers_of,
    steps_off_in_litert_alone,
)
from tests.edge.policy_places import PolicyRun
from tests.tokens import ATTENTION, KINDS, made

ALL = [*KINDS, *ATTENTION]


@pytest.mark.parametrize("kind", ALL)
def test_models_of_people_in_runtimes(kind: str, place: PolicyRun) -> None:
    assert_same_in(place, integers_of(*made(kind)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_people_in_litert_without_xnnpack(kind: str) -> None:
    assert steps_off_in_litert_alone(integers_of(*made(kind))) <= 1  # their means, in blocks


HALVES = ("fused heads", "one call", "encoder")
"""Without means, so that only products of matrices round otherwise there."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", HALVES)
def test_attention_in_litert_without_xnnpack(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "rescaled", partial(halves_away, rescaled))
    assert steps_off_in_litert_alone(integers_of(*made(kind))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["speed", "size"])
@pytest.mark.parametrize("kind", ALL)
def test_models_of_people_in_c(kind: str, goal: str, tmp_path: Path) -> None:
    assert_same_in_c(integers_of(*made(kind)), goal, tmp_path)
