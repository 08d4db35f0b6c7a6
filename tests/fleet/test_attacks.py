"""Generated lies of one device, for every method and message: named and refused, or harmless.

Whatever a device answers, the step that reads it ends with a model that is finite, keeps its budget
and can travel on; nothing but a refusal of that one device is raised.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkit.core.errors import WireError
from fedkit.methods.interface import Phase, whole_model
from fedkit.methods.registry import METHODS
from fedkit.server.rounds import run_rounds
from fedkit.sparse.state import ModelState
from fedkit.sparse.topk import Entries
from fedkit.stats.norms import merge_losses
from fedkit.wire.messages import LARGEST, Packet, pack_update
from fedkit.wire.validation import admit_update
from tests.fleet import tiny
from tests.fleet.lies import (
    ASKING,
    LIAR,
    LIES,
    Lie,
    array_lie,
    cases,
    check_attack,
    entries_lie,
    honest,
    number_lie,
    representative,
)
from tests.sets import slow_but


@pytest.mark.parametrize(("method", "variant"), slow_but(representative(), cases()))
@settings(deadline=None, max_examples=2)
@given(st.integers(0, 9), st.lists(LIES, min_size=1, max_size=2))
def test_a_generated_lie_is_refused_or_harmless(
    method: str, variant: str, at: int, lies: list[Lie]
) -> None:
    check_attack(method, variant, at, lies)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "variant"), [*cases()])
@settings(deadline=None, max_examples=400)
@given(st.integers(0, 9), st.lists(LIES, min_size=1, max_size=3))
def test_many_generated_lies_are_refused_or_harmless(
    method: str, variant: str, at: int, lies: list[Lie]
) -> None:
    """More than 10,000 in all."""
    check_attack(method, variant, at, lies)


# What a later step assumes, one by one


def refusals(method: str, lie: Lie, phase: Phase, **changes: Any) -> list[str]:
    """What the liar is refused for in the first exchange of a phase."""
    config = tiny.config(method=method, **changes)

    def change(number: int, device: int, reply: Packet) -> Packet:
        first = phases.index(phase) if phase in phases else -1
        return lie(reply, config) if device == LIAR and number == first else reply

    _, phases = honest(method, "mean")
    fleet = tiny.FaultyFleet(tiny.devices(config), change)
    list(run_rounds(tiny.server(config), fleet, tiny.SERVER_DATA))
    assert {device for _, device, _ in fleet.refused} <= {LIAR} and not fleet.failed
    return [reason for _, _, reason in fleet.refused]


@pytest.mark.parametrize(
    ("method", "phase", "lie", "reason"),
    [
        ("fedtiny", "train", entries_lie(1, 1.0), "entries of kept weights; only pruned ones"),
        ("prunefl", "train", entries_lie(2, 1.0), "this method needs one of each"),
        ("prunefl", "train", entries_lie(1, 3e38), "an entry of .* is up to 3e"),
        ("ssfl", "survey", array_lie("scores", "all", 3e38, 0), "scores of .* is up to"),
        ("ssfl", "survey", number_lie("examples", 10**6), "claims 1000000 examples"),
        ("fedtiny", "moments", array_lie("stats", "all", -1.0, 0), "is negative"),
        ("fedtiny", "moments", array_lie("stats", "all", 1e20, 0), "statistics changed by"),
        ("fedtiny", "moments", number_lie("examples", 10**6), "claims 1000000 examples"),
        ("fedtiny", "losses", array_lie("losses", "all", -1e308, 0), "losses is up to"),
        ("fedtiny", "losses", number_lie("examples", 10**6), "claims 1000000 examples"),
        ("dense", "train", array_lie("stats", "all", -0.5, 0), "is negative"),
        ("dense", "train", number_lie("loss", 1e308), "its loss is up to"),
        ("dense", "train", number_lie("round", "x" * 500), "is 'xxx"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_later_step_assumes_is_checked_where_replies_are_read(
    method: str, phase: Phase, lie: Lie, reason: str
) -> None:
    found = refusals(method, lie, phase, max_examples=1000)
    assert len(found) == 1 and re.search(reason, found[0])


@pytest.mark.parametrize("value", [400.0, -300.0])
def test_statistics_that_could_not_be_sent_on_once_merged_are_refused(value: float) -> None:
    """Within float16 by themselves; the pooled variance would not be."""
    lie = array_lie("stats", "all", abs(value), 0)
    assert "around the mean that was sent" in refusals("dense", lie, "train", wire="fp16")[0]
    assert refusals("dense", lie, "train") == []


def test_losses_that_are_no_numbers_leave_the_choice_to_the_others() -> None:
    """A candidate's statistics can be such that no device can compute with them."""
    told = merge_losses([[1.0, LARGEST], [LARGEST, LARGEST]], [1, 100], worst=LARGEST)
    assert told.tolist() == [1.0, LARGEST]
    nobody = merge_losses([[LARGEST] * 2] * 2, [1, 1], worst=LARGEST)
    assert nobody.argmin() == 0
    middle = merge_losses([[3.0, 1.0], [3.0, 1.0], [LARGEST] * 2], [1] * 3, "median", LARGEST)
    assert middle.tolist() == [3.0, 1.0]


def test_a_reply_made_by_hand_cannot_carry_entries_of_kept_weights() -> None:
    config = tiny.config()
    state, layout = tiny.engine().initial_state(), tiny.engine().layout
    masks = {n: np.arange(m.size).reshape(m.shape) % 3 == 0 for n, m in state.masks.items()}
    sent, layer = state.with_masks(masks), layout.prunable[0]
    reply, _ = tiny.devices(config)[0].handle("train", _whole(sent), Packet({}))
    update = admit_update(reply, layout, sent, tiny.config(adjust_share=0), 9, [], False)
    for index in (0, 1):  # the first is kept, the second pruned
        entry = {layer: Entries(np.array([index]), np.ones(1, np.float32))}
        packed = pack_update(replace(update, gradients=entry), layout, masks)
        packed = Packet(packed.arrays, {**packed.numbers, "round": 9})
        if index == 0:
            with pytest.raises(WireError, match=f"{layer} has 1 entries of kept weights"):
                admit_update(packed, layout, sent, config, 9, [layer], False)
        else:
            admit_update(packed, layout, sent, config, 9, [layer], False)


def _whole(state: ModelState) -> Packet:
    whole = whole_model(state).whole()
    return Packet(whole.arrays, {**whole.numbers, "round": 9})


def test_every_method_is_attacked() -> None:
    """Rows that ask devices something of their own are in the list."""
    kinds = {(row.survey, row.layers, row.own_masks) for row in METHODS.values()}
    assert kinds == {
        (METHODS[name].survey, METHODS[name].layers, METHODS[name].own_masks) for name in ASKING
    }
