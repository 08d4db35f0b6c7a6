"""A reference for the FPGA engine without a clock: what each word of a folder's files says is done.

It is written from the headers of the files in edge/targets/fpga/hdl, and shares no code with what
writes the words. Every number is cut to the bits that the hardware has for it. Bytes of the memory
are random before the first example, and reading one that no example has written is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]

_FILL, _TAKE, _FILTERS, _MAXIMA, _SINGLE, _GIVE = range(1, 7)
_WORDS = 6  # of a filter in a lane's table


class FpgaEngine:
    """A model as its files say.

    Attributes:
        ram: int64 [bytes], signed.
        written: Which of them an example has written.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        text = files["model.v"].decode()
        self.widths = {n: int(v) for n, v in re.findall(r"\.([A-Z_]+)\((\d+)\)", text)}
        lanes = range(self.widths["LANES"])
        self.program = words_of(files["program.hex"])
        self.weights = [words_of(files[f"weights_{n}.hex"]) for n in lanes]
        self.tables = [words_of(files[f"filters_{n}.hex"]) for n in lanes]
        assert len(self.program) == self.widths["PROGRAM_DEPTH"]
        assert all(len(each) == self.widths["WEIGHT_DEPTH"] for each in self.weights)
        assert all(len(each) == self.widths["TABLE_DEPTH"] for each in self.tables)
        depth = self.widths["RAM_DEPTH"]
        self.ram = np.random.default_rng(0).integers(-128, 128, depth)
        self.written = np.zeros(depth, np.bool_)
        self.registers = [0] * 26

    def run(self, example: NDArray[np.int8]) -> NDArray[np.int8]:
        """Return all bytes that one example makes the engine give."""
        left, given = example.ravel().tolist(), []
        for word in self.program:
            register, value = word >> 31, word & (2**31 - 1)
            if register:
                self.registers[register] = value
            elif value == _TAKE:
                places = self._walk(12, 13).ravel()
                self._write(places, np.array([left.pop(0) for _ in places]))
            elif value == _GIVE:
                given += self._read(self._walk(4, 5).ravel()).tolist()
            elif value == _FILL:
                places = self._walk(12, 13).ravel()
                self._write(places, np.full(len(places), _signed(self.registers[20], 8)))
            elif value == _SINGLE:
                self._single()
            elif value in (_FILTERS, _MAXIMA):
                self._filters(value == _MAXIMA)
        assert not left
        return np.array(given, np.int8)

    # Memory

    def _walk(self, pointer: int, moves: int) -> Array:
        """Return the addresses of a pointer in three nested loops, and leave it behind them."""
        most = [each % 2 ** self.widths["ADDRESS"] for each in self.registers[1:4]]
        d0, d1, d2 = self.registers[moves : moves + 3]
        row = most[2] * d2 + d1
        plane = most[1] * row + most[2] * d2 + d0
        i, j, k = np.ogrid[: most[0] + 1, : most[1] + 1, : most[2] + 1]
        found = np.asarray(self.registers[pointer] + i * plane + j * row + k * d2)
        self.registers[pointer] = int(found[-1, -1, -1]) + d0
        return self._address(found)

    def _address(self, value: Any) -> Any:
        return value % 2 ** self.widths["ADDRESS"]

    def _read(self, places: Array) -> Array:
        assert self.written[places].all(), "a byte is read that nothing has written"
        return self.ram[places]

    def _write(self, places: Array, values: Array) -> None:
        self.ram[places] = values
        self.written[places] = True

    # Steps

    def _single(self) -> None:
        count = self.registers[17] % 2**13
        factors = [_signed(each, 16) for each in self.registers[18 : 18 + count]]
        reads = [self._walk(4 + 4 * number, 5 + 4 * number).ravel() for number in range(count)]
        terms = [f * self._read(places) for f, places in zip(factors, reads, strict=True)]
        sums = _signed(sum(terms) + _signed(self.registers[20], 31), 32)
        values = self._rounded(sums, self.registers[21], self.registers[22] % 64)
        self._write(self._walk(12, 13).ravel(), values)

    def _filters(self, maximum: bool) -> None:
        # The outermost loop runs over slots of one filter per lane.
        slots = self.registers[1] % 2 ** self.widths["ADDRESS"] + 1
        reads, writes = self._walk(4, 5), self._walk(12, 13)
        for slot in range(slots):
            start = (self.registers[16] + slot * _WORDS) % 2 ** self.widths["TABLE_ADDRESS"]
            rows = [table[start : start + _WORDS] for table in self.tables]
            interval = rows[0][5] >> 13 & 2**13 - 1
            found = []
            for lane, row in enumerate(rows):
                assert row[5] & 2**13 - 1 <= interval, "a lane's window does not end in time"
                if row[4] >> 31:
                    places = self._address(writes[slot].ravel() + row[4])
                    found.append((places, self._sums(lane, row, reads[slot].ravel(), maximum)))
            for places, values in found:
                self._write(places, values)
        self.registers[16] += slots * _WORDS

    def _sums(self, lane: int, row: list[int], reads: Array, maximum: bool) -> Array:
        bits, count = self.widths["WEIGHT"], row[5] & 2**13 - 1
        begin = row[2] % 2 ** self.widths["WEIGHT_ADDRESS"]
        entries = np.array(self.weights[lane][begin : begin + count], np.int64)
        assert len(entries) == count
        gaps, values = entries >> bits, _signed(entries, bits)
        assert (gaps < 2 ** self.widths["GAP"]).all()
        offsets = self._address(row[3]) + np.cumsum(gaps)
        kept = values != 0  # a value of 0 only moves the address
        x = self._read(self._address(reads[:, None] + offsets[kept]))
        bias = _signed(row[0], 32)
        if maximum:
            assert self.widths["MAXIMUM"] and count
            sums = (x * values[kept]).max(axis=1)
        else:
            sums = _signed(x @ values[kept] + bias, 32)
        return self._rounded(sums, row[1] % 2**31, row[5] >> 26)

    def _rounded(self, sums: Array, multiplier: int, shift: int) -> Array:
        assert 1 <= shift <= 62
        steps = [(int(s) * multiplier + (1 << (shift - 1))) >> shift for s in sums]
        moved = np.array([step + _signed(self.registers[23], 11) for step in steps], object)
        low, high = (_signed(self.registers[n], 8) for n in (24, 25))
        return np.clip(moved, low, high).astype(np.int64)


def words_of(text: bytes) -> list[int]:
    """Return the words of a file for $readmemh."""
    plain = re.sub(r"//[^\n]*", "", text.decode())
    return [int(word, 16) for word in plain.split()]


def _signed(value: Any, bits: int) -> Any:
    """Return the lowest bits of a number as two's complement."""
    return (value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
