"""Which places of a value go where: what a model moves along single axes is a list for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from fedkit.graph import ir
from fedkit.graph.elements import Moved, Numbers
from fedkit.graph.layouts import map_axis, model_shape
from fedkit.graph.operands import Unsupported, activation, rank_of, require
from fedkit.graph.spec import ModelReader, OnnxNode

List = tuple[int, ...] | None


@dataclass(frozen=True)
class Places(ir.Attributes):
    """Place i of a result is place list[i] of what is read; None where an axis stays as it is.

    Features have channels alone.
    """

    rows: List = None
    columns: List = None
    channels: List = None

    @property
    def lists(self) -> tuple[List, List, List]:
        """Of the axes of [n, rows, columns, channels], in that order."""
        return self.rows, self.columns, self.channels


def places_of(op: ir.Op) -> Places:
    """Return the lists of an op that takes."""
    assert isinstance(op.attributes, Places)  # the verifier's rule
    return op.attributes


def sizes_of(shape: ir.Shape) -> tuple[int, int, int]:
    """Return rows, columns and channels of a value in the graph."""
    rows, columns = shape[1:3] if len(shape) == 4 else (1, 1)
    return rows, columns, shape[-1]


def taken_shape(shape: ir.Shape, places: Places) -> ir.Shape:
    """Return the shape of what lists take of a value of a shape."""
    pairs = zip(sizes_of(shape), places.lists, strict=True)
    rows, columns, channels = (size if each is None else len(each) for size, each in pairs)
    return (1, rows, columns, channels) if len(shape) == 4 else (1, channels)


def take(
    reader: ModelReader,
    node: Any,
    x: ir.Tensor,
    lists: Mapping[int, Iterable[int]],
    suffix: str = "",
) -> ir.Tensor:
    """Add what takes places of a value; nothing if all stay where they are.

    Args:
        reader: What reads the model.
        node: The node that does so.
        x: The value.
        lists: Dimension of [n, c, h, w] or [n, f], not 0 -> its places.
        suffix: Of the name for what is taken.

    Raises:
        Unsupported: A list is empty.
    """
    places = listed(x.shape, lists)
    if places == Places():
        return x
    shape = taken_shape(x.shape, places)
    return reader.op("take", node, [x], shape, suffix=suffix, attributes=places)


def moved(
    reader: ModelReader,
    node: OnnxNode,
    places: Callable[[int, int], Sequence[int] | NDArray[Any]],
    suffix: str = "",
) -> ir.Tensor:
    """Add what takes places of a node's first operand.

    Args:
        reader: What reads the file.
        node: The node.
        places: (dimension of the file, its size) -> its places; it is tried with two examples.
        suffix: See `take`.
    """
    x, rank = activation(node.operand(0)), rank_of(reader, node)
    require_examples([int(place) for place in places(0, 2)])
    sizes = enumerate(model_shape(x.shape, rank), start=1)
    lists = {map_axis(axis, rank): places(axis, size) for axis, size in sizes}
    return take(reader, node, x, lists, suffix)


def listed(shape: ir.Shape, lists: Mapping[int, Iterable[int]]) -> Places:
    """Return lists by dimension of [n, c, h, w] or [n, f], without those where all stays.

    Raises:
        Unsupported: A list is empty.
    """
    found = [tuple(map(int, lists[axis])) if axis in lists else None for axis in (2, 3, 1)]
    require(() not in found, "it leaves nothing of a dimension; what is left must have a size of 1")
    moved = [
        None if each == tuple(range(size)) else each
        for size, each in zip(sizes_of(shape), found, strict=True)
    ]
    return Places(*moved)


def one_of(moved: Moved, numbers: Numbers, count: int) -> Moved:
    """Return one example of what became of `moved.of_several(count)`.

    Raises:
        Unsupported: Examples were mixed, or the one that there is does not stay in front.
    """
    if count == 1:
        require(numbers.shape[:1] == (1,), EXAMPLES_MOVE)
        return moved.by(lambda _: numbers[0])
    apart = moved.apart(numbers)
    if apart is None:
        raise Unsupported(EXAMPLES_MOVE)
    return apart


def require_examples(places: Sequence[int]) -> None:
    """Raise `Unsupported` unless of two examples the first and the second stay what they are."""
    require(list(places) == [0, 1], EXAMPLES_MOVE)


EXAMPLES_MOVE = "it moves along dimension 0, which holds the examples; each stays by itself"

MANY_EXAMPLES = 2**20
"""What ends at so many examples ends at none of any batch."""
