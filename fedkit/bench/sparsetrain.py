"""`fedkit bench sparsetrain`: a step of training on kept weights only, next to dense torch.

A step is forward, loss, backward and an update by SGD with momentum and weight decay, float32 on
one thread of one core. Ours trains the kept weights of uniform random masks. torch trains the same
model dense and eager: a mask would change no time and no byte of it. Both take their steps in turns
on the same random batch, so that what else the machine does hits both; times are medians, and the
losses of the first step show that both compute the same.

Memory is the peak of a process that does nothing but load what it needs and take a few steps, less
that of an idle interpreter: with torch for torch, without for ours, as a device would pay.
`stored_bits` are those of what our backward pass reads of the forward pass. `roofline_share` is the
share of its time that a step must take, see `fedkit.bench.roofline`: `moved_bytes` are those of
tensors, once for every op that reads or writes one, and `flops` those of kept weights.

`tensor_bytes` is the part of it that came once the libraries were in use and the batch was there,
without mapped files: weights, activations, gradients, momentum and indices. Our process reads
positions and values of kept weights; a device of a fleet goes through dense arrays of weights
besides, and `fedkit bench client` counts those.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedkit.bench import markdown
from fedkit.bench.process import idle_memory, run_json
from fedkit.bench.roofline import measure_rates
from fedkit.bench.sparsetrain_child import __file__ as _CHILD
from fedkit.bench.sparsetrain_child import sparse_step, torch_step
from fedkit.engine.flops import positions
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.plan import save_plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.sparse.program import SparseProgram
from fedkit.engine.torch import TorchEngine
from fedkit.nn.zoo import build_model, seeded
from fedkit.sparse.distribution import kept_counts, uniform
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples, cross_entropy

_SEED = 0
_BATCH = 64
_CLASSES = 10
_WARM_UP = 2


def bench_sparsetrain(quick: bool) -> dict[str, Any]:
    """Measure the models at each density.

    Args:
        quick: The small ones only, at fewer densities and with fewer repeats.

    Raises:
        EngineError: The compiled kernels are missing.
        OSError: Memory cannot be measured; this is not Linux.
        subprocess.CalledProcessError: A process that trains alone failed.
    """
    batch, grey = random_batch(_BATCH, (3, 32, 32)), random_batch(_BATCH, (1, 28, 28))
    if quick:
        rows = model_rows("resnet18-w16", (0.01, 0.1, 1.0), (32, 8), batch, repeats=5, starts=1)
        return _result(rows + model_rows("vit-tiny", (0.05,), (32,), grey, repeats=5, starts=1))
    densities, bits = (0.01, 0.05, 0.1, 1.0), (32, 8, 4)
    rows = model_rows("resnet18-w16", densities, bits, batch, repeats=15, starts=3)
    rows += model_rows("resnet18", densities, bits, batch, repeats=3, starts=3)
    return _result(rows + model_rows("vit-tiny", densities, (32,), grey, repeats=15, starts=3))


def _result(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"benchmark": "sparsetrain", "seed": _SEED, "torch": torch.__version__, "rows": rows}


def random_batch(count: int, shape: tuple[int, ...]) -> Examples:
    """Return `count` random examples, float32 [count, *shape], of ten classes."""
    rng = np.random.default_rng(_SEED)
    targets = np.arange(count) % _CLASSES
    return Examples(rng.standard_normal((count, *shape)).astype(np.float32), targets)


def model_rows(
    name: str,
    densities: Sequence[float],
    stored_bits: Sequence[int],
    batch: Examples,
    repeats: int,
    starts: int,
) -> list[dict[str, Any]]:
    """Measure one model.

    Args:
        name: A model of the zoo.
        densities: Kept share of all prunable weights; a row each.
        stored_bits: Bits of what the backward pass reads again; a row each.
        batch: What every step trains on, at least one example of each class.
        repeats: Timed steps of each side.
        starts: Processes of each side whose memory is measured.
    """
    shape = batch.inputs.shape[1:]
    reference = TorchEngine(
        seeded(lambda: build_model(name, shape, _CLASSES), _SEED), cross_entropy
    )
    dense = reference.initial_state()
    plan = capture(reference.module(dense), shape)
    uses = positions(reference.module(dense), shape)
    with tempfile.TemporaryDirectory(prefix="fedkit-bench-") as folder:
        save_plan(plan, Path(folder, "model.plan"))
        np.savez(Path(folder, "batch.npz"), inputs=batch.inputs, targets=batch.targets)
        torch_bytes = alone(starts, "torch", folder, name)
        rows = []
        for density, bits in itertools.product(densities, stored_bits):
            state = randomly_pruned(dense, density)
            write_kept(state, Path(folder, "kept.npz"))
            our_bytes = alone(starts, "sparse", folder, str(bits))
            engine = SparseEngine(plan, stored_bits=bits)
            program = engine.program(state, "train", len(batch))
            row: dict[str, Any] = {"model": name, "density": density, "stored_bits": bits}
            row |= {"threads": 1, "simd": engine.kernels.simd}
            row |= _times(program, reference.module(state), batch, repeats)
            row |= _limit(program, len(batch) * uses.train_step(state.masks), row["seconds_ours"])
            rows.append(row | _bytes(program, our_bytes, torch_bytes))
    return rows


def _limit(program: SparseProgram, flops: int, seconds: float) -> dict[str, Any]:
    moved = program.moved_bytes()
    with one_core():
        rates = measure_rates(program.memory.activations)
    return {
        "moved_bytes": moved,
        "flops": flops,
        "copied_bytes_per_second": round(rates.bytes_per_second),
        "multiplied_flops_per_second": round(rates.flops_per_second),
        "roofline_share": round(rates.least_seconds(moved, flops) / seconds, 3),
    }


def _times(
    program: SparseProgram, model: nn.Module, batch: Examples, repeats: int
) -> dict[str, Any]:
    steps = (
        sparse_step(program, batch.inputs, batch.targets),
        torch_step(model, batch.inputs, batch.targets),
    )
    with one_core():
        losses = [step() for step in steps]
        in_turns(steps, _WARM_UP - 1)
        pairs = in_turns(steps, repeats)
    ours, theirs = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    ratios = [other / own for own, other in pairs]
    return {
        "batch": len(batch),
        "repeats": repeats,
        "seconds_ours": round(ours, 6),
        "seconds_torch": round(theirs, 6),
        "ratio": round(theirs / ours, 3),
        "ratio_lowest": round(min(ratios), 3),
        "ratio_highest": round(max(ratios), 3),
        "loss_ours": round(losses[0], 6),
        "loss_torch": round(losses[1], 6),
    }


def in_turns(jobs: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Run all jobs in turns; return the seconds of each, a row per repeat."""
    return [[_seconds(job) for job in jobs] for _ in range(repeats)]


def _seconds(job: Callable[[], object]) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


@contextmanager
def one_core() -> Iterator[None]:
    """Keep torch on one thread and, where the system can, this thread on one core."""
    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    torch.set_num_threads(1)
    try:
        if cores:
            os.sched_setaffinity(0, {max(cores)})
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def _bytes(
    program: SparseProgram, ours: Mapping[str, int], theirs: Mapping[str, int]
) -> dict[str, Any]:
    return {
        "peak_bytes_ours": ours["peak_bytes"],
        "peak_bytes_torch": theirs["peak_bytes"],
        "memory_ratio": round(ours["peak_bytes"] / theirs["peak_bytes"], 4),
        "tensor_bytes_ours": ours["tensor_bytes"],
        "tensor_bytes_torch": theirs["tensor_bytes"],
        "tensor_ratio": round(ours["tensor_bytes"] / theirs["tensor_bytes"], 4),
        "planned_bytes_ours": program.memory.peak,
    }


def alone(starts: int, job: str, *arguments: str) -> dict[str, int]:
    """Return the memory of processes that do one job of `sparsetrain_child`, as medians.

    Returns:
        `peak_bytes` above an idle interpreter, and `tensor_bytes`.
    """
    found = [run_json("-P", str(_CHILD), job, *arguments) for _ in range(starts)]
    peak, tensors = (
        statistics.median_low(one[key] for one in found) for key in ("peak_bytes", "tensor_bytes")
    )
    return {"peak_bytes": peak - idle_memory(), "tensor_bytes": tensors}


def randomly_pruned(dense: ModelState, density: float) -> ModelState:
    """Return the state under random masks of this density, the same in every layer."""
    rng = np.random.default_rng(_SEED)
    shapes = {name: mask.shape for name, mask in dense.masks.items()}
    masks = {}
    for name, count in kept_counts(shapes, density, uniform(shapes)).items():
        mask = np.zeros(dense.masks[name].size, np.bool_)
        mask[rng.choice(mask.size, count, replace=False)] = True
        masks[name] = mask.reshape(shapes[name])
    return dense.with_masks(masks)


def write_kept(state: ModelState, path: Path) -> None:
    """Write an .npz of the positions of kept weights, and of the values that a model trains.

    For each prunable parameter NAME there are `NAME positions`, flat, int32 ascending; for each
    parameter NAME there are its values, float32, of a prunable one only those kept.
    """
    arrays: dict[str, NDArray[Any]] = {
        name: value.reshape(-1) for name, value in state.weights.items()
    }
    for name, mask in state.masks.items():
        positions = np.flatnonzero(mask).astype(np.int32)
        arrays |= {f"{name} positions": positions, name: arrays[name][positions]}
    np.savez(path, **arrays)


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of README's table."""
    head = (
        "| model | density | stored bits | ms per step, ours | torch | faster | share of the limit "
        "| memory, ours | torch | share | tensors, ours | torch |"
    )
    rows = (
        f"| {row['model']} | {row['density']:.0%} | {row['stored_bits']} "
        f"| {1e3 * row['seconds_ours']:.1f} | {1e3 * row['seconds_torch']:.1f} "
        f"| {row['ratio']:.1f}x | {row['roofline_share']:.0%} "
        f"| {markdown.mb(row['peak_bytes_ours'])} | {markdown.mb(row['peak_bytes_torch'])} "
        f"| {row['memory_ratio']:.1%} "
        f"| {markdown.mb(row['tensor_bytes_ours'])} | {markdown.mb(row['tensor_bytes_torch'])} |"
        for row in result["rows"]
    )
    return markdown.table(head, rows)
