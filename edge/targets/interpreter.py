"""Run the graph of an artifact by the interpreter: the artifact's integers, without its code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import artifact, graph_file
from edge.define.interpret_int8 import outputs_int8
from edge.targets.tflite.runner import Runner
from fedkit.core.errors import ExportError
from fedkit.graph import ir

INTERPRETER = "interpreter"
"""The runtime of every target that computes what the artifact should, and runs nothing of it."""

_BATCH = 50
_LONGEST_NAME = 200  # bytes, with room for what a manifest adds


class InterpretedRunner(Runner):
    """The graph from which an artifact was made, under the rounding of its usual runtime."""

    _order = "NHWC"

    def __init__(self, found: artifact.Artifact, rounding: str) -> None:
        """Load the graph beside an artifact.

        Args:
            found: The artifact.
            rounding: The policy, that of its usual runtime.

        Raises:
            ExportError: There is none, or it is another one.
        """
        self._graph = graph_of(found)
        self._rounding = rounding
        self._input, *outputs = (
            artifact.Port(tensor.name, tensor.dtype, tensor.shape, tensor.scale, tensor.zero_point)
            for tensor in (
                self._graph.tensors[name]
                for name in (*self._graph.inputs[:1], *self._graph.outputs)
            )
        )
        self._outputs = tuple(outputs)
        self._held = np.zeros(self._input.shape, self._input.dtype)

    def _run(self, inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        examples = self._checked(inputs)
        parts = [[self._empty(port, 0) for port in self._outputs]]
        for start in range(0, len(examples), _BATCH):
            parts.append(self._classify(examples[start : start + _BATCH]))
        return self._as_in_torch([np.concatenate(each) for each in zip(*parts, strict=True)])

    def _classify(self, example: NDArray[Any]) -> list[NDArray[Any]]:
        return outputs_int8(self._graph, example, self._rounding)

    def _invoke(self) -> None:
        self._classify(self._held)

    def speed(self) -> dict[str, float]:
        """Return nothing: its speed says nothing about the artifact's."""
        return {}


def graph_of(found: artifact.Artifact) -> ir.Graph:
    """Load the graph from which an artifact was made.

    Raises:
        ExportError: The manifest names none, or it is missing or another one.
    """
    name = found.provenance.get("graph")
    if found.target != "graph" and name is None:
        raise ExportError(
            f"the manifest of {found.path} names no graph to compare with; export it by "
            "`fedkit export`, or save the graph by `edge.export.save_graph`"
        )
    path = found.path if found.target == "graph" else _beside(found, name)
    graph = artifact.load(path)
    wanted = found.provenance.get("graph_sha256", graph.sha256)
    if graph.sha256 != wanted:
        raise ExportError(
            f"{found.path} was not made from the graph {path}: the manifest says sha256 "
            f"{str(wanted)[:12]}, the file has {graph.sha256[:12]}; export it again"
        )
    return graph_file.load_graph(path)


def _beside(found: artifact.Artifact, name: Any) -> Path:
    text = str(name)
    is_name = text.isprintable() and len(text.encode()) <= _LONGEST_NAME
    if not is_name or text in ("", "..") or Path(text).name != text:
        raise ExportError(
            f"the manifest of {found.path} names the graph {text[:60]!r}, and a graph lies beside "
            "its artifact; export it again"
        )
    return found.path.with_name(text)
