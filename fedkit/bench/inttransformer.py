"""`fedkit bench inttransformer`: what integers cost a Transformer in accuracy, on Fashion-MNIST.

A small ViT is trained as `fedkit bench intaccuracy` trains ResNet-8, by the same engines, rates and
batches. Its layer norms stay what they are. Finished cells are kept in runs/inttransformer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fedkit.bench import markdown
from fedkit.bench.intaccuracy import TrainingCell, run, with_shiftquant
from fedkit.bench.kept import run_kept

KEPT = Path("runs/inttransformer")
_MODEL = "vit-tiny"
_KINDS = ((32, "per-tensor"), (8, "per-tensor"), (6, "shiftquant"), (4, "shiftquant"))


def bench_inttransformer(quick: bool) -> dict[str, Any]:
    """Train every cell that is not kept yet, and return all.

    Args:
        quick: Two kinds, one seed, one epoch over 3,000 examples, and nothing kept.

    Raises:
        EngineError: The compiled kernels are missing.
        DataError: The data set is not installed.
    """
    if quick:
        rows = [run(cell) for cell in transformer_cells((1,), 3000, 1)[:2]]
    else:
        rows = run_kept(transformer_cells((1, 2, 3), examples=60_000, epochs=3), run, KEPT)
    seeds = sorted({row["seed"] for row in rows})
    about = {"benchmark": "inttransformer", "task": "fashion-mnist", "seeds": seeds}
    return {**about, "rows": rows if quick else with_shiftquant(rows)}


def transformer_cells(seeds: Iterable[int], examples: int, epochs: int) -> list[TrainingCell]:
    """Return the grid: bits and rules for each seed."""
    return [
        TrainingCell(bits, rule, "own", seed, examples, epochs, _MODEL)
        for seed in seeds
        for bits, rule in _KINDS
    ]


def table(result: Mapping[str, Any]) -> list[str]:
    """One line per bits and gradient rule: mean and deviation over the seeds."""
    found: dict[tuple[int, str], list[float]] = {}
    for row in result["rows"]:
        found.setdefault((row["bits"], row["gradient"]), []).append(100 * row["accuracy"])
    full = fmean(found[32, "per-tensor"])
    lines = (
        f"| {bits} | {rule if bits < 32 else ''} | {fmean(own):.2f} ± {stdev(own):.2f} % "
        f"| {fmean(own) - full:+.2f} |"
        for (bits, rule), own in sorted(found.items(), key=lambda each: (-each[0][0], each[0][1]))
    )
    return markdown.table("| bits | gradients | accuracy | of fp32 |", lines)
