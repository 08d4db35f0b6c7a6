"""`fedkit bench cost`: what one device pays for each method, for the real ResNet-18 at 1 % density.

FLOPs and bytes are those of a whole run of the paper's schedule: 300 rounds of five local epochs
over 5,000 examples, an adjustment every 10 rounds until round 100. Server, device and messages are
the ones of any run, and first masks are made for real, from random images; only training is left
out and its gradients are random, since masks alone decide what it costs. Rounds between adjustments
are equal, so one of them is done and counted as often as it occurs.

Memory is measured: a process of its own answers the same messages for real, with the sparse engine,
in batches of 64 images of 3x32x32. `memory_measured_bytes` is its peak beyond a bare interpreter.
`memory_model_bytes` is the usual model, weights, indices and scores, see `fedkit.engine.flops`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.bench import markdown
from fedkit.bench.measured import DeviceCost, MeasuredFleet
from fedkit.bench.process import idle_memory
from fedkit.bench.replay import Recorded, device_memory
from fedkit.config import RunConfig, make_config
from fedkit.device.round import Device
from fedkit.engine.base import Engine, GradientSums, LocalTraining
from fedkit.engine.choose import sparse_equivalent
from fedkit.engine.flops import CountingEngine, WeightUses, memory_model, positions, unpruned_values
from fedkit.engine.torch import TorchEngine
from fedkit.engine.wrapped import WrappedEngine
from fedkit.methods.interface import Opening, Request, changed_model
from fedkit.methods.registry import load_method, resolve
from fedkit.methods.schedule import adjusts_in
from fedkit.server.rounds import Server, train_round
from fedkit.sparse.state import Masks, ModelState, Weights
from fedkit.sparse.topk import Entries, largest
from fedkit.stats.moments import NormMoments
from fedkit.stats.norms import as_moments
from fedkit.tasks.task import Examples, Task

METHODS = ("fedtiny", "fedtiny-uniform", "feddst", "ssfl", "snip", "prunefl", "dense")
QUICK_METHODS = ("fedtiny", "prunefl", "dense")
BASELINES = ("dense", "prunefl")
"""Rows that the others are compared with."""

VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "fedtiny": ({"stored_bits": 8}, {"stored_bits": 4}, {"memory": "30MB"}, {"memory": "13500kB"})
}
"""Methods that have rows for less memory, too: of fewer stored bits, and where what a step plans is
bounded, so that it stores 4 bits and computes its first ops again."""

COMPARED = ("train_flops", "memory_model_bytes", "memory_measured_bytes", "bytes_total")

_SHAPE = (3, 32, 32)
_CLASSES = 10
_EXAMPLES = 5000
_BATCH = 64
_SEED = 0
_SCHEDULE = {"density": 0.01, "epochs": 5, "batch_size": _BATCH, "adjust_examples": _BATCH}


def bench_cost(quick: bool) -> dict[str, Any]:
    """Count and measure what each method costs one device.

    Args:
        quick: Fewer methods, 15 rounds in the paper's proportions, and memory measured over one
            batch.

    Raises:
        subprocess.CalledProcessError: A device's process failed.
    """
    task = _random_task()
    reference = TorchEngine.for_task(task, "", _SEED)
    geometry = positions(reference.module(reference.initial_state()), _SHAPE)
    engine = sparse_equivalent(reference, task)
    methods = QUICK_METHODS if quick else METHODS
    configs = [_config(method, 15 if quick else 300) for method in methods]
    data = task.train_data().take(np.arange(_BATCH if quick else 4 * _BATCH))
    runs, peaks = [], []
    with ThreadPoolExecutor(1) as beside:  # A device's process runs while the next method plays.
        for config in configs:
            played = play(config, task, engine, geometry)
            for run in (played, *_in_less_memory(played)):
                runs.append(run)
                peaks.append(beside.submit(_peak, engine, run, data))
    idle = idle_memory()
    rows = [_row(run, engine, peak.result() - idle) for run, peak in zip(runs, peaks, strict=True)]
    return {
        "benchmark": "cost",
        "model": "resnet18",
        "seed": _SEED,
        "examples": _EXAMPLES,
        "rounds": configs[0].rounds,
        **_SCHEDULE,
        "rows": [row | _compared(row, rows) for row in rows],
    }


def _in_less_memory(run: RunCost) -> Iterator[RunCost]:
    for keys in VARIANTS.get(run.config.method, ()):
        yield replace(run, config=run.config.changed(**keys))


def _random_task() -> Task:
    rng = np.random.default_rng(_SEED)
    inputs = rng.standard_normal((_EXAMPLES, *_SHAPE), np.float32)
    examples = Examples(inputs, np.arange(_EXAMPLES) % _CLASSES)
    return Task("random", "resnet18", lambda: examples, lambda: examples)


def _config(method: str, rounds: int) -> RunConfig:
    return resolve(make_config({**_SCHEDULE, "method": method, "rounds": rounds, "devices": 1}))


# A run without its arithmetic ----------------------------------------------------------------


class Untrained(WrappedEngine):
    """An engine that leaves training out; gradients are random, scores for first masks are real.

    Args:
        inner: What computes the scores, over one batch.
    """

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._rng = np.random.default_rng(_SEED)

    def train(
        self,
        state: ModelState,
        examples: Examples,
        how: LocalTraining,
        seed: int,
        gradient_sums: GradientSums | None = None,
    ) -> tuple[ModelState, float]:
        """Return the state as it is, and a loss of 1."""
        if gradient_sums is not None:
            gradient_sums.update({name: self._random(state, name) for name in state.masks})
        return state, 1.0

    def _random(self, state: ModelState, name: str) -> NDArray[np.float32]:
        return self._rng.random(state.masks[name].shape, np.float32)

    def norm_moments(
        self, state: ModelState, examples: Examples, frozen: bool = False
    ) -> NormMoments:
        """Return the statistics that the state has."""
        return as_moments(state.stats, len(examples))

    def loss(self, state: ModelState, examples: Examples) -> float:
        """Return 1."""
        return 1.0

    def top_gradients(
        self, state: ModelState, examples: Examples, amounts: Mapping[str, int]
    ) -> dict[str, Entries]:
        """Return as many random gradients of pruned weights as asked for."""
        found = {}
        for name, amount in amounts.items():
            values = self._random(state, name).reshape(-1)
            pruned = np.flatnonzero(~state.masks[name])
            chosen = pruned[largest(values[pruned], amount)]
            found[name] = Entries(chosen, values[chosen])
        return found

    def gradients(self, state: ModelState, examples: Examples) -> Weights:
        """Return the gradients on one batch."""
        return self._inner.gradients(state, examples.take(np.arange(_BATCH)))

    def outputs(self, state: ModelState, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return zeros."""
        return np.zeros((len(inputs), _CLASSES), np.float32)

    def output_batches(
        self, state: ModelState, inputs: NDArray[np.float32]
    ) -> Iterator[NDArray[np.float32]]:
        """Yield all zeros at once."""
        yield self.outputs(state, inputs)


@dataclass(frozen=True)
class RunCost:
    """A run as one device sees it: what it paid before and in each round, and some messages."""

    config: RunConfig
    before: DeviceCost
    rounds: list[DeviceCost]
    masks: Masks
    recorded: list[Recorded]


def play(config: RunConfig, task: Task, engine: Engine, geometry: WeightUses) -> RunCost:
    """Run a method's whole schedule with one device, without training.

    Args:
        config: The run.
        task: Its model and data.
        engine: Makes the first masks.
        geometry: Of the task's model.
    """
    examples, counting = task.train_data(), CountingEngine(Untrained(engine), geometry)
    fleet = MeasuredFleet([Device(0, examples, counting, config)], counting)
    server = Server(config, task, Untrained(engine), examples.take(np.arange(2)))
    dense = engine.initial_state()
    opened = server.method.start(
        Opening(config, server.engine, dense, examples, fleet, server.module, _SHAPE)
    )
    before, masks = fleet.paid, opened.state.masks
    rounds = _rounds(server, fleet, opened.state, opened.request)
    return RunCost(config, before, rounds, masks, fleet.recorded)


def _rounds(
    server: Server, fleet: MeasuredFleet, state: ModelState, request: Request
) -> list[DeviceCost]:
    """Return what each round costs; of rounds that are equal only the first is done."""
    config, costs = server.config, list[DeviceCost]()
    plain: DeviceCost | None = None
    for number in range(1, config.rounds + 1):
        special = number == 1 or adjusts_in(config, number) or adjusts_in(config, number - 1)
        if plain is None or special:
            sent, before = state, fleet.paid
            state, _ = train_round(server, fleet, request, sent, number)
            request = changed_model(state, sent.masks)
            costs.append(fleet.paid_since(before))
            plain = None if special else costs[-1]
        else:
            costs.append(plain)
    return costs


# Rows ----------------------------------------------------------------------------------------


def _peak(engine: Engine, run: RunCost, data: Examples) -> int:
    """Return the peak of a device's process that answers the recorded messages for real."""
    short = run.config.changed(epochs=1, development_share=1.0)
    return device_memory(engine, short, data, run.recorded)["peak_bytes"]


def _row(run: RunCost, engine: Engine, measured: int) -> dict[str, Any]:
    total = sum(run.rounds, run.before)
    scores = load_method(run.config.method).score_bytes(run.config, run.masks)
    return {
        "method": run.config.method,
        "stored_bits": run.config.stored_bits,
        "memory_bound_bytes": run.config.memory_bytes,
        "train_flops": total.flops,
        "train_flops_before_rounds": run.before.flops,
        "train_flops_largest_round": max(cost.flops for cost in run.rounds),
        "memory_model_bytes": memory_model(run.masks, unpruned_values(engine.layout), scores),
        "memory_measured_bytes": measured,
        "bytes_total": total.bytes,
    }


def _compared(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return each figure relative to the baselines', as a change: -0.9 is 90 % less."""
    by_method = {other["method"]: other for other in rows}
    return {
        f"{key}_vs_{baseline}": round(row[key] / by_method[baseline][key] - 1, 6)
        for baseline in BASELINES
        for key in (*COMPARED, "train_flops_largest_round")
    }


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of README's table."""
    head = (
        "| method | stored bits | bound | TFLOPs | of PruneFL | largest round | of PruneFL "
        "| memory, model | of PruneFL | memory, measured | of PruneFL | bytes | of PruneFL |"
    )
    rows = (
        f"| {row['method']} | {row['stored_bits']} | {_bound(row)} "
        f"| {row['train_flops'] / 1e12:,.0f} | {_change(row, 'train_flops')} "
        f"| {row['train_flops_largest_round'] / 1e12:,.1f} "
        f"| {_change(row, 'train_flops_largest_round')} "
        f"| {markdown.mb(row['memory_model_bytes'])} | {_change(row, 'memory_model_bytes')} "
        f"| {markdown.mb(row['memory_measured_bytes'])} | {_change(row, 'memory_measured_bytes')} "
        f"| {markdown.mb(row['bytes_total'])} | {_change(row, 'bytes_total')} |"
        for row in result["rows"]
    )
    return markdown.table(head, rows)


def _bound(row: Mapping[str, Any]) -> str:
    """Return what a step may plan; rows of before bounds have none."""
    bound = row.get("memory_bound_bytes")
    return markdown.mb(bound) if bound else ""


def _change(row: Mapping[str, Any], key: str) -> str:
    return f"{row[f'{key}_vs_prunefl']:+.1%}"
