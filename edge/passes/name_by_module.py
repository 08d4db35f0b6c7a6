"""Give tensors the names of the modules that they come from, as viewers such as Netron show them.

Inputs and outputs keep theirs: manifests, and programs that read a file, know them by these.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from fedkit.graph import ir
from fedkit.graph.ops.registry import WEIGHTED

_NOT_PLAIN = re.compile(r"[^A-Za-z0-9_.:/-]")
_LONGEST = 120
_CONSTANTS = ("weight", "bias")
"""Of an op with weights, in the order in which it reads them."""


def name_by_module(graph: ir.Graph) -> ir.Graph:
    """Return a graph of the same numbers in which names say where each tensor comes from.

    An activation is called like `layer1.0.conv1/conv2d_relu`: torch module or ONNX node, then what
    the op does; constants like `layer1.0.conv1/weight`. Names are ASCII, and no two are alike: the
    second of one name ends in `_2`.
    """
    names = {name: name for name in (*graph.inputs, *graph.outputs)}
    free = _FreeNames(tuple(names))
    for old, wanted in _wanted(graph):
        if old not in names:
            names[old] = free.like(wanted)
    for old in graph.tensors:
        names.setdefault(old, old)
    tensors = {names[old]: replace(each, name=names[old]) for old, each in graph.tensors.items()}
    ops = tuple(
        replace(
            op,
            inputs=tuple(names[each] for each in op.inputs),
            outputs=tuple(names[each] for each in op.outputs),
        )
        for op in graph.ops
    )
    return replace(graph, tensors=tensors, ops=ops, origin=None)


def _wanted(graph: ir.Graph) -> Iterator[tuple[str, str]]:
    """Yield the old name of each tensor that an op makes or brings, and what would name it."""
    for op in graph.ops:
        kind = op.kind if op.activation == "none" else f"{op.kind}_{op.activation}"
        yield op.output, _joined(op.source, kind)
        constants = [name for name in op.inputs if graph.tensors[name].data is not None]
        told = _CONSTANTS if op.kind in WEIGHTED else [f"{op.kind}_constant"] * len(constants)
        for name, what in zip(constants, told, strict=True):
            yield name, _joined(op.source, what)


def _joined(source: str, what: str) -> str:
    place = _NOT_PLAIN.sub("_", source.strip("()"))[-_LONGEST:].strip("/")
    return f"{place}/{what}" if place else what


class _FreeNames:
    """Names that no tensor has, and that no port begins with: emitters add `.scale` and such."""

    def __init__(self, ports: tuple[str, ...]) -> None:
        self._ports, self._taken = ports, set(ports)
        self._counts: Counter[str] = Counter()

    def like(self, wanted: str) -> str:
        """Return `wanted`, or that with a number behind it."""
        while True:
            self._counts[wanted] += 1
            count = self._counts[wanted]
            found = wanted if count == 1 else f"{wanted}_{count}"
            begins = any(port.startswith(f"{found}.") for port in self._ports)
            if found not in self._taken and not begins:
                self._taken.add(found)
                return found
