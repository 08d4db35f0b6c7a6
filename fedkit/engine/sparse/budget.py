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
        repeated: How many of the model's first ops run again for each norm, a tile at a time.
        tile: Examples of a tile.
        step_bytes: What it plans.
        wide_bytes: What it would plan without a bound.
        seconds: Of a step.
        slower: How many times as long a step takes as without a bound, measured over as many
            examples as fit so; 1 where they fit, None where not even one example does.
        evaluated: Examples of an evaluation that are computed together.
        evaluation_bytes: What that plans.
    """

    batch: int
    stored_bits: int
    repeated: int
    tile: int
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
        again = f", computes its first {self.repeated} ops again {self.tile} examples at a time"
        return (
            f"a step of {self.batch} stores {self.stored_bits} bits{again * bool(self.repeated)} "
            "and plans "
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
    unbounded = engine.within(None)
    bound = engine.replica().program(state, "train", count)
    bits, repeated, tile = bound.stored_bits, bound.repeated, bound.kernels.lanes
    changed = repeated or (bits, tile) != (engine.stored_bits, engine.kernels.lanes)
    few = _most_unchanged(engine, state, count) if changed else 0
    seconds, bound_seconds = _seconds(bound, examples, count), _seconds(bound, examples, few)
    step_bytes = bound.memory.peak
    del bound
    slower = 1.0 if not changed else None
    if few:
        slower = bound_seconds / _seconds(unbounded.program(state, "train", few), examples, few)
        unbounded.rest()
    return Budget(
        batch=count,
        stored_bits=bits,
        repeated=repeated,
        tile=tile,
        step_bytes=step_bytes,
        wide_bytes=unbounded.program(state, "train", count).memory.peak,
        seconds=seconds,
        slower=slower,
        evaluated=evaluated,
        evaluation_bytes=evaluation_bytes,
    )


def _most_unchanged(engine: SparseEngine, state: ModelState, batch: int) -> int:
    """Return of how many examples a step fits as it would be without a bound; 0: of none.

    They are halved until it does.
    """
    assert engine.memory is not None
    few = batch // 2
    while few and engine.within(None).program(state, "train", few).memory.peak > engine.memory:
        few //= 2
    return few


def _seconds(program: SparseProgram, examples: Examples, count: int) -> float:
    """Return the time of a step of so many examples, but for moving the weights; 0 of none."""
    took, order = [0.0] if not count else [], np.arange(count)
    for _ in range(_REPEATS if count else 0):
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
