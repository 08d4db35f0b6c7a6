"""When the FPGA engine does what: the cycles of each step of a program, one after the other.

The engine's sequencer (`hdl/sequencer.v`) is in one state at a time, so nothing overlaps but what
drains: results of a window are rounded and written while the next window is summed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edge.targets.fpga.assembler import Program, assemble
from edge.targets.fpga.lanes import Slot, entry_count
from edge.targets.fpga.steps import EngineStep, Microcode, Run

# Cycles of a word of the program, of loading filters, of a byte that is given.
_WORD, _LOAD, _GIVE = 3, 12, 9


def _drain(lanes: int) -> int:
    return 25 + lanes


@dataclass(frozen=True)
class StepTime:
    """The cycles of one step.

    Attributes:
        run: What the engine does.
        source: The op and torch module.
        start: Cycle at which it begins, counted from the inference's first.
        setting: Cycles that set registers.
        loading: That load filters, or what single activations are multiplied by.
        working: That move, sum or compare.
        draining: That wait for the last results.
        turns: How often filters are loaded; 0 without filters.
        used: Entries of filters that lanes take in per cycle of work and lane; bridges count.
            None without filters.
    """

    run: Run
    source: str
    start: int
    setting: int
    loading: int
    working: int
    draining: int
    turns: int = 0
    used: float | None = None

    @property
    def cycles(self) -> int:
        """All of them."""
        return self.setting + self.loading + self.working + self.draining


def step_times(code: Microcode, lanes: int) -> list[StepTime]:
    """Return the steps of one inference in order.

    Args:
        code: The model.
        lanes: Filters at a time.
    """
    times: list[StepTime] = []
    start = 0
    words_of_steps = _words(assemble(code))
    for step, slots, words in zip(code.steps, code.slots, words_of_steps, strict=True):
        loading, working, draining = _parts(step, slots, lanes)
        used = _used(slots, code.gap_bits) if step.filters else None
        setting = _WORD * words
        parts = setting, loading, working, draining
        times.append(StepTime(step.run, step.source, start, *parts, len(slots), used))
        start += times[-1].cycles
    return times


def cycles(code: Microcode, lanes: int) -> int:
    """Return the cycles of one inference, from its first byte to the next one's."""
    return sum(step.cycles for step in step_times(code, lanes))


def _words(program: Program) -> list[int]:
    """Return the words of each step; the word that starts the program again is the last one's."""
    runs = [number for number, (register, _, _) in enumerate(program) if register == "run"]
    ends = [*(number + 1 for number in runs[:-2]), len(program)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _parts(step: EngineStep, slots: Sequence[Slot], lanes: int) -> tuple[int, int, int]:
    """Return the cycles of loading, of work and of draining."""
    places = math.prod(step.counts)
    if step.run == "single":
        return _LOAD, places * len(step.factors), _drain(lanes)
    if step.run == "give":
        return 0, places * _GIVE, 0
    if step.filters:
        work = sum(places * slot.interval for slot in slots)
        return len(slots) * _LOAD, work, len(slots) * _drain(lanes)
    return 0, places, 0


def _used(slots: Sequence[Slot], gap_bits: int) -> float:
    filters = [each for slot in slots for each in slot.filters if each is not None]
    entries = sum(entry_count(each, gap_bits) for each in filters)
    return entries / sum(slot.interval * len(slot.filters) for slot in slots)
