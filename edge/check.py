"""Compare what an artifact computes with the interpreter, integer by integer, and with the floats.

The interpreter (`edge.define.interpret_int8`) runs the graph from which the artifact was made,
under the rounding policy of what runs the artifact. The first value that differs is named.

Of a C model every layer can be looked at: built once more so that no activation is written over
another, it is the same calls of the same kernels. So it is of a Verilog model, which then gives all
activations. Other runtimes are asked for a layer by a model
that ends there.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edge import artifact
from edge.define.interpret_int8 import Int8Array, Int8Visitor, outputs_int8
from edge.quantize import guard, truth
from edge.runners import open_runner, runtime_for
from edge.save import save
from edge.targets.interpreter import INTERPRETER
from edge.targets.interpreter import graph_of as graph_of
from edge.targets.registry import row_of, runtimes
from edge.targets.tflite.runner import Runner
from fedkit.core.errors import ExportError
from fedkit.graph import ir

_BATCH = 50
_Kept = Mapping[str, Int8Array]
_Values = Iterator[tuple[str, Int8Array]]
_Look = Callable[[Any], _Values]
"""Inputs in torch's layout -> names and values of activations, in the graph's order."""

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Difference:
    """The first value that differs.

    Attributes:
        tensor: Name of the activation.
        source: The torch module that made it.
        position: (example, row, column, channel) or (example, feature); a series has one row.
        actual: What the artifact gave.
        expected: What the interpreter gave.
    """

    tensor: str
    source: str
    position: tuple[int, ...]
    actual: int
    expected: int


@dataclass
class Tally:
    """What was compared of one activation.

    Attributes:
        integers: How many.
        mismatches: How many of them differ.
        largest: By how many steps at most.
    """

    integers: int = 0
    mismatches: int = 0
    largest: int = 0

    def add(self, actual: Int8Array, expected: Int8Array) -> None:
        """Compare two arrays of one shape."""
        gap = np.abs(actual.astype(np.int16) - expected)
        self.integers += gap.size
        self.mismatches += int(np.count_nonzero(gap))
        self.largest = max(self.largest, int(gap.max(initial=0)))


@dataclass
class CheckReport:
    """How an artifact compares with the interpreter.

    Attributes:
        runtime: What ran the artifact.
        rounding: The policy of the interpreter.
        examples: How many.
        outputs: The model's output, or all of them.
        same_class: Examples whose largest logit is the same one; of maps and series it counts the
            share of their places, of several outputs the mean of theirs.
        layers: Activation -> what was compared of it; empty unless layers were asked for.
        first: The first value that differs, of the earliest layer that was looked at.
        truth: How far the integers are from the float model; None for a graph without one.
        guards: What the range guards of frozen norms saw, see `edge.quantize.guard`.
    """

    runtime: str
    rounding: str
    examples: int = 0
    outputs: Tally = field(default_factory=Tally)
    same_class: float = 0
    layers: dict[str, Tally] = field(default_factory=dict)
    first: Difference | None = None
    truth: truth.Truth | None = None
    guards: tuple[guard.Tripped, ...] = ()

    @property
    def mismatches(self) -> int:
        """Values that differ, anywhere."""
        return self.outputs.mismatches + sum(each.mismatches for each in self.layers.values())


class Known:
    """What checks of several artifacts of one graph, on the same inputs, work out only once.

    It is known by the digests of graph and inputs, so that one may be given to any checks.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, ...], Any] = {}

    def once(
        self, found: artifact.Artifact, what: str, values: Any, work: Callable[[], _Found]
    ) -> _Found:
        """Return what was worked out of an artifact's graph and an array of inputs, or do it now.

        Args:
            found: The artifact, whose graph `edge.targets.interpreter.graph_of` has seen to be the
                one that its manifest names.
            what: Tells apart what is worked out.
            values: The inputs, of any type.
            work: Does it.
        """
        graph = found.provenance.get("graph_sha256", found.sha256)
        key = (graph, what, hashlib.sha256(values.tobytes()).hexdigest())
        if key not in self._found:
            self._found[key] = work()
        made: _Found = self._found[key]
        return made


def check(
    path: Path | str,
    inputs: ir.Inputs,
    runtime: str = "",
    layers: bool = False,
    changed: bool = False,
    known: Known | None = None,
) -> CheckReport:
    """Compare an artifact with the interpreter, and the interpreter with the float model.

    Args:
        path: The artifact; the graph that its manifest names lies beside it.
        inputs: float32 [n, c, h, w], [n, c, length] or [n, f], or whole numbers [n, tokens], as
            torch takes them.
        runtime: See `edge.runners.open_runner`. With "interpreter" nothing in the folder is run:
            its code must be what is made of the graph here, and that is run instead.
        layers: Compare every activation, not the outputs alone. Where a target fuses a convolution
            into the sum behind it, there are no integers of it.
        changed: Take a folder whose files are not those of its manifest.
        known: What other checks have worked out; this one adds to it.

    Returns:
        The report. Where an output differs, `first` names the layer in which it begins.

    Raises:
        ExportError: As `open_runner`; or the graph is missing or another than the manifest says.
    """
    found = artifact.load(Path(path), changed)
    runtime = runtime_for(found, runtime)
    graph, known = graph_of(found), known or Known()
    if runtime != INTERPRETER:
        runner = open_runner(found.path, runtime, changed)
        return _compared(found, graph, runner, inputs, runtime, layers, known)
    with tempfile.TemporaryDirectory() as folder:
        remade = _remade(found, graph, inputs[:1], Path(folder) / found.path.name)
        runtime = runtime_for(remade)
        return _compared(remade, graph, open_runner(remade.path), inputs, runtime, layers, known)


def _remade(
    found: artifact.Artifact, graph: ir.Graph, example: ir.Inputs, path: Path
) -> artifact.Artifact:
    """Make a folder of the graph once more; an ExportError if its code is not that of the first."""
    row = row_of(found.target)
    if row is None or not row.not_code:
        raise ExportError(
            f"runtime is {INTERPRETER!r}, which is what {found.path} is compared with; give one of "
            f"{', '.join(runtimes().get(found.target, ('nothing, as nothing runs it',)))}"
        )
    made = _save(found, graph, example, path)
    for name in sorted({*made.files, *found.files} - row.not_code):
        known = name in made.files and name in found.files
        if not known or (made.path / name).read_bytes() != (found.path / name).read_bytes():
            raise ExportError(
                f"{found.path / name} is not what this version of fedkit makes of the graph, so "
                "nothing was run: see who wrote it, or leave --runtime out to run it as it is"
            )
    return made


def _compared(
    found: artifact.Artifact,
    graph: ir.Graph,
    runner: Runner,
    inputs: ir.Inputs,
    runtime: str,
    layers: bool,
    known: Known,
) -> CheckReport:
    report = CheckReport(runtime, runtimes()[found.target][runtime])
    with tempfile.TemporaryDirectory() as folder:
        look = _layers(found, graph, runtime, inputs[:1], Path(folder)) if layers else None
        for start in range(0, len(inputs), _BATCH):
            integers = runner.quantize(inputs[start : start + _BATCH])
            interpret = partial(_interpreted, graph, integers, report.rounding)
            if look:
                kept: dict[str, Int8Array] = {}
                expected = interpret(kept.__setitem__)
                _compare_layers(report, graph, look(integers), kept)
            else:
                expected = known.once(found, report.rounding, integers, interpret)
            actual = map(ir.to_graph_layout, runner.outputs_int8(integers))
            for name, *both in zip(graph.outputs, actual, expected, strict=True):
                _compare_output(report, graph, name, *both)
            report.examples += len(integers)
    if graph.origin is not None:
        measure = partial(truth.compare, graph, graph.origin.floats, ir.to_graph_layout(inputs))
        report.truth = known.once(found, "truth", inputs, measure)
        looked = partial(guard.look, graph.origin.floats, ir.to_graph_layout(inputs))
        report.guards = known.once(found, "guards", inputs, looked)
    if report.first and not layers:
        report.first = _begins(found, graph, runner, inputs, runtime, report.first, known)
    return report


def _begins(
    found: artifact.Artifact,
    graph: ir.Graph,
    runner: Runner,
    inputs: ir.Inputs,
    runtime: str,
    output: Difference,
    known: Known,
) -> Difference:
    """Return where an output's difference begins: it, or one in an earlier layer."""
    example, *_ = output.position
    one = inputs[example : example + 1]
    first = _compared(found, graph, runner, one, runtime, True, known).first
    return replace(first, position=(example, *first.position[1:])) if first else output


def _interpreted(
    graph: ir.Graph, integers: ir.Codes, rounding: str, visit: Int8Visitor | None = None
) -> list[Int8Array]:
    return outputs_int8(graph, ir.to_graph_layout(integers), rounding, visit)


def _compare_output(
    report: CheckReport, graph: ir.Graph, name: str, actual: Int8Array, expected: Int8Array
) -> None:
    report.outputs.add(actual, expected)
    report.same_class += truth.same_class(actual, expected) / len(graph.outputs)
    _note_first(report, graph, name, actual, expected)


def _compare_layers(report: CheckReport, graph: ir.Graph, found: _Values, kept: _Kept) -> None:
    for name, actual in found:
        expected = kept[name]
        report.layers.setdefault(name, Tally()).add(actual.reshape(expected.shape), expected)
        _note_first(report, graph, name, actual.reshape(expected.shape), expected)


def _note_first(
    report: CheckReport, graph: ir.Graph, name: str, actual: Int8Array, expected: Int8Array
) -> None:
    differ = np.argwhere(actual != expected)
    if report.first is None and len(differ):
        example, *rest = (int(each) for each in differ[0])
        op = graph.producer(name)
        report.first = Difference(
            name,
            op.source if op else "input",
            (report.examples + example, *rest),
            int(actual[(example, *rest)]),
            int(expected[(example, *rest)]),
        )


def _layers(
    found: artifact.Artifact, graph: ir.Graph, runtime: str, example: ir.Inputs, folder: Path
) -> _Look:
    row = row_of(found.target)
    if row is not None and row.keeps:
        return _kept_layers(found, graph, example, folder)
    return _models_that_end(found, graph, runtime, example, folder)


def _kept_layers(
    found: artifact.Artifact, graph: ir.Graph, example: ir.Inputs, folder: Path
) -> _Look:
    runner = open_runner(_save(found, graph, example, folder / "kept", keep=True).path)

    def look(integers: Int8Array) -> _Values:
        each = [runner.kept(x[None]) for x in ir.to_graph_layout(integers)]
        for name in _in_order(graph):
            if name in each[0]:
                yield name, np.concatenate([values[name] for values in each])

    return look


def _save(
    found: artifact.Artifact, graph: ir.Graph, example: ir.Inputs, path: Path, **options: Any
) -> artifact.Artifact:
    """Save a graph in the way in which an artifact was saved."""
    row = row_of(found.target)
    assert row is not None  # what has a runtime has a row
    return save(row.name, graph, example, path, {}, **row.made_with(found), **options)


def _models_that_end(
    found: artifact.Artifact, graph: ir.Graph, runtime: str, example: ir.Inputs, folder: Path
) -> _Look:
    runners = {}
    for number, name in enumerate(_in_order(graph)):
        part = ir.until(graph, name)
        saved = _save(found, part, example, folder / f"{number}.{found.target}")
        runners[name] = open_runner(saved.path, runtime)

    def look(integers: Int8Array) -> _Values:
        for name, runner in runners.items():
            yield name, ir.to_graph_layout(runner.predict_int8(integers))

    return look


def _in_order(graph: ir.Graph) -> list[str]:
    return [op.output for op in graph.ops]
