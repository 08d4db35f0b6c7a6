"""`fedkit bench device`: what one inference costs on processors that an emulator stands in for.

With `--ssh` it is a board instead, and rows hold what was measured there (`edge.bench.ssh`).

Instructions, flash, memory and stack of ResNet-8 with random weights, dense and with 5 % of them,
or of an artifact. All integers of some examples are compared with the interpreter's first: one that
differs ends the benchmark. Counts are the same on every machine and in every run; instructions are
not cycles, and say nothing of time or energy.

`flash_bytes` is code and constants, `ram_bytes` arena, input and output, `stack_bytes` the stack.
`ratio_dense` is the instructions of the dense model divided by the row's. Channels that no weight
leads to an output are taken out first (`edge.passes.slim`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edge import artifact
from edge.artifact import Artifact
from edge.bench.emulate import emulate
from edge.bench.result import Quantity, ReferenceVectors, Result
from edge.bench.ssh import Board, measure
from edge.bench.targets import TARGETS, Target, find_target
from edge.check import graph_of
from edge.cost import cost
from edge.define.interpret_int8 import evaluate_int8
from edge.export import float_graph, save_c99
from edge.passes.slim import slim
from edge.quantize.to_int8 import quantize
from edge.targets.c99.calls import Goal
from edge.targets.registry import runtimes
from fedkit.bench import markdown
from fedkit.core.errors import ConfigError
from fedkit.graph import ir
from fedkit.graph.ops.registry import WEIGHTED

_SEED = 0
_CALIBRATION = 16
_EXAMPLES = 2
_MODEL = "resnet8"
_DENSITIES = (1.0, 0.05)
_QUICK = ("cortex-m4", "cortex-a76")

INSTALL = "pip install 'fedkit[bench]'"


@dataclass(frozen=True)
class _Model:
    """What is measured."""

    name: str
    density: float
    graph: ir.Graph


def bench_device(
    quick: bool, targets: Sequence[str] = (), artifact: str = "", ssh: str = ""
) -> dict[str, Any]:
    """Count what inferences take on emulated processors, or measure it on a board.

    Args:
        quick: Two targets.
        targets: Names; by default all.
        artifact: What to measure instead of ResNet-8; its graph lies beside it.
        ssh: A board to measure on instead, as ssh names it.

    Returns:
        The rows, and `details` with the layers and the environment of each.

    Raises:
        ConfigError: There is no such target.
        BenchError: A package is missing, or a target or board does not give the interpreter's
            integers.
        ExportError: The artifact or its graph cannot be read.
    """
    if ssh and targets:
        raise ConfigError(
            f"targets ({', '.join(targets)}) are emulated, and {ssh} is a board; "
            "give one of --target and --ssh"
        )
    names = targets or (_QUICK if quick else tuple(TARGETS))
    chosen = [find_target(name) for name in names]
    models = [_given(Path(artifact))] if artifact else [_random(density) for density in _DENSITIES]
    if ssh:
        found = [(model, _on_board(model, Board(ssh))) for model in models]
    else:
        found = [(model, _emulated(model, target)) for target in chosen for model in models]
    return {
        "benchmark": "device",
        "seed": _SEED,
        "rows": _rows(found),
        "details": [result.to_json() for _, result in found],
    }


def list_targets() -> dict[str, Any]:
    """Return which targets can be measured here, and what would install the rest."""
    rows = [
        {
            "target": target.name,
            "needs": ", ".join(_NEEDS.values()),
            "installed": _missing() or "yes",
            "modelled": target.modelled,
        }
        for target in TARGETS.values()
    ]
    return {"benchmark": "device", "rows": rows, "install": INSTALL}


_NEEDS = {"elftools": "pyelftools", "unicorn": "unicorn", "ziglang": "ziglang"}


def _missing() -> str:
    missing = [package for module, package in _NEEDS.items() if not find_spec(module)]
    return f"no: {', '.join(missing)}; {INSTALL}" if missing else ""


@cache
def _random(density: float) -> _Model:
    from fedkit.bench.infer import SHAPE, random_model
    from fedkit.bench.sparsetrain import random_batch

    inputs = random_batch(_CALIBRATION, SHAPE).inputs
    whole = float_graph(random_model(_MODEL, density), SHAPE)
    return _Model(_MODEL, density, slim(quantize(whole, ir.to_graph_layout(inputs))))


def _given(path: Path) -> _Model:
    graph = graph_of(artifact.load(path))
    weights = [graph.constant(op.inputs[1]) for op in graph.ops if op.kind in WEIGHTED]
    density = cost(graph).kept_weights / max(1, sum(each.size for each in weights))
    return _Model(path.name, round(density, 4), graph)


def _examples(graph: ir.Graph) -> ReferenceVectors:
    (name,) = graph.inputs
    shape = _EXAMPLES, *graph.tensors[name].shape[1:]
    inputs = np.random.default_rng(_SEED).integers(-128, 128, shape).astype(np.int8)
    return ReferenceVectors(inputs, evaluate_int8(graph, inputs, runtimes()["c99"]["compiled"]))


def _emulated(model: _Model, target: Target) -> Result:
    with _saved(model, target.goal) as saved:
        return emulate(saved, target, _examples(model.graph))


def _on_board(model: _Model, board: Board) -> Result:
    with _saved(model, "speed") as saved:
        return measure(saved, board, _examples(model.graph))


@contextmanager
def _saved(model: _Model, goal: Goal) -> Iterator[Artifact]:
    shape = model.graph.tensors[model.graph.inputs[0]].shape[1:]
    some = np.zeros((1, *shape[-1:], *shape[:-1]), np.float32)
    with tempfile.TemporaryDirectory(prefix="fedkit-bench-") as folder:
        yield save_c99(model.graph, some, Path(folder) / "model", {}, goal)


def _rows(found: Iterable[tuple[_Model, Result]]) -> list[dict[str, Any]]:
    found = list(found)
    dense = {result.target: result for model, result in found if model.density == 1.0}
    return [
        {
            "target": result.target,
            "model": model.name,
            "density": model.density,
            **{name: _plain(each) for name, each in result.quantities.items()},
            "ratio_dense": _ratio(dense, result),
        }
        for model, result in found
    ]


def _ratio(dense: Mapping[str, Result], result: Result) -> float | None:
    if result.target not in dense:
        return None
    key = "instructions" if "instructions" in result.quantities else "latency_median_us"
    return round(dense[result.target][key] / result[key], 3)


def _plain(quantity: Quantity) -> float:
    """Return a count as an integer, anything else with two decimals."""
    counts = quantity.unit in ("instructions", "bytes")
    return int(quantity.value) if counts else round(quantity.value, 2)


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of README's table."""
    head = "| target | model | density | instructions | flash | RAM | stack | dense / this |"
    rows = (
        f"| {row['target']} | {row['model']} | {row['density']:.0%} | {row['instructions']:,} "
        f"| {markdown.kb(row['flash_bytes'])} | {markdown.kb(row['ram_bytes'])} "
        f"| {row['stack_bytes']:,} B | {markdown.times(row['ratio_dense'])} |"
        for row in result["rows"]
    )
    return markdown.table(head, rows)
