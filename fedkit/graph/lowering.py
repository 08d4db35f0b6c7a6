"""What every reader shares: ops under construction, their rules, and diagnostics.

A reader (`from_torch` for torch modules, `from_onnx` for ONNX files) goes through its own kind of
nodes. What reads each of them is in the row of the op that it becomes, in `fedkit.graph.ops`, and
sees a reader as the `fedkit.graph.spec.ModelReader` that this is.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.elements import Moved
from fedkit.graph.layouts import SERIES
from fedkit.graph.operands import Unsupported, require_small
from fedkit.graph.ops.registry import LAYERS
from fedkit.graph.recurrent import KINDS
from fedkit.graph.verify import verify

_MOST_REASONS = 8  # in one message
_SHAPE = re.compile(r"\([\d, ]+\)")
Node = TypeVar("Node")
"""One operation of the model that is read."""


@dataclass
class Lowering(ABC, Generic[Node]):
    """What has been lowered so far; a reader says what it calls its nodes.

    Attributes:
        trains: Whether norms stay what they are and parameters keep their names, as a training plan
            needs it. For exports they are folded.
        parameters: Name of each constant that is a parameter or statistic of the model, by its id.
    """

    trains: bool = False
    parameters: dict[int, str] = field(default_factory=dict)
    tensors: dict[str, ir.Tensor] = field(default_factory=dict)
    ops: list[ir.Op] = field(default_factory=list)
    diagnostics: list[tuple[str, str]] = field(default_factory=list)
    """Where, and why it cannot be lowered."""
    tied: list[tuple[str, ...]] = field(default_factory=list)
    """See `fedkit.graph.ir.Graph`."""

    @abstractmethod
    def name_of(self, node: Node) -> str:
        """Return the name for what a node computes."""

    @abstractmethod
    def source_of(self, node: Node) -> str:
        """Return where a node comes from, for messages."""

    @abstractmethod
    def shape_of(self, node: Node) -> ir.Shape:
        """Return the shape that a node's result has in the graph."""

    @abstractmethod
    def ranks_of(self, node: Node) -> set[int]:
        """Return how many dimensions the model gives the activations that a node reads."""

    def learns(self, value: Any) -> bool:
        """Whether a constant of the model is a parameter, or computed from some."""
        return False

    def shown_by(self, value: Any) -> Any:
        """Return the parameter that a constant shows in another shape, or the constant itself."""
        return value

    def is_last(self, node: Node) -> bool:
        """Whether nothing but a change of shape comes behind a node of a model that trains."""
        return False

    def places(self, node: Node, dropped: int | None = None) -> Mapping[int, Sequence[int]]:
        """Return what a node takes of its first operand, if the reader can try it."""
        raise Unsupported("what it moves is not known before it is run")

    def arranged(self, node: Node) -> Moved:
        """Return which elements of its first operand a node gives, if the reader can try it."""
        raise Unsupported("what it moves is not known before it is run")

    def activation(self, name: str, shape: ir.Shape) -> ir.Tensor:
        """Add an activation."""
        return self._add(ir.Tensor(name, shape))

    def constant(self, node: Node, what: str, array: Any, value: Any = None) -> ir.Tensor:
        """Add a constant of an op, as float32.

        Args:
            node: What becomes the op.
            what: It is to the op.
            array: Its values, in the layout of the graph.
            value: Of the model, that they are made of; a parameter gives them its name.
        """
        with np.errstate(over="ignore"):  # `verify` names what became infinite
            data = np.ascontiguousarray(array, np.float32)
        name, parameter = f"{self.name_of(node)}.{what}", self.parameters.get(id(value), "")
        return self._add(ir.Tensor(name, data.shape, "float32", data, parameter=parameter))

    def _add(self, tensor: ir.Tensor) -> ir.Tensor:
        name = ir.unused_name(tensor.name, self.tensors)
        self.tensors[name] = replace(tensor, name=name)
        return self.tensors[name]

    def op(
        self,
        kind: ir.Kind,
        node: Node,
        inputs: Sequence[ir.Tensor],
        shape: ir.Shape | None = None,
        window: ir.Window | None = None,
        suffix: str = "",
        attributes: ir.Attributes | None = None,
    ) -> ir.Tensor:
        """Add an op; its output has the shape of the node's result unless told otherwise."""
        shape = self.shape_of(node) if shape is None else shape
        require_small(shape)
        out = self.activation(self.name_of(node) + suffix, shape)
        names = tuple(tensor.name for tensor in inputs)
        source = self.source_of(node)
        made = ir.Op(kind, names, (out.name,), window, source=source, attributes=attributes)
        self.ops.append(made)
        return out

    def undo(self, ops: int, tensors: int) -> None:
        """Forget what was added beyond so many ops and tensors."""
        del self.ops[ops:]
        for name in list(self.tensors)[tensors:]:
            del self.tensors[name]

    def raise_diagnostics(self) -> None:
        """Refuse the model, with all diagnostics, if there are any; equal reasons are one line.

        Raises:
            ExportError: There are.
        """
        if reasons := self.reasons():
            listed, supported = "\n  ".join(reasons), (*LAYERS, *map(str.upper, KINDS))
            raise ExportError(
                f"{len(self.diagnostics)} op(s) of the model cannot be exported:\n  {listed}\n"
                f"replace them by supported layers: {', '.join(supported)}"
            )

    def reasons(self) -> list[str]:
        """Return a line for each reason that was found, with the places where it holds."""
        places: dict[str, list[str]] = {}
        first: dict[str, str] = {}
        for where, reason in self.diagnostics:
            kind = _SHAPE.sub("", reason)  # the same of another shape is the same reason
            places.setdefault(kind, []).append(where)
            first.setdefault(kind, reason)
        lines = [f"{_listed(where)}: {first[kind]}" for kind, where in places.items()]
        if len(lines) > _MOST_REASONS:
            lines[_MOST_REASONS - 1 :] = [f"and {len(lines) - _MOST_REASONS + 1} other reasons"]
        return lines

    def graph(self, inputs: tuple[str, ...], outputs: Sequence[tuple[Any, int]]) -> ir.Graph:
        """Return the graph, verified.

        Args:
            inputs: Names of its inputs.
            outputs: Values, and how many dimensions the model gives each.

        Raises:
            ExportError: No artifact can have such an output, or a rule is broken.
        """
        names = tuple(_output(value).name for value, _ in outputs)
        _check_several(inputs, names)
        series = tuple(value.name for value, rank in outputs if rank == SERIES)
        tied = tuple(self.tied)
        graph = ir.Graph(self.tensors, tuple(self.ops), inputs, names, series=series, tied=tied)
        graph = ir.needed(graph)
        if not graph.ops:
            raise ExportError("the model computes nothing: its output is its input")
        verify(graph)
        return graph


def _check_several(inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Refuse outputs that are no values of their own; each is one in the file of an artifact."""
    for number, name in enumerate(outputs):
        if name in outputs[:number]:
            raise ExportError(
                f"the model returns {name!r} twice, as output {outputs.index(name)} and as output "
                f"{number}; return it once, or choose outputs of a file (--output)"
            )
        if name in inputs and len(outputs) > 1:
            raise ExportError(
                f"output {number} of the model is its input {name!r}; leave it out of what it "
                "returns, or choose outputs of a file (--output)"
            )


def _listed(places: Sequence[str]) -> str:
    more = len(places) - 1
    return places[0] if not more else f"{places[0]} and {more} other{'s' * (more > 1)}"


def _output(value: Any) -> ir.Tensor:
    if not isinstance(value, ir.Tensor):
        raise ExportError("the model's output does not depend on its input; nothing to export")
    return value
