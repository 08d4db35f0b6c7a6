"""The words of the FPGA engine's program: registers are set, then a step runs.

A word is {register of 5 bits, value of 31 bits}; see `hdl/sequencer.v`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edge.targets.fpga.lanes import TABLE_WORDS
from edge.targets.fpga.steps import EngineStep, LoopAddress, Microcode, Run
from fedkit.core.text import source_text

WORD_BITS = 36

_REGISTERS = {
    name: number
    for number, name in enumerate(
        (
            *("run", "most_0", "most_1", "most_2"),
            *("in_0", "in_0_d0", "in_0_d1", "in_0_d2", "in_1", "in_1_d0", "in_1_d1", "in_1_d2"),
            *("out", "out_d0", "out_d1", "out_d2", "filters", "length", "factor_0", "factor_1"),
            *("bias", "multiplier", "shift", "offset", "low", "high"),
        )
    )
}
_RUNS: Mapping[Run, int] = {
    "fill": 1,
    "take": 2,
    "filters": 3,
    "maxima": 4,
    "single": 5,
    "give": 6,
}
_VALUE_BITS = 31


@dataclass
class _Writer:
    """Words of a program: registers are set where they must change."""

    known: dict[str, int] = field(default_factory=dict)
    words: list[tuple[str, int, str]] = field(default_factory=list)

    def set(self, register: str, value: int, comment: str = "") -> None:
        if self.known.get(register) != value:
            self.known[register] = value
            self.words.append((register, value, comment))

    def pointer(
        self, register: str, to: LoopAddress, code: Microcode, counts: Sequence[int]
    ) -> None:
        wrap = 2**code.address_bits
        outer, middle, inner = to.strides
        back = (counts[2] - 1) * inner
        moves = outer - (counts[1] - 1) * middle - back, middle - back, inner
        self.known.pop(register, None)  # it has moved since
        self.set(register, code.offsets[to.name] + to.lead, to.name)
        for number, move in enumerate(moves):
            self.set(f"{register}_d{number}", move % wrap)

    def run(self, value: int, comment: str) -> None:
        self.words.append(("run", value, comment))


Program = Sequence[tuple[str, int, str]]
"""Register, value and comment of each word."""


def assemble(code: Microcode) -> Program:
    """Return the program of a model."""
    writer, rows = _Writer(), 0
    for step, slots in zip(code.steps, code.slots, strict=True):
        counts = (len(slots) if step.filters else step.counts[0], *step.counts[1:])
        _set_loops(writer, step, code, counts)
        if step.filters:
            writer.set("filters", rows)
            rows += TABLE_WORDS * len(slots)
            writer.known["filters"] = rows
        elif step.run == "single":
            _set_single(writer, step)
        elif step.run == "fill":
            writer.set("bias", step.bias)
        if step.run in ("filters", "maxima", "single"):
            _set_rounding(writer, step)
        writer.run(_RUNS[step.run], f"{step.run}: {step.source}")
    writer.run(0, "again")
    return writer.words


def _set_loops(writer: _Writer, step: EngineStep, code: Microcode, counts: Sequence[int]) -> None:
    for number, count in enumerate(counts):
        writer.set(f"most_{number}", count - 1)
    for number, read in enumerate(step.read):
        writer.pointer(f"in_{number}", read, code, counts)
    if step.write is not None:
        writer.pointer("out", step.write, code, counts)


def _set_single(writer: _Writer, step: EngineStep) -> None:
    writer.set("length", len(step.factors))
    for number, factor in enumerate(step.factors):
        writer.set(f"factor_{number}", factor)
    writer.set("bias", step.bias)
    writer.set("multiplier", step.scale[0])
    writer.set("shift", step.scale[1])


def _set_rounding(writer: _Writer, step: EngineStep) -> None:
    writer.set("offset", step.offset)
    writer.set("low", step.limits[0])
    writer.set("high", step.limits[1])


def listing(program: Program) -> str:
    """Return a program as a file for $readmemh, with what each word means beside it."""
    lines = []
    for register, value, comment in program:
        word = _REGISTERS[register] << _VALUE_BITS | value % 2**_VALUE_BITS
        note = f"  // {register} = {value}" + (f"  ({source_text(comment)})" if comment else "")
        lines.append(f"{word:09x}{note}\n")
    return "".join(lines)
