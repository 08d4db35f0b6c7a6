"""What may be said of lines of a comparison: the paired tests of scipy and the textbook's steps."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from fedkit.report.significance import FEWEST, against_best, pairs
from tests.report.comparisons import METHODS, of_values, result_of, row, some

values = st.lists(st.integers(0, 1000).map(lambda each: each / 1000), min_size=3, max_size=8)


@given(st.integers(3, 8).flatmap(lambda n: st.lists(st.lists(st.integers(0, 999), min_size=n,
       max_size=n), min_size=2, max_size=2)))  # fmt: skip
def test_p_and_interval_are_those_of_scipy(two: list[list[int]]) -> None:
    one, other = ([each / 1000 for each in line] for line in two)
    assume(len({a - b for a, b in zip(*two, strict=True)}) > 1)
    (found,) = against_best(of_values(one=one, other=other))
    if found.one == "other":
        one, other = other, one
    expected = stats.ttest_rel(one, other)
    low, high = expected.confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(one) - np.mean(other), abs=1e-12)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert [found.low, found.high] == pytest.approx([low, high], rel=1e-6)
    assert found.holm == found.p and found.seeds == len(one)


def test_holm_corrects_the_comparisons_of_one_density() -> None:
    result = some(METHODS[:6], seeds=5)
    noise = np.random.default_rng(0)
    for each in result["rows"]:
        each["accuracy"] += noise.normal() / 20
    found = against_best(result)
    for density in (0.01, 0.05, 0.2):
        family = [each for each in found if each.setting[3] == density]
        assert len(family) == 5
        ordered = sorted(family, key=lambda each: each.p or 0)
        steps = [(5 - rank) * (each.p or 0) for rank, each in enumerate(ordered)]
        expected = [min(1, each) for each in itertools.accumulate(steps, max)]
        assert [each.holm for each in ordered] == pytest.approx(expected)
    assert [each.setting[3] for each in found] == [0.01] * 5 + [0.05] * 5 + [0.2] * 5


def test_pairs_are_all_pairs_and_those_with_the_best_one_are_corrected() -> None:
    result = some(METHODS[:4], seeds=4)
    found = list(pairs(result))
    assert len(found) == 3 * math.comb(4, 2)
    corrected = [each for each in found if each.holm is not None or each.p is None]
    assert sorted(map(str, against_best(result))) == sorted(
        str(each) for each in corrected if each in against_best(result)
    )
    assert all(each.mean >= 0 for each in found)


@pytest.mark.parametrize("seeds", range(1, FEWEST))
def test_of_too_few_seeds_nothing_is_said(seeds: int) -> None:
    (found,) = against_best(of_values(a=[0.9] * seeds, b=[0.1, 0.2][:seeds]))
    assert (found.p, found.low, found.holm) == (None, None, None)
    assert found.verdict.startswith(f"too few seeds: {seeds}")


def test_seeds_that_only_one_line_has_do_not_count() -> None:
    (found,) = against_best(of_values(a=[0.9, 0.8, 0.85, 0.7], b=[0.1, 0.2, 0.15]))
    assert found.seeds == 3
    assert found.mean == pytest.approx(np.mean([0.8, 0.6, 0.7]))


@pytest.mark.parametrize(
    ("b", "p", "verdict"),
    [([0.5, 0.6, 0.7], 1.0, "no difference shown"), ([0.25, 0.35, 0.45], None, "nothing: ")],
    ids=["the same values", "the same difference"],
)
def test_differences_without_spread_end_in_no_division(b: Any, p: Any, verdict: str) -> None:
    (found,) = against_best(of_values(a=[0.5, 0.6, 0.7], b=b))
    assert found.p == p and found.verdict.startswith(verdict)


def test_the_best_of_an_error_is_the_least_and_settings_stay_apart() -> None:
    about = {"name": "error", "higher_is_better": False, "form": ".3g"}
    rows = [
        row(method, 0.1, seed, task=task, accuracy=base + seed / 100, **more)
        for task, more in (("one", {}), ("two", {"metric": about}))
        for method, base in (("a", 0.5), ("b", 0.25))
        for seed in range(3)
    ]
    rows.append(row("a", 1.0, 0))
    found = against_best(result_of(rows, "task", "method", "seed"))
    named = [(each.setting[0], each.one, each.other) for each in found]
    assert named == [
        ("one", "a, task one", "b, task one"),
        ("two", "b, task two", "a, task two"),
    ]


def test_lines_without_a_seed_in_common_are_not_compared() -> None:
    rows = [row("a", 0.1, 1), row("b", 0.1, 2)]
    assert against_best(result_of(rows, "method", "seed")) == []
    assert list(pairs(result_of(rows, "method", "seed"))) == []
