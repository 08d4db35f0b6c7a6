"""`fedkit bench intaccuracy`: what integers cost in accuracy, on Fashion-MNIST.

One model is trained on all data in one place, by the engines that devices of a fleet use: float32
on the sparse engine with all weights kept, integers on the integer engine. Rates fall along a
cosine, epoch by epoch; an epoch starts with no momentum. Statistics of the norms are taken anew
under the final weights for both, so that neither is measured under old ones.

At 8 bits ShiftQuant has one group and is per-tensor, to the bit, so the cell is run once and listed
twice. float32 has no gradient rule; its rows say per-tensor.

A finished cell is kept in runs/intaccuracy and not run again: stopped in any way, the same command
continues.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np

from fedkit.bench import markdown
from fedkit.bench.kept import run_kept
from fedkit.engine.base import Engine, LocalTraining
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.plan.capture import capture
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.nn.norm import with_l1_norms
from fedkit.stats.norms import as_stats
from fedkit.tasks import load_task
from fedkit.tasks.task import cross_entropy

KEPT = Path("runs/intaccuracy")
_STATISTICS = 5000
_RATE, _MOMENTUM, _DECAY, _BATCH = 0.1, 0.9, 5e-4, 64


@dataclass(frozen=True)
class TrainingCell:
    """One training run.

    Attributes:
        bits: 32 is float32.
        gradient: Gradient rule.
        norm: l1 or l2, for the BatchNorms of a model; "own" leaves its norms as they are.
        seed: Of the weights, the order of examples and random rounding.
        examples: Training examples.
        epochs: Over all of them.
        model: Of the zoo.
    """

    bits: int
    gradient: str
    norm: Literal["l1", "l2", "own"]
    seed: int
    examples: int
    epochs: int
    model: str = "resnet8"


def bench_intaccuracy(quick: bool) -> dict[str, Any]:
    """Train every cell that is not kept yet, and return all.

    Args:
        quick: Two kinds, one seed, one epoch over 1,000 examples, and nothing kept.

    Raises:
        EngineError: The compiled kernels are missing.
        DataError: The data set is not installed.
    """
    if quick:
        kinds = ((32, "per-tensor"), (4, "shiftquant"))
        rows = [run(TrainingCell(bits, rule, "l1", 1, 1000, 1)) for bits, rule in kinds]
    else:
        rows = run_kept(list(cells((1, 2, 3), examples=60_000, epochs=3)), run, KEPT)
    seeds = sorted({row["seed"] for row in rows})
    about = {"benchmark": "intaccuracy", "task": "fashion-mnist", "seeds": seeds}
    return {**about, "rows": with_shiftquant(rows)}


def cells(seeds: Iterable[int], examples: int, epochs: int) -> Iterable[TrainingCell]:
    """Yield the grid: bits, rules and norms for each seed."""
    kinds = [(32, "per-tensor"), (8, "per-tensor"), (8, "per-channel")]
    kinds += itertools.product((6, 4), ("per-tensor", "shiftquant", "per-channel"))
    for seed in seeds:
        for norm in ("l1", "l2"):
            for bits, rule in kinds:
                yield TrainingCell(bits, rule, norm, seed, examples, epochs)


def run(cell: TrainingCell) -> dict[str, Any]:
    """Train one cell; return its row."""
    task = load_task("fashion-mnist")
    everything, rng = task.train_data(), np.random.default_rng(cell.seed)
    data = everything.take(rng.permutation(len(everything))[: cell.examples])
    model = task.build_model(cell.seed, cell.model)
    if cell.norm == "l1":
        model = with_l1_norms(model)
    reference = TorchEngine(model, cross_entropy)
    state = reference.initial_state()
    plan = capture(reference.module(state), data.inputs.shape[1:])
    engine: Engine = (
        SparseEngine(plan)
        if cell.bits == 32
        else IntegerEngine(plan, bits=cell.bits, gradient=cell.gradient)
    )
    for epoch in range(cell.epochs):
        rate = _RATE * (1 + math.cos(math.pi * epoch / cell.epochs)) / 2
        how = LocalTraining(1, _BATCH, rate, _MOMENTUM, _DECAY)
        state, loss = engine.train(state, data, how, seed=1000 * cell.seed + epoch)
    if plan.stats:
        moments = engine.norm_moments(state, data.take(np.arange(min(len(data), _STATISTICS))))
        state = replace(state, stats={**state.stats, **as_stats(moments)})
    test = task.test_data()
    found = task.metric(engine.outputs(state, test.inputs), test.targets)
    about = {"model": cell.model, **asdict(cell)}
    return {**about, "accuracy": round(found, 6), "loss": round(loss, 6)}


def with_shiftquant(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows, and for each per-tensor one at 8 bits that of ShiftQuant, its equal."""
    copies = [{**row, "gradient": "shiftquant"} for row in rows if _has_shiftquant(row)]
    return rows + copies


def _has_shiftquant(row: dict[str, Any]) -> bool:
    return (row["bits"], row["gradient"]) == (8, "per-tensor")


def table(result: Mapping[str, Any]) -> list[str]:
    """One line per bits and gradient rule: mean and deviation over the seeds, L1 and L2."""
    found: dict[tuple[int, str], dict[str, list[float]]] = {}
    for row in result["rows"]:
        kind = found.setdefault((row["bits"], row["gradient"]), {"l1": [], "l2": []})
        kind[row["norm"]].append(100 * row["accuracy"])
    head = "| bits | gradients | L1 norms | of fp32 | L2 norms | of fp32 |"
    full = found[32, "per-tensor"]
    rows = []
    for (bits, rule), norms in sorted(found.items(), key=lambda item: (-item[0][0], item[0][1])):
        cells = [
            f"{fmean(own):.2f} ± {stdev(own):.2f} % | {fmean(own) - fmean(full[norm]):+.2f}"
            for norm, own in norms.items()
        ]
        rows.append(f"| {bits} | {rule if bits < 32 else ''} | {' | '.join(cells)} |")
    return markdown.table(head, rows)
