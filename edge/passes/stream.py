"""The residual stream of a Transformer: values that are sums of what blocks write.

All values of a stream have their mean over the channels taken off at once, where each layer that
writes it writes none and every norm that reads it takes the mean off anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from edge.passes.affines import affine_of
from edge.passes.forward import shared_with
from edge.passes.unread import constant
from fedkit.graph import ir
from fedkit.graph.ops.concat import axis_of
from fedkit.graph.ops.norms import OfPlace
from fedkit.graph.ops.transpose import Order
from fedkit.graph.places import places_of

NORM = "channel_norm"
TABLE = "embedding"
MIXING = ("conv2d", "linear")
_ZERO = 1e-5
"""Of the size of numbers: a sum of them below this is none."""

_MOST_GROWTH = 1.05
"""Of the weights that are not zero, of a layer that writes a stream."""


@dataclass
class Stream:
    """Values that are sums of each other, all with the same channels.

    Attributes:
        channels: Of each.
        values: Their names.
        writers: Layers that write some, and what scales values of one.
        inner: Ops that make values of others.
        norms: Norms over the channels that read some.
        blind: Layers that read some and do not see their mean.
        problems: Why it cannot be another one.
    """

    channels: int
    values: set[str] = field(default_factory=set)
    writers: list[ir.Op] = field(default_factory=list)
    inner: list[ir.Op] = field(default_factory=list)
    norms: list[ir.Op] = field(default_factory=list)
    blind: list[ir.Op] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def streams(graph: ir.Graph) -> Iterator[Stream]:
    """Yield each stream that a norm over the channels reads, once."""
    seen: set[str] = set()
    for op in graph.ops:
        if op.kind == NORM and op.inputs[0] not in seen:
            found = _Walk(graph, op.inputs[0]).stream
            seen |= found.values
            yield found


class _Walk:
    """Find all values of the stream that a value is of."""

    def __init__(self, graph: ir.Graph, start: str) -> None:
        self.graph = graph
        self.stream = Stream(graph.tensors[start].shape[-1])
        self.todo = [start]
        while self.todo:
            name = self.todo.pop()
            if name not in self.stream.values:
                self.stream.values.add(name)
                self._write(name)
                self._read(name)
        self._find_shared()
        self._name_order()

    def _write(self, name: str) -> None:
        """Look at what writes a value."""
        stream, op = self.stream, self.graph.producer(name)
        if op is None:
            stream.problems.append(f"the stream begins at the input {name!r} of the model")
        elif op.kind == TABLE or (op.kind in MIXING and op.activation == "none"):
            self._is_new(stream.writers, op)
        elif (parts := self._parts(op)) is not None:
            if self._is_new(stream.inner, op):
                self.todo += parts
        elif op.kind in (NORM, "group_norm"):
            self._is_new(stream.writers, op)
        else:
            stream.problems.append(f"{named_op(op)} writes the stream, and is no linear layer")

    def _read(self, name: str) -> None:
        """Look at what reads a value."""
        stream, graph = self.stream, self.graph
        if name in graph.outputs:
            stream.problems.append(f"{name!r} of the stream is an output of the model")
        for op in graph.ops:
            if name not in op.inputs:
                continue
            if op.kind == NORM:
                self._is_new(stream.norms, op)
            elif self._parts(op) is not None:
                self.todo.append(op.output)
            elif op.kind in MIXING and _is_blind(graph, op):
                self._is_new(stream.blind, op)
            else:
                stream.problems.append(f"{named_op(op)} reads the stream without a norm before it")

    @staticmethod
    def _is_new(ops: list[ir.Op], op: ir.Op) -> bool:
        is_new = all(each.output != op.output for each in ops)
        if is_new:
            ops.append(op)
        return is_new

    def _parts(self, op: ir.Op) -> list[str] | None:
        """Return the values that a value of a stream is made of, None if it is made otherwise."""
        tensors = self.graph.tensors
        parts = [name for name in op.inputs if tensors[name].data is None]
        has_channels = all(
            tensors[n].shape[-1] == self.stream.channels for n in (*parts, op.output)
        )
        return parts if has_channels and _keeps_channels(self.graph, op) else None

    def _find_shared(self) -> None:
        """Find a writer whose weights are those of a layer that is none."""
        writers = {op.output for op in self.stream.writers}
        for op in self.stream.writers:
            other = shared_with(self.graph, op) if op.kind in (TABLE, *MIXING) else None
            if other is not None and other.output not in writers:
                self.stream.problems.append(
                    f"{named_op(op)} writes the stream, and shares its weights with "
                    f"{named_op(other)}"
                )

    def _name_order(self) -> None:
        """Say by its name where norms stand that are not before what blocks read."""
        writers = [op for op in self.stream.writers if op.kind in (NORM, "group_norm")]
        behind = [op for op in self.stream.norms if self._goes_on(op)]
        if not writers and not behind:
            return
        mixed = writers and any(map(self._is_passed_by, self.stream.values))
        first = (writers or behind)[0]
        self.stream.problems.insert(
            0,
            f"{'Mix-LN' if mixed else 'Post-LN'}: what {named_op(first)} gives goes on in a "
            "residual stream, and has a mean of its own",
        )

    def _goes_on(self, norm: ir.Op) -> bool:
        """Whether the result of a norm is added to what is computed of it."""
        return any(norm.output in op.inputs and op.kind == "add" for op in self.graph.ops)

    def _is_passed_by(self, name: str) -> bool:
        """Whether a value goes on beside the norm that reads it."""
        kinds = [op.kind for op in self.graph.ops if name in op.inputs]
        return NORM in kinds and len(kinds) > 1


def _keeps_channels(graph: ir.Graph, op: ir.Op) -> bool:
    """Whether each channel of an op's result is a sum of that channel of values, and constants."""
    if op.activation != "none":
        return False
    if op.kind in ("add", "sub", "pad", "mean", "avg_pool2d", "sum_pool2d"):
        return True
    if op.kind == "affine":
        affine = affine_of(graph, op)
        return affine is not None and bool((affine.scale == affine.scale[0]).all())
    if op.kind == "take":
        return places_of(op).channels is None
    if op.kind in ("concat", "concat_along"):
        return axis_of(op) not in (-1, 3)
    if op.kind == "transpose":
        return isinstance(op.attributes, Order) and op.attributes.axes[-1] == 3
    return op.kind == "reshape"


def _is_blind(graph: ir.Graph, op: ir.Op) -> bool:
    """Whether a layer gives the same if all channels of a place grow by one number."""
    weight = graph.constant(op.inputs[1]).astype(np.float64)
    has_none = np.abs(weight.sum(-1)).max() <= _ZERO * np.abs(weight).sum(-1).max()
    return bool(has_none) and not any(op.window.padding if op.window else ())


def named_op(op: ir.Op) -> str:
    """Return kind and module of an op, for people."""
    return f"{op.kind} of module {op.source!r}"


def norm_of(op: ir.Op) -> OfPlace:
    """Return how a norm over the channels of each place normalises."""
    assert isinstance(op.attributes, OfPlace)  # the verifier's rule
    return op.attributes


def named(stream: Stream) -> str:
    """Return the modules of the norms that read a stream, for people."""
    first, *others = dict.fromkeys(op.source or op.output for op in stream.norms)
    return f"{first} and {len(others)} other norm{'s' * (len(others) > 1)}" if others else first


def projected(
    graph: ir.Graph, stream: Stream, onto: ir.Array
) -> tuple[dict[str, ir.Op], list[ir.Tensor]] | str:
    """Return the ops of a stream whose channels are others, and their constants; or why not.

    Args:
        graph: The graph.
        stream: Without problems.
        onto: float64 [channels, channels then]; what the present ones are multiplied by.
    """
    changed: dict[str, ir.Op] = {}
    tensors: list[ir.Tensor] = []
    for op in stream.writers:
        weight = graph.constant(op.inputs[1])
        turned = _turned(graph, op, onto)
        was, will = np.count_nonzero(weight), np.count_nonzero(turned[0])
        if will > _MOST_GROWTH * was:
            return f"layer {op.source!r} is pruned to {was} weights, and would have {will}"
        made = [
            constant(graph, f"{op.output}.{what}_of_stream", values)
            for what, values in zip(("weight", "bias"), turned, strict=False)
        ]
        changed[op.output] = replace(op, inputs=(op.inputs[0], *(each.name for each in made)))
        tensors += made
    for op in stream.inner:
        names = list(op.inputs)
        for number, name in enumerate(op.inputs):
            data = graph.tensors[name].data
            if data is not None:
                made_of = _constant_on(graph, op, number, data, onto)
                names[number] = made_of.name
                tensors.append(made_of)
        changed[op.output] = replace(op, inputs=tuple(names))
    return changed, tensors


def _turned(graph: ir.Graph, writer: ir.Op, onto: ir.Array) -> list[ir.Array]:
    """Return the constants of what writes a stream, for other channels."""
    weight, *bias = (graph.constant(name).astype(np.float64) for name in writer.inputs[1:])
    turned = weight @ onto if writer.kind == TABLE else np.tensordot(onto, weight, (0, 0))
    turned[np.abs(turned) <= np.finfo(np.float32).eps * np.abs(weight).max(initial=0)] = 0
    return [turned, *(each @ onto for each in bias)]


def _constant_on(
    graph: ir.Graph, op: ir.Op, number: int, data: ir.Array, onto: ir.Array
) -> ir.Tensor:
    values = data.astype(np.float64)
    if op.kind == "affine" and number == 1:
        turned = np.full(onto.shape[1], values[0])
    else:
        turned = np.broadcast_to(values, (*values.shape[:-1], len(onto))) @ onto
    return constant(graph, f"{op.output}.operand_of_stream{number}", turned)
