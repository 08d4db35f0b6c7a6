"""C99 as an export target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from edge import artifact
from edge.define.interpret_int8 import outputs_int8
from edge.raw import raw_input_of
from edge.targets.c99 import emitter
from edge.targets.c99.calls import ConstantAddress, Goal, Struct, compile_graph
from edge.targets.c99.runner import CompiledRunner, name_of
from edge.targets.c_names import check_new_name, name_for
from edge.targets.export_target import ExportTarget, Made, vectors_of
from edge.targets.tflite.runner import Runner
from fedkit.graph import ir
from fedkit.graph.ops.registry import WEIGHTED
from fedkit.preprocess.raw_input import RawInput

_ROUNDING = "half_up"


def _make(
    graph: ir.Graph,
    examples: ir.Inputs,
    path: Path,
    goal: Goal = "speed",
    keep: bool = False,
    name: str | None = None,
    raw_input: RawInput | None = None,
) -> Made:
    name = name_for(path) if name is None else name
    check_new_name(name)
    integers = vectors_of(graph, examples)
    expected = outputs_int8(graph, integers, _ROUNDING)
    sources = emitter.emit(graph, integers, expected, goal, keep, name, raw_input)
    details: dict[str, Any] = {
        "name": name,
        "arena_bytes": sources.arena_bytes,
        "goal": goal,
        "calls": [list(call) for call in sources.calls],
    }
    if keep:
        details["kept"] = {
            each: (start, p.channels, p.height, p.width, p.row, p.plane)
            for each, (start, p) in sources.kept.items()
        }
    return Made("c99", sources.files, details)


def _open(found: artifact.Artifact, runtime: str, changed: bool) -> Runner:
    del runtime
    return CompiledRunner(found.path, changed=changed)


def _made_with(found: artifact.Artifact) -> dict[str, Any]:
    form = {"goal": found.detail("goal", str), "name": name_of(found)}
    return {**form, "raw_input": raw_input_of(found)}


def _layer_bytes(graph: ir.Graph, found: artifact.Artifact) -> Counter[str]:
    """Return the constants of calls, by the first op that a module made of each kind."""
    sizes: Counter[str] = Counter()
    owner = {op.source: op.output for op in reversed(graph.ops) if op.kind in WEIGHTED}
    for call in compile_graph(graph, cast(Goal, found.detail("goal", str))).calls:
        constants = (each for each in call.arguments if isinstance(each, ConstantAddress))
        sizes[owner.get(call.source, "")] += sum(map(_bytes, constants))
    return sizes


def _bytes(pointer: ConstantAddress) -> int:
    return sum(_arrays(pointer.to)) if pointer.to is not None else 0


def _arrays(struct: Struct) -> Iterator[int]:
    for value in struct.fields:
        if isinstance(value, np.ndarray):
            yield value.nbytes
        elif isinstance(value, Struct):
            yield from _arrays(value)
        elif isinstance(value, ConstantAddress):
            yield _bytes(value)


TARGET = ExportTarget(
    "c99",
    "-c99",
    {"c99": {"compiled": _ROUNDING}},
    _make,
    _open,
    options=("goal", "name"),
    made_with=_made_with,
    keeps=True,
    makes_inputs=True,
    language="C",
    not_code=frozenset({"test_vector.h"}),
    layer_bytes=_layer_bytes,
)
