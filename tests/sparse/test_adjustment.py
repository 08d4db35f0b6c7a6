from __future__ import annotations

import math

import pytest

from fedkit.config import make_config
from fedkit.methods.schedule import adjusting_block, learning_rate
from fedkit.sparse.adjustment import block_at, blocks, quota


@pytest.mark.parametrize("step", [0, 50, 250, 500])
def test_quota_is_the_papers_formula(step: int) -> None:
    expected = 0.15 * (1 + math.cos(step * math.pi / (100 * 5))) * 1000
    assert quota(kept=1000, pruned=10**6, step=step, last_step=500) == int(expected)


def test_quota_never_exceeds_what_is_pruned_and_ends_at_zero() -> None:
    assert quota(kept=1000, pruned=7, step=0, last_step=500) == 7
    assert quota(kept=1000, pruned=10**6, step=500, last_step=500) == 0
    assert quota(kept=1000, pruned=10**6, step=900, last_step=500) == 0


@pytest.mark.parametrize(
    ("kept", "step", "last", "alpha", "expected"),
    [(90, 0, 100, 0.7, 63), (10, 0, 9, 0.3, 3), (40, 3, 9, 0.7, 21), (40, 6, 9, 0.7, 7)],
)
def test_quota_where_the_formula_is_a_whole_number(
    kept: int, step: int, last: int, alpha: float, expected: int
) -> None:
    """At a third of the way the cosine is exactly 1/2, at two thirds -1/2."""
    assert quota(kept, 10**9, step, last, alpha) == expected


@pytest.mark.parametrize(("layers", "count"), [(21, 5), (5, 5), (3, 5), (1, 5), (8, 3)])
def test_blocks_are_contiguous_even_and_complete(layers: int, count: int) -> None:
    names = [str(i) for i in range(layers)]
    divided = blocks(names, count)
    assert [name for block in divided for name in block] == names
    sizes = [len(block) for block in divided]
    assert len(sizes) == min(layers, count) and max(sizes) - min(sizes) <= 1


def test_blocks_take_turns_from_output_to_input() -> None:
    names = list("abcdef")
    turns = [block_at(names, 3, adjustment)[0] for adjustment in range(4)]
    assert turns == ["e", "c", "a", "e"]


def test_the_papers_schedule_is_the_default_at_300_rounds() -> None:
    config = make_config({"rounds": 300})
    assert (config.adjustment_period, config.last_adjustment) == (10, 100)
    adjusting = [n for n in range(1, 301) if adjusting_block(config, list("abcde"), n)]
    assert adjusting == list(range(10, 100, 10))


def test_granularity_and_order_decide_whose_turn_it_is() -> None:
    names = list("abcdef")

    def turns(**keys: str) -> list[str]:
        config = make_config(
            {"rounds": 9, "adjust_every": 1, "adjust_stop": 9, "blocks": 3, **keys}
        )
        return ["".join(adjusting_block(config, names, number)) for number in range(1, 5)]

    assert turns() == ["ef", "cd", "ab", "ef"]
    assert turns(order="forward") == ["ab", "cd", "ef", "ab"]
    assert turns(granularity="layer") == ["f", "e", "d", "c"]
    assert turns(granularity="entire", order="forward") == ["abcdef"] * 4


def test_no_share_and_last_rounds_change_no_mask() -> None:
    still = make_config({"rounds": 30, "adjust_share": 0})
    assert not any(adjusting_block(still, ["a"], n) for n in range(1, 31))
    short = make_config({"rounds": 4, "adjust_every": 1, "adjust_stop": 9})
    assert [bool(adjusting_block(short, ["a"], n)) for n in range(1, 5)] == [
        True,
        True,
        True,
        False,
    ]


def test_learning_rate_falls_from_lr_to_lr_final() -> None:
    config = make_config({"rounds": 11, "lr": 0.2, "lr_final": 0.02})
    rates = [learning_rate(config, n) for n in range(1, 12)]
    assert rates[0] == pytest.approx(0.2) and rates[-1] == pytest.approx(0.02)
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(make_config({"rounds": 1, "lr": 0.2}), 1) == 0.2
