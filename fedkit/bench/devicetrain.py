"""`fedkit bench devicetrain`: what a step of training costs a Cortex-A53, in emulated instructions.

ResNet-8 takes one step of SGD on a few random images, in float32 and in integers, by the kernels
that a Raspberry Pi 3 would run (NEON), compiled by zig and executed by unicorn. What they give is
compared with this processor's own kernels before anything is counted: integers must be equal,
floats nearly. Counted are the kernels' instructions, per image; the Python around them, pipelines
and caches are not. `peak_bytes` is the memory of a step as `Program.memory` plans it, of the
float32 engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def _peak_bytes(engine: _Engine, state: ModelState, batch: Examples) -> int | None:
    if isinstance(engine, IntegerEngine):
        return None  # not planned in advance
    return engine.program(state, "train", len(batch)).memory.peak


def _emulated() -> tuple[Any, Any]:
    """Return a core and its kernels."""
    try:
        from fedkit.bench.emulator import EmulatedKernels, processor
    except ModuleNotFoundError as error:
        raise BenchError(
            f"{error.name} is not installed; run `pip install 'fedkit[bench]'`"
        ) from error
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
    )
    return markdown.table(head, rows)
