"""Which ops of an ONNX file can be read: each one is tried, on what the file gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from fedkit.core.errors import ExportError
from fedkit.graph import from_onnx

_MOST_REASONS = 3


@dataclass(frozen=True)
class OperatorRow:
    """What becomes of the nodes of an operator.

    Attributes:
        op: Its name, with the domain if that is not ONNX's.
        count: How many nodes the file has.
        refused: How many of them cannot be read.
        reasons: Why, and what else can be done: the first few.
    """

    op: str
    count: int
    refused: int = 0
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Support:
    """A file's operators.

    Attributes:
        rows: One for each, in the order of their names.
        problem: Why the file cannot be read, whatever its ops are; nodes are then judged by their
            names alone.
    """

    rows: tuple[OperatorRow, ...]
    problem: str = ""

    @property
    def refused(self) -> int:
        """How many nodes cannot be read."""
        return sum(row.refused for row in self.rows)


def support(model: onnx.ModelProto) -> Support:
    """Try every node of what `from_onnx.opened` returned."""
    problem = ""
    try:
        _, lowering = from_onnx.lowered(model)
        refused: Mapping[int, str] = lowering.refused
    except ExportError as error:
        problem, refused = str(error), from_onnx.unknown_operators(model)
    nodes: dict[str, list[int]] = {}
    for place, node in enumerate(model.graph.node):
        nodes.setdefault(from_onnx.operator(node), []).append(place)
    given = {tensor.name for tensor in model.graph.initializer}
    rows = []
    for name, places in sorted(nodes.items()):
        bad = [place for place in places if place in refused]
        reasons = (f"{refused[at]}; {_way(model.graph.node[at], given)}" for at in bad)
        rows.append(
            OperatorRow(name, len(places), len(bad), tuple(dict.fromkeys(reasons))[:_MOST_REASONS])
        )
    return Support(tuple(rows), problem)


def _way(node: onnx.NodeProto, given: set[str]) -> str:
    """Return what a person can do about a node that is refused."""
    before = next((name for name in node.input if name and name not in given), "")
    cut = f"cut the file off before it (--output {before})" if before else "compute it beforehand"
    return f"{cut}, or replace it in the model"
