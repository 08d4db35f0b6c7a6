"""Lies of one device, generated for every message of every method."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.config import RunConfig
from fedkit.methods.interface import Phase
from fedkit.server.rounds import Report, run_rounds
from fedkit.sparse.state import ModelState, count_kept, masks_digest
from fedkit.sparse.topk import Entries
from fedkit.wire import codec
from fedkit.wire.messages import LARGEST, Packet, as_received
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


def representative() -> list[tuple[str, str]]:
    """Return a third of the cases: every method twice at least, every variant twice at least."""
    found = [
        (method, variant)
        for method, variant in cases()
        if (ASKING.index(method) + list(VARIANTS).index(variant)) % 3 == 0
    ]
    assert {method for method, _ in found} == set(ASKING)
    assert {variant for _, variant in found} == set(VARIANTS)
    return found


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


def one_of(names: Collection[str], place: int) -> str:
    """Return one of them by its place, counted round; "" of none, as other lies may have left."""
    return sorted(names)[place % len(names)] if names else ""


def array_lie(name: str, kind: str, value: float, place: int) -> Lie:
    def lie(packet: Packet, config: RunConfig) -> Packet:
        chosen = one_of(packet.arrays, place) if name == "any" else name
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
        gone = one_of([*packet.arrays, *packet.numbers], place)
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
