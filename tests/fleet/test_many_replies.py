"""Thousands of replies of one device that are wrong in some way, at every reader of replies.

Each reader (method, variant, exchange) is opened once by an honest fleet. Then what came through is
changed, in its numbers (`tests.fleet.lies`) or in the bytes of its records, and put to the same
reader: it is refused by a WireError of one line, or it reads as something that the packet says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedkit.config import RunConfig
from fedkit.core.errors import WireError
from fedkit.flower.wire import from_records, to_records
from fedkit.methods.interface import Phase, Request
from fedkit.server.rounds import run_rounds
from fedkit.wire.messages import Packet
from tests.fleet import tiny
from tests.fleet.lies import (
    FLOATS,
    KINDS,
    NUMBERS,
    ODD,
    VARIANTS,
    Lie,
    array_lie,
    cases,
    dropped,
    entries_lie,
    masks_lie,
    number_lie,
    representative,
)
from tests.sets import slow_but

Read = Callable[[Packet], Any]
NAMES = ("any", "values", "stats", "gradients", "losses", "scores", "differences", "positions")


@dataclass(frozen=True)
class ReplyReader:
    """What reads one device's reply in one exchange, and an honest reply."""

    phase: Phase
    read: Read
    honest: Packet


class Watched(tiny.FaultyFleet):
    """A fleet that keeps the readers of its first device."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(tiny.devices(config))
        self.readers: list[ReplyReader] = []

    def choose(self, order: Sequence[int], count: int, spare: int = 0) -> None:
        """Ask every device all the same."""

    def exchange(self, phase: Phase, request: Request, read: Read) -> list[Any]:
        found = len(self.readers)

        def watched(packet: Packet) -> Any:
            if len(self.readers) == found:
                self.readers.append(ReplyReader(phase, read, packet))
            return read(packet)

        return super().exchange(phase, request, watched)


@functools.cache
def readers(method: str, variant: str) -> tuple[RunConfig, tuple[ReplyReader, ...]]:
    config = tiny.config(method=method, **VARIANTS[variant])
    fleet = Watched(config)
    list(run_rounds(tiny.server(config), fleet, tiny.SERVER_DATA))
    assert not fleet.refused and fleet.readers
    return config, tuple(fleet.readers)


def a_lie(rng: np.random.Generator) -> Lie:
    def pick(options: Any) -> Any:
        return options[rng.integers(len(options))]

    place = int(rng.integers(10**6))
    match rng.integers(8):
        case 0 | 1 | 2 | 3:
            return array_lie(pick(NAMES), pick(KINDS), pick(FLOATS + ODD), place)
        case 4 | 5:
            names = ("examples", "loss", "round", "mask_digest", "candidate", "level", "other")
            return number_lie(pick(names), pick(NUMBERS))
        case 6:
            return entries_lie(1 + place % 5, pick(FLOATS))
        case _:
            return (
                masks_lie(pick((0.0, 0.1, 0.29, 0.9, 1.0)), place) if place % 2 else dropped(place)
            )


def damaged(packet: Packet, rng: np.random.Generator) -> RecordDict:
    """The records of a packet, of which one has other bytes, another header or another kind."""
    records = to_records(packet)
    arrays = dict(records.array_records["arrays"].items())
    name = sorted(arrays)[rng.integers(len(arrays))]
    data = bytearray(arrays[name].data)
    match rng.integers(6):
        case 0:
            data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        case 1:
            data[rng.integers(min(len(data), 80))] ^= int(rng.integers(1, 256))  # of its header
        case 2:
            del data[rng.integers(len(data)) :]
        case 3:
            data += rng.bytes(int(rng.integers(1, 300)))
        case 4:
            data = bytearray(rng.bytes(int(rng.integers(0, 300))))
        case _:
            odd = (b"'<f8'", b"'|O'", b"'<U9'", b"'>f4'", b"'|V4'", b"'<c8'", b"__import__('os')")
            data = data.replace(b"'<f4'", odd[rng.integers(len(odd))])
    arrays[name] = Array("float32", (1,), "numpy.ndarray", bytes(data))
    numbers: Any = dict(packet.numbers)
    if rng.integers(4) == 0:
        odd_values: Any = ([1, 2], b"\0\xff", [], ["x" * 9], [float("nan")], True, -(2**62))
        numbers[sorted(numbers)[rng.integers(len(numbers))]] = odd_values[rng.integers(7)]
    return RecordDict({"arrays": ArrayRecord(arrays), "numbers": ConfigRecord(numbers)})


def assert_refused_or_read(reader: ReplyReader, made: Callable[[], Packet]) -> bool:
    """Put a reply to a reader; return whether it got in."""
    try:
        reader.read(made())
    except WireError as error:
        text = str(error)
        assert text.isprintable() and 15 < len(text) < 500, text
        return False
    return True


def attack(method: str, variant: str, count: int, seed: int) -> int:
    """Return how many replies of so many got in."""
    config, found = readers(method, variant)
    rng, entered = np.random.default_rng([seed, count]), 0
    for number in range(count):
        reader = found[number % len(found)]
        if rng.integers(3):
            packet = reader.honest
            for _ in range(int(rng.integers(1, 4))):
                packet = a_lie(rng)(packet, config)
            entered += assert_refused_or_read(reader, lambda p=packet: p)  # type: ignore[misc]
        else:
            records = damaged(reader.honest, rng)
            entered += assert_refused_or_read(reader, lambda r=records: from_records(r))  # type: ignore[misc]
    for reader in found:  # reading lies has changed nothing that is read by
        reader.read(reader.honest)
    return entered


@pytest.mark.parametrize(("method", "variant"), slow_but(representative(), cases()))
def test_a_wrong_reply_is_refused_in_one_line_or_reads_as_it_says(
    method: str, variant: str
) -> None:
    assert attack(method, variant, 60, 0) < 60


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize(("method", "variant"), [*cases()])
def test_many_wrong_replies(method: str, variant: str, seed: int) -> None:
    """40,000 in all."""
    assert attack(method, variant, 350, seed) < 350
