"""`fedkit bench inttrain`: a step of training in integers, next to torch in float32 and bfloat16.

A step is forward, loss, backward and an update by SGD with momentum and weight decay, on one thread
of one core. Ours trains in integers of `bits`, all gradient rules at 4 bits; torch trains the same
dense model with all tensors in one dtype. `seconds_sparse` is our float32 engine on the same kept
weights. All take their steps in turns; times are medians. At low density the integers lie on the
sparse structure, and torch, for which masks change nothing, is the same.

Memory is the peak of a process of its own, see `fedkit.bench.sparsetrain`.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedkit.bench import markdown
from fedkit.bench.sparsetrain import (
    alone,
    in_turns,
    one_core,
    random_batch,
    randomly_pruned,
    write_kept,
)
from fedkit.bench.sparsetrain_child import integer_step, sparse_step, torch_step
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.plan import save_plan
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.nn.zoo import build_model, seeded
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples, cross_entropy

_MODEL = "resnet18-w16"
_SEED = 0
_CLASSES = 10
KINDS = (
    (8, "per-tensor"),
    (6, "shiftquant"),
    (4, "per-tensor"),
    (4, "shiftquant"),
    (4, "per-channel"),
)
"""Bits and gradient rule of each row; at 8 bits ShiftQuant has one group, which is per-tensor."""


def bench_inttrain(quick: bool) -> dict[str, Any]:
    """Measure a step of each kind.

    Args:
        quick: Two kinds, a batch of 16 and the dense model only.

    Raises:
        EngineError: The compiled kernels are missing.
        OSError: Memory cannot be measured; this is not Linux.
    """
    if quick:
        rows = density_rows(1.0, (KINDS[0], KINDS[3]), random_batch(16, (3, 32, 32)), 3)
    else:
        batch = random_batch(64, (3, 32, 32))
        rows = [
            row for density in (1.0, 0.1, 0.01) for row in density_rows(density, KINDS, batch, 7)
        ]
    return {"benchmark": "inttrain", "seed": _SEED, "torch": torch.__version__, "rows": rows}


def density_rows(
    density: float, kinds: Sequence[tuple[int, str]], batch: Examples, repeats: int
) -> list[dict[str, Any]]:
    """Measure all kinds at one density.

    Args:
        density: Kept share of all prunable weights.
        kinds: Bits and gradient rule of each row.
        batch: What every step trains on.
        repeats: Timed steps of each side.
    """
    shape = batch.inputs.shape[1:]
    reference = TorchEngine(
        seeded(lambda: build_model(_MODEL, shape, _CLASSES), _SEED), cross_entropy
    )
    state = randomly_pruned(reference.initial_state(), density)
    plan = capture(reference.module(state), shape)
    peaks = _peaks(plan, state, batch, sorted({bits for bits, _ in kinds}))
    seconds, losses = _seconds(plan, state, batch, kinds, repeats)
    rows = []
    for number, (bits, rule) in enumerate(kinds):
        ours, sparse, bf16, fp32 = (seconds[i] for i in (number, -3, -2, -1))
        rows.append(
            {
                "model": _MODEL,
                "density": density,
                "bits": bits,
                "gradient": rule,
                "batch": len(batch),
                "threads": 1,
                "seconds_ours": round(ours, 6),
                "seconds_bf16": round(bf16, 6),
                "seconds_fp32": round(fp32, 6),
                "seconds_sparse": round(sparse, 6),
                "ratio_bf16": round(bf16 / ours, 3),
                "ratio_fp32": round(fp32 / ours, 3),
                "ratio_sparse": round(sparse / ours, 3),
                "peak_bytes_ours": peaks[str(bits)],
                "peak_bytes_bf16": peaks["bfloat16"],
                "peak_bytes_fp32": peaks["float32"],
                "loss_ours": round(losses[number], 6),
                "loss_fp32": round(losses[-1], 6),
            }
        )
    return rows


def _seconds(
    plan: Plan,
    state: ModelState,
    batch: Examples,
    kinds: Sequence[tuple[int, str]],
    repeats: int,
) -> tuple[list[float], list[float]]:
    """Return seconds and first losses, one per kind, then of our float32, bfloat16 and float32."""
    steps = []
    for bits, rule in kinds:
        program = IntegerEngine(plan, bits=bits, gradient=rule).program(state, "train", len(batch))
        steps.append(integer_step(program, batch.inputs, batch.targets))
    sparse = SparseEngine(plan).program(state, "train", len(batch))
    steps.append(sparse_step(sparse, batch.inputs, batch.targets))
    for dtype in ("bfloat16", "float32"):
        model = build_model(_MODEL, batch.inputs.shape[1:], _CLASSES)
        model.load_state_dict(
            {name: torch.from_numpy(value) for name, value in state.weights.items()}, strict=False
        )
        steps.append(torch_step(model, batch.inputs, batch.targets, dtype))
    with one_core():
        losses = [step() for step in steps]
        turns = np.array(in_turns(steps, repeats))
    return [statistics.median(column) for column in turns.T.tolist()], losses


def _peaks(plan: Plan, state: ModelState, batch: Examples, bits: Sequence[int]) -> dict[str, int]:
    """Return the peak memory of a process that trains, by bits or torch's dtype."""
    with tempfile.TemporaryDirectory(prefix="fedkit-bench-") as folder:
        save_plan(plan, Path(folder, "model.plan"))
        np.savez(Path(folder, "batch.npz"), inputs=batch.inputs, targets=batch.targets)
        write_kept(state, Path(folder, "kept.npz"))
        found = {str(b): alone(1, "integer", folder, str(b))["peak_bytes"] for b in bits}
        for dtype in ("bfloat16", "float32"):
            found[dtype] = alone(1, "torch", folder, _MODEL, dtype)["peak_bytes"]
    return found


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of README's table."""
    head = (
        "| density | bits | gradients | ms per step, ours | torch bf16 | fp32 | our fp32 "
        "| of bf16 | of fp32 | of ours | memory, ours | bf16 | fp32 |"
    )
    rows = (
        f"| {row['density']:.0%} | {row['bits']} | {row['gradient']} "
        f"| {1e3 * row['seconds_ours']:.0f} | {1e3 * row['seconds_bf16']:,.0f} "
        f"| {1e3 * row['seconds_fp32']:.0f} | {1e3 * row['seconds_sparse']:.0f} "
        f"| {row['ratio_bf16']:.1f}x | {row['ratio_fp32']:.2f}x | {row['ratio_sparse']:.2f}x "
        f"| {markdown.mb(row['peak_bytes_ours'])} | {markdown.mb(row['peak_bytes_bf16'])} "
        f"| {markdown.mb(row['peak_bytes_fp32'])} |"
        for row in result["rows"]
    )
    return markdown.table(head, rows)
