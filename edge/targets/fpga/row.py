"""Verilog for FPGAs as an export target."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import artifact
from edge.define.interpret_int8 import evaluate_int8
from edge.targets.export_target import ExportTarget, Made, vectors_of
from edge.targets.fpga import emitter, microcode
from edge.targets.fpga.lanes import TABLE_WORDS, entry_count
from edge.targets.fpga.runner import SimulatedRunner
from edge.targets.fpga.timeline import timeline
from edge.targets.tflite.runner import Runner
from fedkit.graph import ir

LANES = 4
"""Filters that are computed at a time, if nothing else is asked for."""

_ROUNDING = "half_up"
_MOST_BITS = 32  # of a gap or a weight


def _make(
    graph: ir.Graph,
    examples: ir.Inputs,
    path: Path,
    lanes: int = LANES,
    keep: bool = False,
) -> Made:
    del path
    integers = vectors_of(graph, examples)
    kept: dict[str, NDArray[np.int8]] = {}
    expected = evaluate_int8(graph, integers, _ROUNDING, kept.__setitem__)
    if keep and len(graph.outputs) == 1:
        (result,) = graph.outputs
        values = [kept[op.output] for op in graph.ops if op.output != result]
        expected = np.concatenate([each.reshape(len(each), -1) for each in (*values, expected)], 1)
    sources = emitter.emit(graph, integers, expected, lanes, keep)
    details = {
        "lanes": lanes,
        "cycles_per_inference": sources.cycles,
        "rom_bits": sources.rom_bits,
        "ram_bytes": sources.ram_bytes,
        "weights": sources.weights,
        "weight_bits": sources.weight_bits,
        "gap_bits": sources.gap_bits,
        "given": [[name, list(shape)] for name, shape in sources.given.items()],
    }
    return Made("fpga", sources.files, details)


def _open(found: artifact.Artifact, runtime: str, changed: bool) -> Runner:
    del runtime
    return SimulatedRunner(found.path, changed=changed)


def _made_with(found: artifact.Artifact) -> dict[str, Any]:
    return {"lanes": found.count("lanes", emitter.MOST_LANES)}


def _layer_bytes(graph: ir.Graph, found: artifact.Artifact) -> Counter[str]:
    """Return the bytes of each op's filters; equal lists, as those of a mean, count once."""
    code = microcode.compile_graph(graph, found.count("lanes", emitter.MOST_LANES))
    bits = found.count("gap_bits", _MOST_BITS) + found.count("weight_bits", _MOST_BITS)
    sizes = Counter(dict.fromkeys((op.output for op in graph.ops), 0))
    for step in code.steps:
        if step.write is not None and step.filters:
            lists = {(each.gaps().tobytes(), each.values.tobytes()): each for each in step.filters}
            entries = sum(entry_count(each, code.gap_bits) for each in lists.values())
            sizes[step.write.name] += -(-entries * bits // 8) + 4 * TABLE_WORDS * len(step.filters)
    return sizes


TARGET = ExportTarget(
    "fpga",
    "-fpga",
    {"fpga": {"simulated": _ROUNDING}},
    _make,
    _open,
    options=("lanes",),
    several_outputs=False,
    made_with=_made_with,
    keeps=True,
    language="Verilog",
    not_code=frozenset({"inputs.hex", "expected.hex", "testbench.v"}),
    layer_bytes=_layer_bytes,
    timeline=timeline,
)
