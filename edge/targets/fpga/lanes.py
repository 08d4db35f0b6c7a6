"""Filters for the lanes of the FPGA engine: sparse lists, dealt out and packed into memory words.

A list holds what is not zero of a filter as {gap, value}: where its activation lies behind that of
the entry before. A gap that is too wide for its bits is bridged by entries of value 0, which lanes
leave out of sums and maxima. Equal lists of one lane are stored once: all channels of a pooling
share theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedkit.core.numerics import Int64s

TABLE_WORDS = 6
"""Words of 32 bits per filter in a lane's table."""

MOST_ENTRIES = 2**13 - 1
"""Of one filter."""

_BRIDGES = 0.01  # of all entries: then gaps of fewer bits are not worth it


@dataclass(frozen=True, eq=False)
class Filter:
    """What makes one output channel of every window.

    Attributes:
        offsets: int64 [taps], ascending: bytes from the window's first activation to each one.
        values: int64 [taps], never 0: the weights.
        bias: int32, what a sum starts from.
        multiplier: Below 2^31; with `shift` what the sum is multiplied by.
        shift: 1 .. 62.
        out_offset: Bytes from the window's first result to this one's.
    """

    offsets: Int64s
    values: Int64s
    bias: int
    multiplier: int
    shift: int
    out_offset: int

    def gaps(self) -> Int64s:
        """Return the distance of each tap from the one before; of the first it is 0."""
        return np.diff(self.offsets, prepend=self.offsets[:1])


@dataclass(frozen=True)
class Slot:
    """One filter of each lane, and the cycles that each of their windows takes."""

    filters: tuple[Filter | None, ...]
    interval: int


def deal(filters: Sequence[Filter], lanes: int, gap_bits: int) -> list[Slot]:
    """Deal filters of one op to lanes, those of equal length together.

    A lane gets the longest filter of every `lanes`-th slot only, so that its memory is as full as
    that of the others.
    """
    entries = [entry_count(each, gap_bits) for each in filters]
    order = sorted(range(len(filters)), key=lambda number: -entries[number])
    slots = []
    for turn, start in enumerate(range(0, len(order), lanes)):
        members: list[Filter | None] = [None] * lanes
        for place, number in enumerate(order[start : start + lanes]):
            members[(place + turn) % lanes] = filters[number]
        # Results of a window leave one by one while the next window is summed.
        slots.append(Slot(tuple(members), max(entries[order[start]], lanes)))
    return slots


def entry_count(each: Filter, gap_bits: int) -> int:
    """Return how many entries a filter takes, bridges included."""
    return int(_bridged(each.gaps(), gap_bits)[1].sum())


def _bridged(gaps: Int64s, gap_bits: int) -> tuple[int, Int64s]:
    """Return the widest gap, and the entries that each gap takes."""
    most = 2**gap_bits - 1
    return most, np.maximum(1, -(-gaps // most))


def narrowest_gap(filters: Sequence[Filter], address_bits: int) -> int:
    """Return the fewest bits of a gap with which next to no entries are bridges."""
    if not filters:
        return 1
    gaps = np.concatenate([each.gaps() for each in filters])
    for bits in range(1, address_bits):
        if _bridged(gaps, bits)[1].sum() <= (1 + _BRIDGES) * len(gaps):
            return bits
    return address_bits


def value_bits(filters: Sequence[Filter]) -> int:
    """Return the bits of the widest weight, 2 to 8."""
    values = np.concatenate([np.zeros(1, np.int64), *(each.values for each in filters)])
    low, high = int(values.min()), int(values.max())
    return next(
        bits for bits in range(2, 9) if -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1)
    )


@dataclass
class LaneMemory:
    """Words of one lane, as they are filled.

    Attributes:
        entries: {gap, value} each.
        table: `TABLE_WORDS` per slot.
    """

    gap_bits: int
    value_bits: int
    entries: list[int] = field(default_factory=list)
    table: list[int] = field(default_factory=list)
    starts: dict[bytes, int] = field(default_factory=dict)

    def add(self, each: Filter | None, interval: int) -> None:
        """Append a filter, or what stands for none."""
        if each is None:
            self.table += [0, 0, 0, 0, 0, interval << 13]
            return
        words = self._words(each)
        first = int(each.offsets[0]) if len(each.offsets) else 0
        self.table += [
            each.bias & 0xFFFFFFFF,
            each.multiplier,
            self._start(words),
            first,
            1 << 31 | each.out_offset,
            each.shift << 26 | interval << 13 | len(words),
        ]

    def _start(self, words: NDArray[np.int64]) -> int:
        start = self.starts.setdefault(words.tobytes(), len(self.entries))
        if start == len(self.entries):
            self.entries += words.tolist()
        return start

    def _words(self, each: Filter) -> Int64s:
        gaps = each.gaps()
        most, counts = _bridged(gaps, self.gap_bits)
        places = np.cumsum(counts) - 1
        found = np.zeros((int(counts.sum()), 2), np.int64)
        found[:, 0] = most
        found[places, 0] = gaps - (counts - 1) * most
        found[places, 1] = each.values
        mask = 2**self.value_bits - 1
        return np.asarray(found[:, 0] << self.value_bits | found[:, 1] & mask)
