"""What the FPGA engine does, step by step, and how activations lie in its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edge.targets.fpga.lanes import Filter, Slot

Run = Literal["fill", "take", "filters", "maxima", "single", "give"]
Triple = tuple[int, int, int]

SAME = (2, 1)
"""Multiplier and shift that change nothing."""


@dataclass(frozen=True)
class MapLayout:
    """How an activation lies in memory; a vector is one pixel.

    Attributes:
        halo: Pixels at (top, bottom, left, right), which hold the zero point.
    """

    height: int
    width: int
    channels: int
    zero: int
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def row(self) -> int:
        """Bytes from a row to the next."""
        return (self.width + self.halo[2] + self.halo[3]) * self.channels

    @property
    def size(self) -> int:
        """Bytes of all."""
        return (self.height + self.halo[0] + self.halo[1]) * self.row

    @property
    def strides(self) -> Triple:
        """Bytes to the next row, column, channel."""
        return self.row, self.channels, 1

    @property
    def shape(self) -> Triple:
        """Rows, columns, channels."""
        return self.height, self.width, self.channels

    def at(self, row: int, column: int) -> int:
        """Return the bytes before a pixel, counted without the halo."""
        return (row + self.halo[0]) * self.row + (column + self.halo[2]) * self.channels


@dataclass(frozen=True)
class LoopAddress:
    """Where three nested loops read or write.

    Attributes:
        name: The activation.
        lead: Bytes of it before the first place.
        strides: Bytes to the next place of each loop, the outermost first.
    """

    name: str
    lead: int
    strides: Triple


@dataclass(frozen=True)
class EngineStep:
    """What the engine does at once.

    Attributes:
        counts: Turns of the three loops; of filters the outermost runs over slots, later.
        write: None for "give".
        read: One pointer, two for sums, none for "fill" and "take".
        factors: What single activations are multiplied by.
        scale: Multiplier and shift of single activations.
        offset: Added to what is rounded, before it is clipped to `limits`.
        filters: Of "filters" and "maxima".
        source: The op and torch module, for comments.
    """

    run: Run
    counts: Triple
    write: LoopAddress | None = None
    read: tuple[LoopAddress, ...] = ()
    factors: tuple[int, ...] = ()
    bias: int = 0
    scale: tuple[int, int] = SAME
    offset: int = 0
    limits: tuple[int, int] = (-128, 127)
    filters: tuple[Filter, ...] = ()
    source: str = ""


@dataclass(frozen=True)
class Microcode:
    """A model as the engine runs it.

    Attributes:
        steps: In order.
        slots: Per step, the filters dealt to lanes.
        offsets: Activation -> its first byte in memory.
        ram_bytes: Of the memory.
        gap_bits: Of a gap in the lists of filters.
    """

    steps: tuple[EngineStep, ...]
    slots: tuple[tuple[Slot, ...], ...]
    offsets: Mapping[str, int]
    ram_bytes: int
    gap_bits: int

    @property
    def address_bits(self) -> int:
        """Of an address in the memory."""
        return max(1, (self.ram_bytes - 1).bit_length())
