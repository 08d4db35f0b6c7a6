"""Training steps of a trainer in C on an emulated Cortex-M."""

from __future__ import annotations

import ctypes
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.bench.build import Image, build_sources
from edge.bench.emulate import Machine
from edge.bench.targets import find_target
from fedkit.engine.base import LocalTraining, TrainingBatches
from fedkit.engine.kernels.network import layers_of
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples
from fedkit.trainer.emit import Trainer, emit

_HERE = Path(__file__).parent
_FLOAT_UNITS = {"cortex-m4": "+vfp4d16sp", "cortex-m7": "+fp_armv8d16sp"}
"""Target -> what zig calls its unit of floats. Those of M7s with doubles, unicorn does not know."""

_FLAGS = ("-ffp-contract=off", "-fno-math-errno")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class EmulatedStep:
    """What one step gave, and took.

    Attributes:
        loss: Of the batch.
        values: Weights after it, float32 [values].
        statistics: Running statistics so far, float32 [statistics].
        instructions: Executed.
        stack_bytes: The most that was in use.
    """

    loss: float
    values: Floats
    statistics: Floats
    instructions: int
    stack_bytes: int


@dataclass(frozen=True)
class Compared:
    """What a trainer takes, and how many numbers differ from the engine's after two steps."""

    instructions: int
    ram_bytes: int
    stack_bytes: int
    flash_bytes: int
    compared: int
    differing: int


def compare(
    plan: Plan,
    state: ModelState,
    examples: Examples,
    how: LocalTraining,
    stored_bits: int,
    target: str,
) -> Compared:
    """Train an epoch by the engine and by an emulated trainer.

    Args:
        plan: The model.
        state: What it begins with.
        examples: Each is a batch.
        how: One epoch with batches of one.
        stored_bits: Of what the backward pass reads again.
        target: Name of a Cortex-M.

    Raises:
        BenchError: See `EmulatedTrainer`.
    """
    seed = 0  # as firmware_train.c has it
    engine = SparseEngine(plan, simd="plain", stored_bits=stored_bits)
    trained, loss = engine.train(state, examples, how, seed)
    trainer = emit(plan, state.masks, 1, stored_bits)
    emulated = EmulatedTrainer(trainer, target)
    parameters = layers_of(plan, state.masks, 1)[1]
    parameters.load(state.weights)
    steps = list[EmulatedStep]()
    for batch in TrainingBatches(examples, how, seed).epoch():
        begin = None if steps else parameters.values.copy()
        image, label = batch.inputs[batch.order[0]], int(batch.targets[0])
        steps.append(emulated.step(image, label, how, begin))
    parameters.load(trained.weights)
    statistics = [trained.stats[name] for name in trainer.statistics]
    expected = np.concatenate([parameters.values, *statistics]).view(np.uint32)
    found = np.concatenate([steps[-1].values, steps[-1].statistics]).view(np.uint32)
    differing = int((found != expected).sum())
    differing += sum(step.loss for step in steps) / len(steps) != loss
    return Compared(
        steps[0].instructions,
        emulated.ram_bytes,
        max(step.stack_bytes for step in steps),
        emulated.image.flash_bytes,
        len(expected) + 1,
        differing,
    )


class EmulatedTrainer:
    """A trainer of batches of one, compiled for a processor and executed by an emulator.

    Attributes:
        image: What was linked.
    """

    def __init__(self, trainer: Trainer, target: str) -> None:
        """Compile.

        Args:
            trainer: What to run.
            target: Name of a Cortex-M, such as "cortex-m4".

        Raises:
            BenchError: zig or unicorn is not installed, or the compiler fails.
        """
        known = find_target(target)
        self._target = replace(known, compiler=known.compiler + _FLOAT_UNITS[target])
        with tempfile.TemporaryDirectory(prefix="fedkit-bench-") as name:
            folder = Path(name)
            for file, content in trainer.files.items():
                (folder / file).parent.mkdir(exist_ok=True)
                (folder / file).write_bytes(content)
            sources = [folder / "trainer.c", _HERE / "firmware_train.c"]
            finding = (f"-I{folder}", f"-I{_HERE / 'bare'}")
            self.image: Image = build_sources(
                sources, self._target, folder, finding, _FLAGS, hard_float=True
            )
        self._machine = Machine(self.image, self._target, "bench_step")
        self._values, self._statistics = trainer.values, trainer.statistics_count

    @property
    def ram_bytes(self) -> int:
        """All memory but the stack and what is there to compare."""
        own = sum(
            size
            for name, (_, size) in self.image.symbols.items()
            if name in ("bench_in", "bench_out")
        )
        return self.image.ram_bytes - own

    def step(
        self, image: Floats, label: int, how: LocalTraining, values: Floats | None = None
    ) -> EmulatedStep:
        """Train on one example.

        Args:
            image: The example.
            label: Its class.
            how: The rates.
            values: Weights that a round begins with; None: it goes on.

        Raises:
            BenchError: The program crashes, or refuses the example.
        """
        start = np.zeros(self._values, np.float32) if values is None else values
        rates = np.array([how.lr, how.momentum, how.weight_decay], np.float32)
        words = np.array([values is not None, label], np.int32)
        given = b"".join(part.tobytes() for part in (rates, words, start, image))
        run = self._machine.infer(np.frombuffer(given, np.int8))
        found = run.output.tobytes()
        loss, rest = (
            ctypes.c_double.from_buffer_copy(found).value,
            np.frombuffer(found[8:], np.float32),
        )
        counted = sum(run.calls) + run.own
        end = self._values
        return EmulatedStep(
            loss, rest[:end], rest[end : end + self._statistics], counted, run.stack_bytes
        )
