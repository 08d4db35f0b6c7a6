"""Generated lies of one device, for every method and message: named and refused, or harmless.

Whatever a device answers, the step that reads it ends with a model that is finite, keeps its budget
and can travel on; nothing but a refusal of that one device is raised.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.config import RunConfig
from fedkit.core.errors import WireError
from fedkit.methods.interface import Phase, whole_model
from fedkit.methods.registry import METHODS
from fedkit.server.rounds import Report, run_rounds
from fedkit.sparse.state import ModelState, count_kept, masks_digest
from fedkit.sparse.topk import Entries
from fedkit.stats.norms import merge_losses
from fedkit.wire import codec
from fedkit.wire.messages import LARGEST, Packet, as_received, pack_update
from fedkit.wire.validation import admit_update
from tests.fleet import tiny

LIAR = 1
ASKING = ("fedtiny", "fedtiny-vanilla", "prunefl", "feddst", "ssfl", "dense")
"""A method of each kind: what they ask of devices covers all messages."""

VARIANTS: dict[str, dict[str, Any]] = {
    "mean": {},
    "median": {"aggregation": "median"},
    "fp16": {"wire": "fp16"},
    "few bits": {"uplink_bits": 4},
    "exact": {"bn_merge": "exact"},
    "no bounds": {"max_change": 0},
    "private": {"dp_clip": 0.5, "selection": "none", "adjust_share": 0},
}

Lie = Callable[[Packet, RunConfig], Packet]


@functools.cache
def honest(method: str, variant: str) -> tuple[RunConfig, tuple[Phase, ...]]:
    """The config and the phases of a run without lies, which nobody is refused in."""
    config = tiny.config(method=method, **VARIANTS[variant])
    fleet = tiny.FaultyFleet(tiny.devices(config))
    list(run_rounds(tiny.server(config), fleet, tiny.SERVER_DATA))
    assert not fleet.refused and not fleet.failed
    return config, tuple(fleet.exchanges)


def cases() -> Iterator[tuple[str, str]]:
    for method in ASKING:
        for variant in VARIANTS:
            if variant == "private" and method not in ("fedtiny", "prunefl", "dense"):
                continue
            yield method, variant


# Lies


FLOATS = [0.0, -0.0, -1.0, 1e3, -6e4, 7e4, 1e15, -1e20, 1.2e30, -2e30, 3.4e38]
ODD = [float("nan"), float("inf"), float("-inf"), 1e-45]
NUMBERS: list[Any] = [
    *(0, -1, 1, 2**31, 2**32 - 1, 2**32, 10**18, 2**63, True, 0.5, 1e308, -1e308, "", "x" * 500),
    *(float("nan"), float("inf"), LARGEST, -LARGEST, 3e38),
]


def altered(array: NDArray[Any], kind: str, value: float, place: int) -> NDArray[Any]:
    changed = array.copy()
    with np.errstate(all="ignore"):
        if kind == "one" and changed.size:
            changed.reshape(-1)[place % changed.size] = np.array(value).astype(changed.dtype)
        elif kind == "all":
            changed[...] = np.array(value).astype(changed.dtype)
        elif kind == "times":
            changed = (changed * np.array(value).astype(changed.dtype)).astype(changed.dtype)
        elif kind == "shorter":
            changed = changed[: max(0, len(changed) - 1 - place % 3)]
        elif kind == "longer":
            changed = np.concatenate([changed, changed[: 1 + place % 3]])
        elif kind == "reversed":
            changed = changed[::-1]
        elif kind == "wide":
            changed = changed.astype(np.float32 if changed.dtype == np.float16 else np.float64)
        elif kind == "nested":
            changed = changed[None]
        elif kind == "noise":
            noise = np.random.default_rng(place).bytes(changed.nbytes)
            changed = np.frombuffer(noise, changed.dtype).reshape(changed.shape)
    return changed


KINDS = ("one", "all", "times", "shorter", "longer", "reversed", "wide", "nested", "noise")


def array_lie(name: str, kind: str, value: float, place: int) -> Lie:
    def lie(packet: Packet, config: RunConfig) -> Packet:
        names = sorted(packet.arrays)
        chosen = names[place % len(names)] if name == "any" else name
        if chosen not in packet.arrays:
            return packet
        found = altered(packet.arrays[chosen], kind, value, place)
        return Packet({**packet.arrays, chosen: found}, packet.numbers)

    return lie


def number_lie(name: str, value: Any) -> Lie:
    def lie(packet: Packet, config: RunConfig) -> Packet:
        return Packet(packet.arrays, {**packet.numbers, name: value})

    return lie


def entries_lie(every: int, value: float) -> Lie:
    """Entries of every so-many-th weight of each layer, kept or not."""

    def lie(packet: Packet, config: RunConfig) -> Packet:
        layout = tiny.engine().layout
        number = packet.numbers.get("round")
        if "positions" not in packet.arrays or not isinstance(number, int):
            return packet
        layers = tiny.server(config).method.layers(config, layout.prunable, number)
        entries = {}
        for name in layers:
            indices = np.arange(0, int(np.prod(layout.weights[name])), every)
            entries[name] = Entries(indices, np.full(len(indices), value, np.float32))
        positions, values = codec.encode_entries(entries, layout.weights)
        return Packet(
            {**packet.arrays, "positions": positions, "gradients": values}, packet.numbers
        )

    return lie


def masks_lie(share: float, seed: int) -> Lie:
    """A model under masks of its own, well signed."""

    def lie(packet: Packet, config: RunConfig) -> Packet:
        if "values" not in packet.arrays:
            return packet
        layout, rng = tiny.engine().layout, np.random.default_rng(seed)
        masks = {n: rng.random(shape) < share for n, shape in layout.prunable_shapes.items()}
        kept, sizes = count_kept(masks), {n: np.prod(s) for n, s in layout.weights.items()}
        count = int(sum(kept.get(name, size) for name, size in sizes.items()))
        arrays = {
            **{key: a for key, a in packet.arrays.items() if key != "mask_changes"},
            "values": rng.standard_normal(count).astype(packet.arrays["values"].dtype),
            "masks": codec.encode_masks(masks),
        }
        return Packet(arrays, {**packet.numbers, "mask_digest": masks_digest(masks)})

    return lie


def dropped(place: int) -> Lie:
    def lie(packet: Packet, config: RunConfig) -> Packet:
        names = sorted([*packet.arrays, *packet.numbers])
        gone = names[place % len(names)]
        return Packet(
            {key: a for key, a in packet.arrays.items() if key != gone},
            {key: n for key, n in packet.numbers.items() if key != gone},
        )

    return lie


ARRAYS = st.sampled_from(["any", "values", "stats", "gradients", "losses", "scores", "differences"])
LIES = st.one_of(
    st.builds(
        array_lie,
        ARRAYS,
        st.sampled_from(KINDS),
        st.sampled_from(FLOATS + ODD),
        st.integers(0, 10**6),
    ),
    st.builds(
        number_lie,
        st.sampled_from(["examples", "loss", "round", "mask_digest", "candidate", "other"]),
        st.sampled_from(NUMBERS),
    ),
    st.builds(entries_lie, st.integers(1, 5), st.sampled_from(FLOATS)),
    st.builds(masks_lie, st.sampled_from([0.0, 0.1, 0.29, 0.9, 1.0]), st.integers(0, 99)),
    st.builds(dropped, st.integers(0, 20)),
)


def assert_sound(config: RunConfig, state: ModelState, before: ModelState | None) -> None:
    widest = 65504.0 if config.wire == "fp16" else LARGEST
    for values in (state.weights, state.stats):
        for name, value in values.items():
            assert np.isfinite(value).all() and np.abs(value).max(initial=0) <= widest, name
    for name, value in state.stats.items():
        assert not name.endswith("running_var") or (value >= 0).all(), name
    for name, mask in state.masks.items():
        assert not state.weights[name][~mask].any()
    as_received(state, config.wire)  # it can travel
    if before is not None:
        assert sum(count_kept(state.masks).values()) == sum(count_kept(before.masks).values())


def check_attack(
    method: str, variant: str, at: int, lies: list[Lie]
) -> tuple[tiny.FaultyFleet, list[Report]]:
    """Run until the step that reads exchange `at`, in which the liar lies; check every model."""
    config, phases = honest(method, variant)
    at %= len(phases)

    def change(number: int, device: int, reply: Packet) -> Packet:
        if device == LIAR and number == at:
            for lie in lies:
                reply = lie(reply, config)
        return reply

    fleet, steps = tiny.FaultyFleet(tiny.devices(config), change), list[Report]()
    for step in run_rounds(tiny.server(config), fleet, tiny.SERVER_DATA):
        sparse = steps[-1].state if len(steps) > 1 else None
        assert_sound(config, step.state, sparse)
        steps.append(step)
        if len(fleet.exchanges) > at:
            break
    assert {device for _, device, _ in fleet.refused} <= {LIAR}
    assert all(len(reason) < 500 for _, _, reason in fleet.refused)
    assert not fleet.failed
    return fleet, steps


@pytest.mark.parametrize(("method", "variant"), [*cases()])
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
