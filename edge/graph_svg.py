"""A graph as a picture: its ops in layers from the inputs down, and what runs between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from edge import svg
from fedkit.graph import ir

_WIDTH, _HEIGHT, _ACROSS, _DOWN = 250, 46, 280, 86
"""Pixels of a box, and from one to the next."""

_LONGEST = 42
"""Characters of a line in a box."""

_STYLE = """
text { text-anchor: middle; }
rect { fill: #f3f3f3; stroke: #777; }
.weights rect { fill: #d6e9f8; stroke: #0072B2; }
path { fill: none; stroke: #777; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
  rect { fill: #20242a; } .weights rect { fill: #16344c; }
}
"""


@dataclass(frozen=True)
class _Box:
    name: str
    lines: tuple[str, str]
    about: str
    has_weights: bool


def picture(graph: ir.Graph) -> str:
    """Return SVG: a box per input and per op, with its kind and shape; blue where it has weights.

    What an op is of the model stands in the box's title, which a browser shows under the pointer.
    Text of others is cut and escaped.
    """
    boxes = {name: _input(graph, name) for name in graph.inputs}
    boxes |= {op.output: _box(graph, op) for op in graph.ops}
    places = _places(graph)
    width = max(x for x, _ in places.values()) + _WIDTH + 110
    height = max(y for _, y in places.values()) + _HEIGHT + 15
    lines = [_line(places, a, op.output) for op in graph.ops for a in op.inputs if a in places]
    drawn = [_drawn(box, *places[name]) for name, box in boxes.items()]
    label = f"graph of {len(graph.ops)} ops"
    return svg.document(width, height, label, _STYLE, [*lines, *drawn])


def _input(graph: ir.Graph, name: str) -> _Box:
    return _Box(name, ("input", _shape(graph, name)), name, False)


def _box(graph: ir.Graph, op: ir.Op) -> _Box:
    kind = op.kind if op.activation == "none" else f"{op.kind} + {op.activation}"
    constants = [name for name in op.inputs if graph.tensors[name].data is not None]
    weights = " x ".join(map(str, graph.tensors[constants[0]].shape)) if constants else ""
    about = f"{op.output}; module {op.source or 'unknown'}"
    second = _shape(graph, op.output) + (f"; weights {weights}" if weights else "")
    return _Box(op.output, (kind, second), about, bool(constants))


def _shape(graph: ir.Graph, name: str) -> str:
    return " x ".join(map(str, graph.tensors[name].shape[1:]))


def _places(graph: ir.Graph) -> dict[str, tuple[int, int]]:
    """Return the upper left corner of each box: below all that it reads, side by side in order."""
    layers: dict[str, int] = dict.fromkeys(graph.inputs, 0)
    for op in graph.ops:
        layers[op.output] = 1 + max((layers[a] for a in op.inputs if a in layers), default=0)
    rows: dict[int, list[str]] = defaultdict(list)
    for name, layer in layers.items():
        rows[layer].append(name)
    widest = max(map(len, rows.values()))
    return {
        name: (15 + (widest - len(row)) * _ACROSS // 2 + number * _ACROSS, 15 + layer * _DOWN)
        for layer, row in rows.items()
        for number, name in enumerate(row)
    }


def _line(places: Mapping[str, tuple[int, int]], start: str, end: str) -> str:
    """Draw a line between two boxes; one that skips layers goes around what is between them."""
    (x, y), (to_x, to_y) = places[start], places[end]
    begin, finish = (x + _WIDTH // 2, y + _HEIGHT), (to_x + _WIDTH // 2, to_y)
    if to_y - y <= _DOWN:
        middle = (begin[1] + finish[1]) // 2
        bend = f"C {begin[0]} {middle}, {finish[0]} {middle}, "
    else:
        side = max(x, to_x) + _WIDTH + 80
        bend = f"C {side} {begin[1] + 40}, {side} {finish[1] - 40}, "
    return f'<path d="M {begin[0]} {begin[1]} {bend}{finish[0]} {finish[1]}"/>\n'


def _drawn(box: _Box, x: int, y: int) -> str:
    middle, kind = x + _WIDTH // 2, "weights" if box.has_weights else "moves"
    first, second = (svg.text(line, _LONGEST) for line in box.lines)
    return (
        f'<g class="{kind}"><title>{svg.text(box.about, 200)}</title>'
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="5"/>'
        f'<text x="{middle}" y="{y + 19}">{first}</text>'
        f'<text class="small" x="{middle}" y="{y + 36}">{second}</text></g>\n'
    )
