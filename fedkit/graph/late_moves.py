"""Move values as late as possible: what is done with each value by itself goes before.

Readers turn a value for an op and turn its result back, as torch's `Linear` is over the last axis
and the graph's channels are. Where nothing between two such ops looks at more than one place, both
turns are none: so a chain of token layers is one of convolutions, with no move between.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedkit.graph import ir
from fedkit.graph.arrange import Step, steps_of
from fedkit.graph.elements import Moved, Numbers
from fedkit.graph.operands import Unsupported
from fedkit.graph.ops.registry import spec_of

_MOVES = ("transpose", "reshape", "flatten_nchw", "take")
_AT_ONCE = ("reshape", "take")
"""Moves that stay where they are: nothing is computed of what is not taken."""
_FEWEST = 2
"""Turns that can be none together."""


@dataclass(frozen=True, eq=False)
class _Value:
    """A value of the graph: elements of what an op writes.

    Attributes:
        base: What the op writes.
        numbers: Which of its elements, in the shape of the value; None: it is the base.
        source: Of what moves it.
    """

    base: str
    numbers: Numbers | None = None
    source: str = ""


def move_late(graph: ir.Graph) -> ir.Graph:
    """Return a float graph with its moves behind the ops that are done at each place by itself.

    A graph that has no fewer moves then, and no more of what folds, stays as it is.
    """
    if sum(op.kind == "transpose" for op in graph.ops) < _FEWEST:
        return graph
    found = (_walked(graph, joins) for joins in (False, True))
    return min((graph, *(each for each in found if each is not None)), key=_moves)


def _walked(graph: ir.Graph, joins: bool) -> ir.Graph | None:
    walk = _Walk(graph, joins)
    for op in graph.ops:
        walk.take(op)
    return walk.finish()


def _moves(graph: ir.Graph) -> tuple[int, int, int]:
    """Return how many moves reorder, how many only say a shape, and how many ops do not fold."""
    counts = Counter(op.kind for op in graph.ops)
    reordering = sum(counts[kind] for kind in _MOVES if kind != "reshape")
    return reordering, counts["reshape"], len(graph.ops) - counts["affine"]


class _Walk:
    """The new graph under construction.

    Args:
        graph: The old one.
        joins: Whether an op on two values that are moved otherwise brings one into the order of the
            other, and not both into that of the model. Which is better, what follows tells.
    """

    def __init__(self, graph: ir.Graph, joins: bool) -> None:
        self.graph, self.joins = graph, joins
        self.tensors = dict(graph.tensors)
        self.ops: list[ir.Op] = []
        self.values = {name: _Value(name) for name in graph.inputs}
        self.laid: dict[tuple[str, ir.Shape, bytes], str] = {}
        self.shown: dict[str, str] = {}  # what a reshape gives -> what it reads

    def take(self, op: ir.Op) -> None:
        """Add what becomes of an op."""
        if op.kind in _MOVES:
            self._move(op)
        elif not (spec_of(op).of_one_place and self._at_each(op)):
            self._plain(op)

    def finish(self) -> ir.Graph | None:
        """Return the graph; None if an output would need another name."""
        for name in self.graph.outputs:
            value = self.values[name]
            steps = self._steps(value)
            if value.base != name and not steps and not self._rename(value.base, name):
                return None
            self._add_steps(value, steps, name)
        ops = _read(self.ops, set(self.graph.outputs))
        kept = {*self.graph.inputs}.union(*((*op.inputs, *op.outputs) for op in ops))
        tensors = {name: each for name, each in self.tensors.items() if name in kept}
        return replace(self.graph, tensors=tensors, ops=tuple(ops))

    def _rename(self, old: str, new: str) -> bool:
        """Let an op write an output of the graph under the name of that, if it can."""
        taken = {*self.graph.inputs, *self.graph.outputs}
        written = {op.output for op in self.ops}
        of_outputs = [self.values[name].base for name in self.graph.outputs]
        is_free = old not in taken and new not in written and of_outputs.count(old) == 1
        if not is_free or old not in written:
            return False
        self.tensors[new] = replace(self.tensors.pop(old), name=new)

        def named(names: Sequence[str]) -> tuple[str, ...]:
            return tuple(new if name == old else name for name in names)

        self.ops = [
            replace(op, inputs=named(op.inputs), outputs=named(op.outputs)) for op in self.ops
        ]
        return True

    def _numbers(self, value: _Value) -> Numbers:
        if value.numbers is not None:
            return value.numbers
        return _counted(self.tensors[value.base].shape)

    def _steps(self, value: _Value) -> list[Step]:
        if value.numbers is None:
            return []
        return _steps_of(self.tensors[value.base].shape, value.numbers)

    def _move(self, op: ir.Op) -> None:
        value = self.values[op.inputs[0]]
        numbers = np.asarray(spec_of(op).real(op, self.graph, self._numbers(value)), np.int64)
        moved = _Value(value.base, numbers, op.source)
        try:
            steps = self._as_tokens(moved) or self._steps(moved)
        except Unsupported:
            self._plain(op)
            return
        base = value.base
        while steps and steps[0].kind in _AT_ONCE:
            base, steps = self._add(steps[0], base, op.source), steps[1:]
        numbers = _counted(self.tensors[base].shape)
        for step in steps:
            numbers = _stepped(numbers, step)
        self.values[op.output] = _Value(base, numbers if steps else None, op.source)

    def _as_tokens(self, value: _Value) -> list[Step] | None:
        """Return the steps to a series of what its base has in rows, if they can begin by that."""
        shape = self.tensors[value.base].shape
        assert value.numbers is not None  # it is moved
        is_series = value.numbers.shape[1] == 1 and value.numbers.ndim == len(shape) == 4
        if not is_series or 1 in shape[1:3]:
            return None
        row = Step("reshape", (1, 1, shape[1] * shape[2], shape[3]))
        steps = _steps_of(row.shape, value.numbers)
        return [row, *steps] if 1 + len(steps) <= len(self._steps(value)) else None

    def _at_each(self, op: ir.Op) -> bool:
        """Add an op before the moves of what it reads, if it can be there."""
        names = [name for name in op.inputs if self.graph.tensors[name].data is None]
        values = [self.values[name] for name in names]
        shape = self.graph.tensors[op.output].shape
        same = {self.graph.tensors[name].shape == shape for name in names}
        moved = [value for value in values if value.numbers is not None]
        if not moved or same != {True}:
            return False
        first, base = self._numbers(moved[0]), self.tensors[moved[0].base].shape
        laid = [self._in_order_of(value, first, base) for value in values]
        if not self.joins and not all(map(self._is_in_order, laid)):
            return False
        operands = iter([self._laid(each) for each in laid])
        constants = {
            name: _scattered(self._whole(op, name, shape), first, base)
            for name in op.inputs
            if name not in names
        }
        inputs = [each if each in constants else next(operands) for each in op.inputs]
        result = self._write(op, inputs, constants, base)
        self.values[op.output] = _Value(result, first, moved[0].source)
        return True

    def _is_in_order(self, value: _Value) -> bool:
        """Whether at most a shape must be said anew."""
        return all(step.kind == "reshape" for step in self._steps(value))

    def _whole(self, op: ir.Op, name: str, shape: ir.Shape) -> ir.Array:
        """Return a constant operand for each element of a result."""
        return np.broadcast_to(self.graph.constant(name), shape)

    def _in_order_of(self, value: _Value, numbers: Numbers, shape: ir.Shape) -> _Value:
        """Return a value in the order of another's base, which has that shape."""
        laid = _unmoved(self._numbers(value), numbers, shape)
        is_base = shape == self.tensors[value.base].shape and np.array_equal(laid, _counted(shape))
        return replace(value, numbers=None if is_base else laid)

    def _write(
        self, op: ir.Op, inputs: Sequence[str], constants: Mapping[str, ir.Array], shape: ir.Shape
    ) -> str:
        """Add an op on bases; return the name of its result."""
        parts = _arithmetic(op, [constants.get(name, name) for name in inputs])
        before = ""
        for number, (kind, operands) in enumerate(parts, start=1):
            is_own = number == len(parts) and op.output not in self.graph.outputs
            out = op.output if is_own else self._name(f"{op.output}.unmoved")
            of_each = shape[-1:] if kind == "affine" else None
            named = enumerate([before if each is None else each for each in operands])
            read = [
                x if isinstance(x, str) else self._constant(f"{out}.operand{place}", x, of_each)
                for place, x in named
            ]
            self.tensors[out] = ir.Tensor(out, shape)
            self.ops.append(replace(op, kind=kind, inputs=tuple(read), outputs=(out,)))
            before = out
        return before

    def _constant(self, name: str, data: ir.Array, shape: ir.Shape | None) -> str:
        own = self._name(name)
        found = data if shape is None else np.broadcast_to(data.ravel(), shape)
        self.tensors[own] = ir.Tensor(own, found.shape, "float32", found.astype(np.float32))
        return own

    def _plain(self, op: ir.Op) -> None:
        """Add an op as it is, behind the moves of what it reads."""
        inputs = tuple(
            self._laid(self.values[name]) if name in self.values else name for name in op.inputs
        )
        self.ops.append(replace(op, inputs=inputs))
        self.values[op.output] = _Value(op.output)

    def _laid(self, value: _Value) -> str:
        """Return the name of a value once it is moved."""
        if value.numbers is None:
            return value.base
        key = value.base, value.numbers.shape, value.numbers.tobytes()
        if key not in self.laid:
            self.laid[key] = self._add_steps(value, self._steps(value))
        return self.laid[key]

    def _add_steps(self, value: _Value, steps: Sequence[Step], name: str = "") -> str:
        """Add what moves a value, the last of it under a name of its own if there is one."""
        x = value.base
        for number, step in enumerate(steps, start=1):
            is_last = number == len(steps)
            x = self._add(step, x, value.source, name if is_last else "")
        return x

    def _add(self, step: Step, x: str, source: str, name: str = "") -> str:
        x = self.shown.get(x, x) if step.kind == "reshape" else x
        if not name and step == Step("reshape", self.tensors[x].shape):
            return x
        out = name or self._name(f"{x}.moved")
        if step.kind == "reshape":
            self.shown[out] = x
        self.tensors[out] = ir.Tensor(out, step.shape)
        self.ops.append(ir.Op(step.kind, (x,), (out,), source=source, attributes=step.attributes))
        return out

    def _name(self, name: str) -> str:
        return ir.unused_name(name, self.tensors)


Part = tuple[ir.Kind, list[str | ir.Array | None]]
"""Kind and operands of an op; None: what the part before gives."""


def _arithmetic(op: ir.Op, operands: Sequence[str | ir.Array]) -> list[Part]:
    """Return what an op is on bases: with a constant per channel an affine op, which folds."""
    constants = [each for each in operands if not isinstance(each, str)]
    if not constants:
        return [(op.kind, list(operands))]
    x = next(each for each in operands if isinstance(each, str))
    is_per_channel = all(math.prod(each.shape[:-1]) == 1 for each in constants)
    if op.kind == "affine":
        scale, shift = constants
        return [("affine", [x, scale, shift])] if is_per_channel else _scaled(x, scale, shift)
    (value,) = constants
    if not is_per_channel:
        return [(op.kind, list(operands))]
    one, none = np.ones_like(value), np.zeros_like(value)
    if op.kind == "mul":
        return [("affine", [x, value, none])]
    if op.kind == "add":
        return [("affine", [x, one, value])]
    is_first = not isinstance(operands[0], str)
    return [("affine", [x, -one, value]) if is_first else ("affine", [x, one, -value])]


def _scaled(x: str, scale: ir.Array, shift: ir.Array) -> list[Part]:
    """Return a scale and a shift that are not per channel."""
    parts: list[Part] = [("mul", [x, scale])] if (scale != 1).any() else []
    if (shift != 0).any() or not parts:
        parts.append(("add", [None if parts else x, shift]))
    return parts


def _steps_of(shape: ir.Shape, numbers: Numbers) -> list[Step]:
    """Return what moves a value of a shape, or raise as `steps_of` does."""
    return steps_of(Moved(ir.Tensor("", shape), ir.from_graph_layout(numbers)[0]))


def _counted(shape: ir.Shape) -> Numbers:
    return np.arange(int(np.prod(shape))).reshape(shape)


def _stepped(numbers: Numbers, step: Step) -> Numbers:
    """Return what a step that leaves nothing out makes of numbers."""
    if step.kind == "transpose":
        return numbers.transpose(0, *step.attributes.axes)  # type: ignore[union-attr]
    if step.kind == "flatten_nchw":
        return np.asarray(ir.from_graph_layout(numbers).reshape(step.shape), np.int64)
    return numbers.reshape(step.shape)


def _unmoved(values: ir.Array, numbers: Numbers, shape: ir.Shape) -> ir.Array:
    """Return values that are moved as numbers say in the order of their base."""
    flat = np.empty(numbers.size, values.dtype)
    flat[numbers.ravel()] = values.ravel()
    return flat.reshape(shape)


def _scattered(data: ir.Array, numbers: Numbers, shape: ir.Shape) -> ir.Array:
    """Return a constant in the order of a base, of size 1 where it is the same along an axis."""
    found = _unmoved(data, numbers, shape)
    for axis in range(1, len(shape)):
        first = found.take([0], axis)
        if (found == first).all():
            found = first
    return found


def _read(ops: Sequence[ir.Op], needed: set[str]) -> list[ir.Op]:
    """Return the ops whose results are read, in order."""
    found: list[ir.Op] = []
    for op in reversed(ops):
        if op.output in needed:
            needed.update(op.inputs)
            found.append(op)
    return found[::-1]
