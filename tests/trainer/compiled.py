"""A trainer in C, compiled here and driven as a microcontroller drives it."""

from __future__ import annotations

import ctypes
import math
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedkit.bench.sparsetrain import randomly_pruned
from fedkit.engine.base import LocalTraining, TrainingBatches
from fedkit.engine.kernels.network import layers_of
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.nn.zoo import build_model, seeded
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples, cross_entropy
from fedkit.trainer.emit import Trainer, emit

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-ffp-contract=off")


@cache
def model(name: str, shape: tuple[int, ...], density: float) -> tuple[Plan, ModelState]:
    """Return a zoo model's plan and a randomly pruned state."""
    engine = TorchEngine(seeded(lambda: build_model(name, shape, 10), 0), cross_entropy)
    plan = capture(engine.module(engine.initial_state()), shape)
    return plan, randomly_pruned(engine.initial_state(), density)


def write(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def compile_shared(trainer: Trainer, folder: Path, *flags: str) -> Path:
    """Compile strictly; return the library."""
    write(trainer.files, folder)
    library = folder / "trainer.so"
    command = ["gcc", *STRICT, "-O1", *flags, "-fPIC", "-shared", str(folder / "trainer.c")]
    done = subprocess.run([*command, "-lm", "-o", str(library)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return library


class Compiled:
    """The functions of trainer.h."""

    def __init__(self, library: Path, trainer: Trainer, statistics: int) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.trainer_values.restype = ctypes.POINTER(ctypes.c_float)
        found = self._library.trainer_values()
        self.values: NDArray[np.float32] = np.ctypeslib.as_array(found, (trainer.values,))
        self._statistics = statistics

    def begin(self, seed: int) -> None:
        self._library.trainer_begin(ctypes.c_uint64(seed))

    def epoch(self) -> None:
        self._library.trainer_epoch()

    def put(self, place: int, image: NDArray[np.float32], label: int) -> int:
        pointer = ctypes.c_void_p(np.ascontiguousarray(image).ctypes.data)
        return int(self._library.trainer_put(place, pointer, label))

    def step(self, rate: float, momentum: float, decay: float) -> tuple[int, float]:
        loss, rates = ctypes.c_double(), map(ctypes.c_float, (rate, momentum, decay))
        return self._library.trainer_step(*rates, ctypes.byref(loss)), loss.value

    def statistics(self) -> NDArray[np.float32]:
        one = self._library.trainer_statistic
        one.restype = ctypes.c_float
        return np.array([one(i) for i in range(self._statistics)], np.float32)


def check_equal(
    folder: Path,
    plan: Plan,
    state: ModelState,
    examples: Examples,
    batch: int = 1,
    bits: int = 32,
    how: LocalTraining | None = None,
    flags: Sequence[str] = (),
) -> None:
    """Train by the engine and by C; raise where one bit differs."""
    how = how or LocalTraining(2, batch, lr=0.05, momentum=0.9, weight_decay=5e-4)
    seed = 11
    trained, loss = SparseEngine(plan, simd="plain", stored_bits=bits).train(
        state, examples, how, seed
    )
    made = emit(plan, state.masks, batch, bits)
    count = sum(math.prod(plan.stats[name]) for name in made.statistics)
    found = Compiled(compile_shared(made, folder, *flags), made, count)
    losses = run(found, plan, state, examples, how, seed)
    parameters = layers_of(plan, state.masks, 1)[1]
    parameters.load(trained.weights)
    same_bits(found.values, parameters.values)
    assert losses == loss
    if made.statistics:
        expected = np.concatenate([trained.stats[name] for name in made.statistics])
        same_bits(found.statistics(), expected)


def run(
    found: Compiled,
    plan: Plan,
    state: ModelState,
    examples: Examples,
    how: LocalTraining,
    seed: int,
) -> float:
    """Train by C as `SparseEngine.train` does; return the mean loss of the last epoch."""
    parameters = layers_of(plan, state.masks, 1)[1]
    parameters.load(state.weights)
    found.values[:] = parameters.values
    found.begin(seed)
    batches = TrainingBatches(examples, how, seed)
    losses: list[float] = []
    for _ in range(how.epochs):
        found.epoch()
        losses = []
        for each in batches.epoch():
            for place, (index, label) in enumerate(zip(each.order, each.targets, strict=True)):
                assert found.put(place, each.inputs[index], int(label)) == 0
            code, loss = found.step(how.lr, how.momentum, how.weight_decay)
            assert code == 0
            losses.append(loss)
    return sum(losses) / len(losses)


def same_bits(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    differ = int((found.view(np.uint32) != expected.view(np.uint32)).sum())
    assert differ == 0, f"{differ} of {len(expected)} differ"
    assert found.shape == expected.shape


def compile_host(trainer: Trainer, folder: Path, *flags: str, compiler: str = "gcc") -> Path:
    """Compile the program that stands in for a microcontroller; return it."""
    write(trainer.files, folder)
    sources = [str(folder / name) for name in ("host.c", "link.c", "trainer.c")]
    program = folder / "host"
    command = [compiler, *STRICT, "-O1", *flags, *sources, "-lm", "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


@contextmanager
def running(program: Path, examples: Examples | None = None) -> Iterator[str]:
    """Run it; yield the address of its link.

    Args:
        program: Of `compile_host`.
        examples: Of its own.
    """
    command = [str(program), "0"]
    if examples is not None:
        file = program.with_name("examples.bin")
        pairs = zip(examples.targets, examples.inputs, strict=True)
        file.write_bytes(b"".join(np.int32(y).tobytes() + x.tobytes() for y, x in pairs))
        command.append(str(file))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"socket://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()
