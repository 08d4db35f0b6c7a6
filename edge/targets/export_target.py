"""What an export target is to everything else: one row, which its package fills."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import artifact
from edge.targets.tflite.runner import Runner
from fedkit.core.errors import ExportError
from fedkit.graph import ir

_TEST_VECTORS = 4


@dataclass(frozen=True)
class Made:
    """What a target makes of a graph.

    Attributes:
        kind: What the manifest calls it, one of the target's `runtimes`.
        content: The file, or name -> content of the files of a folder.
        details: What there is to say about this target alone; must be JSON.
        file_shape: Shape of a tensor in the graph -> its shape in the file.
    """

    kind: str
    content: bytes | Mapping[str, bytes]
    details: Mapping[str, Any] = field(default_factory=dict)
    file_shape: Callable[[ir.Shape], ir.Shape] = tuple


def plain_bytes(graph: ir.Graph, found: artifact.Artifact | None = None) -> Counter[str]:
    """Return op's output -> bytes of its constants, as the graph itself holds them."""
    del found
    return Counter(
        {
            op.output: sum(
                data.nbytes for name in op.inputs if (data := graph.tensors[name].data) is not None
            )
            for op in graph.ops
        }
    )


def _no_options(found: artifact.Artifact) -> dict[str, Any]:
    del found
    return {}


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class ExportTarget:
    """One thing that an int8 graph can become.

    Attributes:
        name: As `fedkit export --target` takes it.
        ending: Of the names of its artifacts, such as ".tflite".
        runtimes: Kind of artifact -> what can run it, the usual one first -> the rounding policy
            that gives its integers, one of `edge.define.rounding.POLICIES`.
        make: (graph, examples, path, **options) -> the files. Examples are float32 as torch takes
            them; the path is where the files will lie. It tries them before anybody sees them. An
            ExportError where the graph cannot be expressed.
        open: (artifact, runtime, whether it may have changed) -> its runner.
        options: Options of `make` that a person may choose.
        made_with: Artifact -> the options with which its like is made again.
        keeps: Whether `make` takes `keep`, which lets a runner give every activation by `kept`.
        language: Of the code that runs when an artifact is opened; "" where none does.
        not_code: Files of such a folder that follow from examples, or are not run.
        several_outputs: Whether its artifacts may have more than one.
        makes_inputs: Whether `make` takes `raw_input`, and what it makes then takes files.
        layer_bytes: (graph, artifact) -> op's output -> bytes of its constants.
        timeline: (graph, artifact) -> SVG of when its engine does what; None where a processor
            decides.
        require: Raises an ExportError where a package is missing.
    """

    name: str
    ending: str
    runtimes: Mapping[str, Mapping[str, str]]
    make: Callable[..., Made]
    open: Callable[[artifact.Artifact, str, bool], Runner]
    options: tuple[str, ...] = ()
    made_with: Callable[[artifact.Artifact], dict[str, Any]] = _no_options
    keeps: bool = False
    language: str = ""
    not_code: frozenset[str] = frozenset()
    several_outputs: bool = True
    makes_inputs: bool = False
    layer_bytes: Callable[[ir.Graph, artifact.Artifact], Counter[str]] = plain_bytes
    timeline: Callable[[ir.Graph, artifact.Artifact], str] | None = None
    require: Callable[[], None] = _nothing


def ports(
    graph: ir.Graph, file_shape: Callable[[ir.Shape], ir.Shape] = tuple
) -> tuple[list[artifact.Port], list[artifact.Port]]:
    """Return the inputs and the outputs of a graph, with the shapes of a file."""
    inputs, outputs = (
        [_port(graph.tensors[name], file_shape) for name in names]
        for names in (graph.inputs, graph.outputs)
    )
    return inputs, outputs


def _port(tensor: ir.Tensor, file_shape: Callable[[ir.Shape], ir.Shape]) -> artifact.Port:
    shape = file_shape(tensor.shape)
    return artifact.Port(tensor.name, tensor.dtype, shape, tensor.scale, tensor.zero_point)


def vectors_of(graph: ir.Graph, examples: ir.Inputs) -> NDArray[Any]:
    """Return the first examples as the graph's integers, for tests that an artifact brings."""
    inputs, _ = ports(graph)
    return inputs[0].quantize(ir.to_graph_layout(examples[:_TEST_VECTORS]))


def check_runs(runner: Runner, examples: ir.Inputs) -> None:
    """Run a file once, on the first example.

    Raises:
        ExportError: It gives no finite logits.
    """
    found = runner.predict(examples[:1])
    if not all(
        np.isfinite(each).all() for each in (found if isinstance(found, tuple) else [found])
    ):
        raise ExportError(
            "the exported model gives NaN or infinite logits; check the weights' size"
        )


@contextmanager
def needing_package(extra: str) -> Iterator[None]:
    """Name the extra of this package that brings a module which is not installed.

    Raises:
        ExportError: A module that is imported within is not there.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ExportError(
            f"{error.name} is not installed; run `pip install 'fedkit[{extra}]'`"
        ) from error


def content_of(found: artifact.Artifact, changed: bool) -> bytes | Path:
    """Return what to open of a file: its path, or the bytes where they may have changed."""
    return found.path.read_bytes() if changed else found.path
