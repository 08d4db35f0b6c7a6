"""Where in one arena each buffer lies, so that those needed at different times share bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedkit.graph import ir


@dataclass(frozen=True)
class Buffer:
    """Bytes that some steps need.

    Attributes:
        size: In bytes.
        first: Number of the first step that uses it.
        last: Number of the last one.
    """

    size: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Return whether some step needs both."""
        return self.first <= other.last and other.first <= self.last


def plan(buffers: Mapping[str, Buffer], alignment: int) -> tuple[dict[str, int], int]:
    """Place buffers, the largest first, each as low as those it meets allow.

    >>> plan({"a": Buffer(8, 0, 1), "b": Buffer(6, 1, 2), "c": Buffer(5, 2, 3)}, 4)
    ({'a': 0, 'b': 8, 'c': 0}, 14)

    Source: Pisarchyk and Lee, "Efficient memory management for deep neural net inference" (2020),
    greedy by size.

    Args:
        buffers: Name -> buffer.
        alignment: What each offset is a multiple of.

    Returns:
        Name -> offset in bytes, and the bytes of the arena.
    """
    offsets: dict[str, int] = {}
    for name in sorted(buffers, key=lambda name: (-buffers[name].size, name)):
        offset = 0
        for other in sorted(offsets, key=lambda other: offsets[other]):
            taken = offsets[other], offsets[other] + buffers[other].size
            if buffers[name].meets(buffers[other]) and offset + buffers[name].size > taken[0]:
                offset = max(offset, -(-taken[1] // alignment) * alignment)
        offsets[name] = offset
    total = max((offsets[name] + buffers[name].size for name in buffers), default=0)
    return {name: offsets[name] for name in buffers}, total


def activation_bytes(graph: ir.Graph) -> int:
    """Return the least memory in which a runtime can hold an int8 graph's activations.

    Each lives from the op that writes it to the last that reads it, and has a place of its own in
    that time; nothing is computed in place. What kernels need beside is not in it.
    """
    end = len(graph.ops)
    first = dict.fromkeys(graph.inputs, 0)
    last = dict.fromkeys(graph.outputs, end)
    for number, op in enumerate(graph.ops):
        first[op.output] = number
        for name in (*op.inputs, op.output):
            last[name] = max(number, last.get(name, 0))
    sizes = {name: math.prod(graph.tensors[name].shape) for name in first}
    buffers = {name: Buffer(size, first[name], last[name]) for name, size in sizes.items()}
    return plan(buffers, 1)[1]
