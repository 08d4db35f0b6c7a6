"""Validation of messages: every kind of message round-trips, and no damage gets through.

A reader may refuse with a `WireError` or read something of the right shape under the right masks;
it never fails in another way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.core.errors import WireError
from fedkit.sparse.candidates import CandidatePool, candidate_pool
from fedkit.sparse.layout import Layout
from fedkit.sparse.state import Masks, ModelState, Weights, apply_masks, count_kept
from fedkit.sparse.topk import Entries
from fedkit.stats.moments import Moments, NormMoments
from fedkit.wire import codec, messages
from fedkit.wire.messages import Packet, Update, Wire
from tests.naive.sparse import decode_layer
from tests.sets import drawn

SHAPES = {"a": (6, 8), "bias": (3,), "b": (20, 30), "c": (1,)}
LAYOUT = Layout(SHAPES, {"n.running_mean": (4,), "n.running_var": (4,)}, ("a", "b", "c"))
BLOCK = ("a", "b")
CANDIDATES = 3
WIRES: tuple[Wire, ...] = ("fp32", "fp16")


def make_masks(density: float, seed: int) -> dict[str, NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    return {name: rng.random(SHAPES[name]) < density for name in LAYOUT.prunable}


def make_stats(seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return {name: rng.random(shape).astype(np.float32) for name, shape in LAYOUT.stats.items()}


def make_state(masks: Masks) -> ModelState:
    rng = np.random.default_rng(3)
    weights = {name: rng.standard_normal(s).astype(np.float32) for name, s in SHAPES.items()}
    return ModelState(apply_masks(weights, masks), make_stats(4), masks)


OLD = make_masks(0.1, 1)
STATE = make_state(make_masks(0.1, 2))
DENSE = make_state(make_masks(1.1, 0))
POOL = candidate_pool(
    DENSE, density=0.1, size=CANDIDATES, noise=0.5, distribution="uniform", exempt=(), seed=0
)
MOMENTS: list[NormMoments] = [
    {"n": Moments.of(np.random.default_rng(seed).random((5, 4)))} for seed in range(CANDIDATES)
]


SENT = ModelState(
    {n: (w + np.float32(0.01)) * (w != 0) for n, w in STATE.weights.items()},
    make_stats(5),
    STATE.masks,
)
"""What a device was sent before it trained `STATE`."""
NOTHING = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
BITS = 4


def make_update() -> Update:
    pruned = {name: np.flatnonzero(~STATE.masks[name].reshape(-1))[::9] for name in BLOCK}
    gradients = {
        name: Entries(indices, np.linspace(-1, 1, len(indices), dtype=np.float32))
        for name, indices in pruned.items()
    }
    return Update(STATE, 40, 0.5, gradients)


@dataclass(frozen=True)
class Kind:
    """One kind of message: packed, how it is read, and what any reading of it must keep."""

    packet: Packet
    read: Callable[[Packet], Any]
    check: Callable[[Any], None]


def check_state(found: ModelState, masks: Masks) -> None:
    assert {name: value.shape for name, value in found.weights.items()} == SHAPES
    assert list(found.masks) == list(masks)
    for name, mask in masks.items():
        assert np.array_equal(found.masks[name], mask)
        assert not found.weights[name][~mask].any()
    for weights in (found.weights, found.stats):
        assert all(value.dtype == np.float32 for value in weights.values())
        assert all(np.isfinite(value).all() for value in weights.values())


def check_pool(found: CandidatePool) -> None:
    check_state(found.union, POOL.union.masks)
    assert len(found) == CANDIDATES
    for index in range(CANDIDATES):
        kept = count_kept(found.candidate(index).masks)
        assert list(kept.values()) == found.counts[index].tolist()


def check_stats(found: list[Weights]) -> None:
    assert len(found) == CANDIDATES
    for stats in found:
        assert {name: value.shape for name, value in stats.items()} == LAYOUT.stats
        assert all(np.isfinite(value).all() for value in stats.values())


def check_moments(found: list[NormMoments]) -> None:
    assert len(found) == CANDIDATES
    assert all(np.isfinite(norms["n"].variance).all() for norms in found)


def check_losses(found: tuple[list[float], int]) -> None:
    losses, examples = found
    assert len(losses) == CANDIDATES
    assert all(map(math.isfinite, losses))
    assert examples >= 1


def check_update(found: Update) -> None:
    check_state(found.state, STATE.masks)
    assert found.examples >= 1
    assert math.isfinite(found.loss)
    assert tuple(found.gradients) == BLOCK
    for entries in found.gradients.values():
        assert len(entries.indices) == len(entries.values)
        assert (np.diff(entries.indices) > 0).all()
        assert np.isfinite(entries.values).all()


def reading_state(known: Masks | None) -> Kind:
    return Kind(
        messages.pack_state(STATE, known),
        lambda packet: messages.read_state(packet, LAYOUT, known),
        lambda found: check_state(found, STATE.masks),
    )


def in_differences(packet: Packet) -> Update:
    return messages.read_update(packet, LAYOUT, SENT, BLOCK, bits=BITS)


KINDS = {
    "whole state": reading_state(None),
    "changed state": reading_state(OLD),
    "known state": reading_state(STATE.masks),
    "pool": Kind(messages.pack_pool(POOL), lambda p: messages.read_pool(p, LAYOUT), check_pool),
    "stats": Kind(
        messages.pack_stats([make_stats(seed) for seed in range(CANDIDATES)]),
        lambda packet: messages.read_stats(packet, LAYOUT, CANDIDATES),
        check_stats,
    ),
    "moments": Kind(
        messages.pack_moments(MOMENTS, 5),
        lambda packet: messages.read_moments(packet, LAYOUT, CANDIDATES),
        check_moments,
    ),
    "losses": Kind(
        messages.pack_losses([0.5, 0.25, 2.0], 7),
        lambda packet: messages.read_losses(packet, CANDIDATES),
        check_losses,
    ),
    "update": Kind(
        messages.pack_update(make_update(), LAYOUT, STATE.masks),
        lambda packet: messages.read_update(packet, LAYOUT, STATE, BLOCK),
        check_update,
    ),
    "differences": Kind(
        messages.pack_differences(make_update(), LAYOUT, SENT, BITS, NOTHING)[0],
        in_differences,
        check_update,
    ),
}

each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
each_wire = pytest.mark.parametrize("wire", WIRES)


def with_array(packet: Packet, key: str, array: NDArray[Any]) -> Packet:
    return Packet({**packet.arrays, key: array}, packet.numbers)


def assert_refused_or_right(kind: Kind, packet: Packet) -> None:
    try:
        found = kind.read(packet)
    except WireError as error:
        assert str(error)
    else:
        kind.check(found)


# Both widths of the values


@each_kind
@each_wire
def test_every_kind_is_read_in_both_widths(kind: Kind, wire: Wire) -> None:
    packet = messages.narrow(kind.packet, wire)
    kind.check(kind.read(packet))
    assert packet.numbers == kind.packet.numbers
    for key, array in kind.packet.arrays.items():
        narrowed = wire == "fp16" and array.dtype == np.float32
        assert packet.arrays[key].dtype == (np.float16 if narrowed else array.dtype)


@each_wire
def test_a_state_arrives_rounded_once_and_under_its_own_masks(wire: Wire) -> None:
    packet = messages.narrow(messages.pack_state(STATE, None), wire)
    found = messages.read_state(packet, LAYOUT, None)
    width = np.float16 if wire == "fp16" else np.float32
    for sent, read in ((STATE.weights, found.weights), (STATE.stats, found.stats)):
        for name, value in sent.items():
            rounded = [float(width(number)) for number in value.reshape(-1).tolist()]
            assert read[name].reshape(-1).tolist() == rounded
    again = messages.narrow(messages.pack_state(found, None), wire)
    assert {key: array.tobytes() for key, array in again.arrays.items()} == {
        key: array.tobytes() for key, array in packet.arrays.items()
    }


def test_a_kept_weight_that_rounds_to_zero_stays_kept() -> None:
    tiny = {name: np.full(shape, 1e-8, np.float32) for name, shape in SHAPES.items()}
    state = ModelState(apply_masks(tiny, STATE.masks), STATE.stats, STATE.masks)
    packet = messages.narrow(messages.pack_state(state, None), "fp16")
    found = messages.read_state(packet, LAYOUT, None)
    assert not any(value.any() for value in found.weights.values())
    check_state(found, STATE.masks)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("key", ["values", "stats"])
def test_what_float16_cannot_hold_is_refused_by_its_sender(key: str, sign: int) -> None:
    packet = messages.pack_state(STATE, None)
    array = packet.arrays[key].copy()
    array[1] = sign * 65519.0  # The last number that still rounds down to 65504.
    held = messages.narrow(with_array(packet, key, array), "fp16")
    assert held.arrays[key][1] == sign * 65504.0
    array[1] = sign * 65520.0
    beyond = with_array(packet, key, array)
    assert messages.narrow(beyond, "fp32") is beyond
    with pytest.raises(
        WireError, match=f"1 of .* '{key}' exceed .* 6.552e.04; .* set wire to fp32"
    ):
        messages.narrow(beyond, "fp16")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@each_wire
def test_values_that_are_no_numbers_are_the_readers_to_refuse(wire: Wire, bad: float) -> None:
    packet = messages.pack_state(STATE, None)
    for key in ("values", "stats"):
        array = packet.arrays[key].copy()
        array[0] = bad
        poisoned = messages.narrow(with_array(packet, key, array), wire)
        with pytest.raises(WireError, match="NaN or infinite"):
            messages.read_state(poisoned, LAYOUT, None)


# Differences in few bits


def trained_from(sent: ModelState, seed: int) -> ModelState:
    """The model sent, moved a little; channels move by amounts of their own."""
    rng = np.random.default_rng(seed)
    moved = {
        name: value + (0.1 * rng.standard_normal(value.shape)).astype(np.float32)
        for name, value in sent.weights.items()
    }
    return ModelState(apply_masks(moved, sent.masks), make_stats(seed), sent.masks)


@given(st.integers(2, 8), st.integers(0, 99))
def test_what_is_told_and_what_remains_add_up_to_what_was_trained(bits: int, seed: int) -> None:
    """Whatever the server makes of it meanwhile, nothing that a device trained is ever lost."""
    remainder: Weights = NOTHING
    sums = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for number in range(4):
        sent = make_state(STATE.masks) if number == 0 else trained_from(SENT, seed + number)
        trained = trained_from(sent, seed + 10 * number)
        update = Update(trained, 40, 0.5, {})
        packet, left = messages.pack_differences(update, LAYOUT, sent, bits, remainder)
        read = messages.read_update(packet, LAYOUT, sent, [], bits=bits).state
        remainder = codec.decode_values(left, SHAPES, STATE.masks)
        for name in SHAPES:
            sums[name] += read.weights[name].astype(np.float64) - trained.weights[name]
            np.testing.assert_allclose(sums[name] + remainder[name], 0, atol=1e-5)
    assert any(np.abs(value).max() > 1e-4 for value in sums.values())


def test_the_remainder_is_told_as_soon_as_the_bits_allow() -> None:
    remainder = {name: np.full(shape, 0.3, np.float32) for name, shape in SHAPES.items()}
    update = Update(SENT, 40, 0.5, {})  # Nothing was trained.
    packet, left = messages.pack_differences(update, LAYOUT, SENT, 8, remainder)
    read = messages.read_update(packet, LAYOUT, SENT, [], bits=8).state
    kept = {**NOTHING, **STATE.masks}
    for name, value in read.weights.items():
        there = kept[name] if name in STATE.masks else np.ones(value.shape, np.bool_)
        np.testing.assert_allclose((value - SENT.weights[name])[there], 0.3, atol=1e-5)
        assert not value[~there].any()  # What was pruned meanwhile is dropped.
    assert np.abs(left).max() < 1e-5


def test_statistics_arrive_within_the_step_of_their_layer() -> None:
    packet, _ = messages.pack_differences(make_update(), LAYOUT, SENT, 8, NOTHING)
    found = messages.read_update(packet, LAYOUT, SENT, BLOCK, bits=8).state
    for name, value in STATE.stats.items():
        furthest = np.abs(value - SENT.stats[name]).max()
        np.testing.assert_allclose(found.stats[name], value, atol=furthest / 20)
        assert (found.stats[name] != value).any()


def test_differences_under_masks_of_the_devices_own_lead_to_its_model() -> None:
    known = ModelState(apply_masks(DENSE.weights, OLD), SENT.stats, OLD)
    update = Update(STATE, 40, 0.5, {})
    packet, left = messages.pack_differences(update, LAYOUT, known, 8, NOTHING)
    found = messages.read_update(packet, LAYOUT, known, [], own_masks=True, bits=8).state
    check_state(found, STATE.masks)
    lost = codec.decode_values(left, SHAPES, STATE.masks)
    for name, value in STATE.weights.items():
        np.testing.assert_allclose(found.weights[name] + lost[name], value, atol=1e-6)
    with pytest.raises(WireError, match="masks of its own"):
        messages.read_update(packet, LAYOUT, known, [], bits=8)


def test_who_expects_the_other_kind_of_update_says_what_came() -> None:
    whole, few = KINDS["update"].packet, KINDS["differences"].packet
    with pytest.raises(WireError, match=r"lacks 'differences'; it holds .*'values'"):
        in_differences(whole)
    with pytest.raises(WireError, match=r"lacks 'values'; it holds .*'differences'"):
        messages.read_update(few, LAYOUT, SENT, BLOCK)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["weights", "stats"])
def test_a_diverged_model_is_refused_by_its_sender(kind: str, bad: float) -> None:
    values = {name: np.full_like(value, bad) for name, value in getattr(STATE, kind).items()}
    diverged = Update(replace(STATE, **{kind: values}), 40, 0.5, {})
    with pytest.raises(WireError, match="NaN or infinite, which have no level; lower lr"):
        messages.pack_differences(diverged, LAYOUT, SENT, BITS, NOTHING)


def test_differences_that_lead_beyond_float32_are_refused() -> None:
    packet = KINDS["differences"].packet
    blob = packet.arrays["differences"].copy()
    scales = blob[2 : 2 + 4 * (len(SHAPES) + len(LAYOUT.stats))].view("<f4")
    scales[-1] = 3e38
    with pytest.raises(WireError, match="norm statistics hold NaN or infinite"):
        in_differences(with_array(packet, "differences", blob))
    scales[0] = 3e38
    with pytest.raises(WireError, match="weights arrived as NaN or infinite"):
        in_differences(with_array(packet, "differences", blob))


# Damage


def test_the_messages_below_hold_both_forms_of_code() -> None:
    blob, at, forms = KINDS["whole state"].packet.arrays["masks"].tobytes(), 0, []
    for name in LAYOUT.prunable:
        forms.append(blob[at] % 128)
        _, at = decode_layer(blob, at, math.prod(SHAPES[name]))
    assert min(forms) <= 32
    assert max(forms) == 127


def truncations(packet: Packet) -> Iterator[Packet]:
    for key, array in packet.arrays.items():
        flat = array.reshape(-1)
        yield from (with_array(packet, key, flat[:length]) for length in range(len(flat)))
        yield Packet({k: v for k, v in packet.arrays.items() if k != key}, packet.numbers)


@each_kind
@each_wire
def test_every_truncation_is_refused(kind: Kind, wire: Wire) -> None:
    for packet in truncations(messages.narrow(kind.packet, wire)):
        with pytest.raises(WireError):
            kind.read(packet)


@each_kind
@each_wire
def test_every_altered_byte_is_refused_or_does_no_harm(kind: Kind, wire: Wire) -> None:
    packet, rng = messages.narrow(kind.packet, wire), np.random.default_rng(0)
    for key, array in packet.arrays.items():
        for at in range(array.nbytes):
            altered = array.copy()
            altered.reshape(-1).view(np.uint8)[at] ^= rng.integers(1, 256, dtype=np.uint8)
            assert_refused_or_right(kind, with_array(packet, key, altered))


CODES = [
    ("whole state", "masks"),
    ("changed state", "mask_changes"),
    ("update", "positions"),
    ("differences", "differences"),
]


@pytest.mark.parametrize(("name", "key"), CODES)
def test_every_altered_bit_of_a_code_is_refused_or_does_no_harm(name: str, key: str) -> None:
    packet = KINDS[name].packet
    for bit in range(8 * packet.arrays[key].size):
        altered = packet.arrays[key].copy()
        altered[bit // 8] ^= 1 << bit % 8
        assert_refused_or_right(KINDS[name], with_array(packet, key, altered))


odd_arrays = st.sampled_from(
    [
        np.empty(0, np.float32),
        np.zeros((0, 3), np.int32),
        np.float32(1).reshape(()),
        np.zeros(8, ">f4"),
        np.zeros(8, np.complex64),
        np.array(["a", "b"]),
        np.array([1, None], object),
        np.zeros((2, 2, 2), np.uint8),
        np.full((3, 8), np.nan, np.float32),
    ]
)


@settings(max_examples=drawn(300))
@given(st.sampled_from(list(KINDS)), odd_arrays, st.data())
def test_an_array_of_another_kind_is_refused(
    name: str, array: NDArray[Any], data: st.DataObject
) -> None:
    kind = KINDS[name]
    key = data.draw(st.sampled_from(list(kind.packet.arrays)))
    with pytest.raises(WireError):
        kind.read(with_array(kind.packet, key, array))


@each_kind
def test_a_missing_number_is_refused(kind: Kind) -> None:
    for key in kind.packet.numbers:
        rest = {k: v for k, v in kind.packet.numbers.items() if k != key}
        with pytest.raises(WireError, match=key.partition("_")[0]):
            kind.read(Packet(kind.packet.arrays, rest))


numbers: st.SearchStrategy[int | float | str] = (
    st.sampled_from([0, -1, 2**32, 10**400]) | st.integers() | st.floats() | st.text()
)


@settings(max_examples=drawn(150))
@given(st.sampled_from([n for n, kind in KINDS.items() if kind.packet.numbers]), st.data())
def test_an_altered_number_is_refused_or_does_no_harm(name: str, data: st.DataObject) -> None:
    kind = KINDS[name]
    key = data.draw(st.sampled_from(list(kind.packet.numbers)))
    altered = {**kind.packet.numbers, key: data.draw(numbers)}
    assert_refused_or_right(kind, Packet(kind.packet.arrays, altered))


@pytest.mark.parametrize("counts", [np.full((3, 3), -1), np.full((3, 3), 601), np.empty((0, 3))])
def test_a_pool_that_keeps_more_than_its_union_is_refused(counts: NDArray[Any]) -> None:
    packet = with_array(messages.pack_pool(POOL), "counts", counts.astype(np.int32))
    with pytest.raises(WireError, match="needs one or more, each with 0"):
        messages.read_pool(packet, LAYOUT)
