"""Models with layers over tokens in everything that runs exports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.edge.in_runtimes import (
    assert_same_in,
    assert_same_in_c,
    integers_of,
    steps_off_in_litert_alone,
)
from tests.edge.policy_places import PolicyRun
from tests.tokens import KINDS, made


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_people_in_runtimes(kind: str, place: PolicyRun) -> None:
    assert_same_in(place, integers_of(*made(kind)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_people_in_litert_without_xnnpack(kind: str) -> None:
    assert steps_off_in_litert_alone(integers_of(*made(kind))) <= 1  # their means, in blocks


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["speed", "size"])
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_people_in_c(kind: str, goal: str, tmp_path: Path) -> None:
    assert_same_in_c(integers_of(*made(kind)), goal, tmp_path)
