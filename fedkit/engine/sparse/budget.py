"""What training within a given memory comes to: told before it starts.

Bytes are planned, seconds measured: a step is taken, and none of its results is kept. How the
weights that are kept lie makes little difference, so any masks of as many weights will do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse.engine import EVALUATION_BATCH, SparseEngine
from fedkit.engine.sparse.program import SparseProgram
from fedkit.sparse.bits import from_positions
from fedkit.sparse.kept import KeptWeights
from fedkit.sparse.packed import PackedMasks
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples

_REPEATS = 3


@dataclass(frozen=True)
class Budget:
    """What a step within a memory does and takes.

    Attributes:
        batch: Examples of a step.
        stored_bits: In which it stores what its backward pass reads again.
        step_bytes: What it plans.
        wide_bytes: What it would plan with as many stored bits as were allowed.
        seconds: Of a step.
        slower: How many times as long a step takes as with those bits, measured over as many
            examples as fit so; 1 where they fit, None where not even one example does.
        evaluated: Examples of an evaluation that are computed together.
        evaluation_bytes: What that plans.
    """

    batch: int
    stored_bits: int
    step_bytes: int
    wide_bytes: int
    seconds: float
    slower: float | None
    evaluated: int
    evaluation_bytes: int

    def line(self) -> str:
        """Return all of it in a line."""
        wide = f" ({_mb(self.wide_bytes)} unbounded)" if self.wide_bytes > self.step_bytes else ""
        slower = f", {self.slower:.2f} times as long as unbounded" if wide and self.slower else ""
        return (
            f"a step of {self.batch} stores {self.stored_bits} bits and plans "
            f"{_mb(self.step_bytes)}{wide}; it takes {1e3 * self.seconds:.3g} ms{slower}; "
            f"evaluation takes {self.evaluated} at a time in {_mb(self.evaluation_bytes)}"
        )


def budget(engine: SparseEngine, kept: Mapping[str, int], examples: Examples, batch: int) -> Budget:
    """Plan and time training within the engine's memory.

    Args:
        engine: As it will train; nothing of it changes.
        kept: Kept weights per prunable layer.
        examples: Some to train on, at least one.
        batch: Examples of a step, if there are as many.

    Raises:
        EngineError: Training does not fit.
    """
    state, count = any_state(engine.plan, kept), min(batch, len(examples))
    evaluation = engine.replica().program(state, "evaluate", EVALUATION_BATCH)
    evaluated, evaluation_bytes = evaluation.batch, evaluation.memory.peak
    del evaluation  # two programs would be more than may be
    step = engine.replica().program(state, "train", count)
    bits, step_bytes, seconds = step.stored_bits, step.memory.peak, _seconds(step, examples)
    del step
    return Budget(
        batch=count,
        stored_bits=bits,
        step_bytes=step_bytes,
        wide_bytes=engine.within(None).program(state, "train", count).memory.peak,
        seconds=seconds,
        slower=1.0 if bits == engine.stored_bits else _slower(engine, state, examples, count, bits),
        evaluated=evaluated,
        evaluation_bytes=evaluation_bytes,
    )


def _slower(
    engine: SparseEngine, state: ModelState, examples: Examples, batch: int, bits: int
) -> float | None:
    """Return how many times as long a step takes as one of as many stored bits as are allowed."""
    count = batch // 2
    while count:
        wide = engine.replica().program(state, "train", count)
        if wide.stored_bits == engine.stored_bits:
            took = _seconds(wide, examples)
            del wide
            narrow = engine.replica()
            narrow.stored_bits = bits
            return _seconds(narrow.program(state, "train", count), examples) / took
        count //= 2
    return None


def _seconds(program: SparseProgram, examples: Examples) -> float:
    """Return the time of a step without its last part, which moves the weights."""
    took, order = [], np.arange(program.batch)
    for _ in range(_REPEATS):
        start = time.perf_counter()
        program.forward(examples.inputs, order)
        program.loss(examples.targets[order])
        program.backward()
        took.append(time.perf_counter() - start)
    return min(took)


def any_state(plan: Plan, kept: Mapping[str, int]) -> ModelState:
    """Return a model with so many kept weights in each prunable layer, drawn at random."""
    rng = np.random.default_rng(0)
    bits, values = {}, {}
    for name, shape in plan.weights.items():
        size = math.prod(shape)
        if name in plan.prunable:
            near = np.arange(kept[name]) + rng.random(kept[name])
            places = np.unique(near * size // kept[name]).astype(np.int64)
            bits[name] = from_positions(places, size)
            size = len(places)
        values[name] = rng.standard_normal(size, np.float32) / np.float32(math.sqrt(size))
    masks = PackedMasks({name: plan.weights[name] for name in bits}, bits)
    stats = {name: np.ones(shape, np.float32) for name, shape in plan.stats.items()}
    return ModelState(KeptWeights(plan.weights, masks, values), stats, masks)


def _mb(size: int) -> str:
    return f"{size / 1e6:.3g} MB"
