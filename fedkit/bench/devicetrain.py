"""`fedkit bench devicetrain`: what a step of training costs a Cortex-A53, -M7 and -M4, emulated.

ResNet-8 takes one step of SGD on a few random images, in float32 and in integers, by the kernels
that a Raspberry Pi 3 would run (NEON), compiled by zig and executed by unicorn. What they give is
compared with this processor's own kernels before anything is counted: integers must be equal,
floats nearly. Counted are the kernels' instructions, per image; the Python around them, pipelines
and caches are not. `peak_bytes` is the memory of a step as `Program.memory` plans it, of the
float32 engine.

A Cortex-M runs the trainer that `fedkit export --target c99-train` writes, on batches of one image,
with values stored in 8 bits. It takes two steps, of which all weights, statistics and losses must
equal the engine's to the bit; the first is counted, all of it. `ram_bytes` are those of the linked
program, `stack_bytes` come on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from fedkit.bench import markdown
from fedkit.bench.sparsetrain import random_batch, randomly_pruned
from fedkit.core.errors import BenchError
from fedkit.engine.base import LocalTraining
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.nn.zoo import build_model, seeded
from fedkit.sparse.state import ModelState, Weights
from fedkit.tasks.task import Examples, cross_entropy

_MODEL, _SHAPE, _CLASSES = "resnet8", (3, 32, 32), 10
_SEED = 0
_BATCH = 8  # images side by side in the lanes of vectors
_DENSITIES = (1.0, 0.1, 0.05, 0.01)
_BITS = (32, 8, 4)
_MICROCONTROLLERS = ("cortex-m7", "cortex-m4")
_TRAINED = (("resnet8", _SHAPE), ("ds-cnn", (1, 49, 10)))
_STORED_BITS = 8
_OPTIONS = ("-O3", "-mcpu=cortex_a53")
_NEARLY = 1e-3  # of a weight: sums of float32 in another order

_Engine = SparseEngine | IntegerEngine


def bench_devicetrain(quick: bool) -> dict[str, Any]:
    """Count every density and precision.

    Args:
        quick: Two densities, float32 and 8 bits.

    Raises:
        BenchError: A package of `fedkit[bench]` is missing, or the emulated kernels give something
            else than this processor's.
        EngineError: The compiled kernels are missing.
    """
    densities, bits = ((1.0, 0.05), (32, 8)) if quick else (_DENSITIES, _BITS)
    batch = random_batch(_BATCH, _SHAPE)
    reference = TorchEngine(
        seeded(lambda: build_model(_MODEL, _SHAPE, _CLASSES), _SEED), cross_entropy
    )
    plan = capture(reference.module(reference.initial_state()), _SHAPE)
    rows = []
    for each in bits:
        states = (randomly_pruned(reference.initial_state(), density) for density in densities)
        dense, *others = (_row(plan, state, batch, each) for state in states)
        for row in (dense, *others):
            ratio = round(dense["instructions"] / row["instructions"], 2)
            rows.append({**row, "ratio_dense": ratio})
    rows += _microcontrollers(quick)
    return {"benchmark": "devicetrain", "seed": _SEED, "rows": rows}


def _row(plan: Plan, state: ModelState, batch: Examples, bits: int) -> dict[str, Any]:
    """Check a step and count it."""

    def make() -> _Engine:
        return SparseEngine(plan) if bits == 32 else IntegerEngine(plan, bits=bits)

    expected, emulated = make(), make()
    core, emulated.kernels = _emulated()
    found: list[Weights] = []
    count = core.count(lambda: found.append(_step(emulated, state, batch)))
    _compare(found[0], _step(expected, state, batch), bits)
    return {
        "target": "cortex-a53",
        "model": _MODEL,
        "density": round(state.density, 4),
        "bits": bits,
        "batch": len(batch),
        "instructions": round(count / len(batch)),
        "peak_bytes": _peak_bytes(expected, state, batch),
    }


def _microcontrollers(quick: bool) -> list[dict[str, Any]]:
    models = _TRAINED[:1] if quick else _TRAINED
    densities = _DENSITIES[2:3] if quick else _DENSITIES[1:]
    return [
        _microcontroller_row(name, shape, density, target)
        for name, shape in models
        for density in densities
        for target in _MICROCONTROLLERS
    ]


def _microcontroller_row(
    name: str, shape: tuple[int, ...], density: float, target: str
) -> dict[str, Any]:
    """Check two steps of a trainer in C, and count the first."""
    reference = TorchEngine(
        seeded(lambda: build_model(name, shape, _CLASSES), _SEED), cross_entropy
    )
    state = randomly_pruned(reference.initial_state(), density)
    plan = capture(reference.module(reference.initial_state()), shape)
    how = LocalTraining(1, 1, lr=0.05, momentum=0.9, weight_decay=5e-4)
    run = _emulated_trainer()(plan, state, random_batch(2, shape), how, _STORED_BITS, target)
    if run.differing:
        raise BenchError(
            f"the trainer in C gives {run.differing} of {run.compared} numbers of {name} "
            f"differently on {target}; no figure is given. `pytest tests/trainer` finds where"
        )
    return {
        "target": target,
        "model": name,
        "density": round(state.density, 4),
        "bits": 32,
        "stored_bits": _STORED_BITS,
        "batch": 1,
        "instructions": run.instructions,
        "ram_bytes": run.ram_bytes,
        "stack_bytes": run.stack_bytes,
        "flash_bytes": run.flash_bytes,
        "compared": run.compared,
        "differing": run.differing,
    }


def _emulated_trainer() -> Callable[..., Any]:
    with _needing_bench():
        from fedkit.bench.microcontroller import compare

        return compare


@contextmanager
def _needing_bench() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise BenchError(
            f"{error.name} is not installed; run `pip install 'fedkit[bench]'`"
        ) from error


def _peak_bytes(engine: _Engine, state: ModelState, batch: Examples) -> int | None:
    if isinstance(engine, IntegerEngine):
        return None  # not planned in advance
    return engine.program(state, "train", len(batch)).memory.peak


def _emulated() -> tuple[Any, Any]:
    """Return a core and its kernels."""
    with _needing_bench():
        from fedkit.bench.emulator import EmulatedKernels, processor
    core = processor(*_OPTIONS)
    return core, EmulatedKernels(core, "neon")


def _step(engine: _Engine, state: ModelState, batch: Examples) -> Weights:
    how = LocalTraining(1, len(batch), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return engine.train(state, batch, how, _SEED)[0].weights


def _compare(found: Weights, expected: Weights, bits: int) -> None:
    for name, value in expected.items():
        is_same: Callable[..., Any] = np.array_equal if bits < 32 else _is_near
        if not is_same(found[name], value):
            differ = int((found[name] != value).sum())
            raise BenchError(
                f"the emulated processor trains {name} differently at {bits} bits: {differ} of "
                f"{value.size} values; no figure is given. `pytest tests/engine` finds the kernel"
            )


def _is_near(found: Any, expected: Any) -> bool:
    return bool(np.allclose(found, expected, rtol=_NEARLY, atol=_NEARLY))


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of README's table."""
    head = (
        "| target | model | bits | density | instructions per image | dense / this | peak memory |"
    )
    rows = (
        f"| {row['target']} | {row['model']} | {row['bits']} | {row['density']:.0%} "
        f"| {row['instructions']:,} | {markdown.times(row['ratio_dense'])} "
        f"| {markdown.kb(row['peak_bytes']) if row['peak_bytes'] else ''} |"
        for row in result["rows"]
        if "ram_bytes" not in row
    )
    return [*markdown.table(head, rows), *_microcontroller_table(result)]


def _microcontroller_table(result: Mapping[str, Any]) -> list[str]:
    found = [row for row in result["rows"] if "ram_bytes" in row]
    if not found:
        return []
    head = (
        "| target | model | density | stored bits | instructions per image | RAM | stack | flash "
        "| numbers that differ |"
    )
    rows = (
        f"| {row['target']} | {row['model']} | {row['density']:.0%} | {row['stored_bits']} "
        f"| {row['instructions']:,} | {markdown.kb(row['ram_bytes'])} "
        f"| {markdown.kb(row['stack_bytes'])} | {markdown.kb(row['flash_bytes'])} "
        f"| {row['differing']} of {row['compared']:,} |"
        for row in found
    )
    return ["", *markdown.table(head, rows)]
