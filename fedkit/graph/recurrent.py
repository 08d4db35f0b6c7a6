"""LSTM and GRU layers, a step after the other, by the ops that a step consists of.

What a step adds of its input is computed for all steps at once, by layers over tokens. All steps
read the same weights, and what they give in the same role has one scale, so that integers of the
weights are the same in each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fedkit.graph import ir
from fedkit.graph.operands import constant, require
from fedkit.graph.ops.concat import Along
from fedkit.graph.places import Places, taken_shape
from fedkit.graph.spec import ModelReader

MOST_STEPS = 64
"""Of an artifact, which holds the ops of each."""


class GateWeights(NamedTuple):
    """Of one layer in one direction, as torch has them: rows of all gates, one behind the other."""

    of_input: ir.Array
    of_state: ir.Array
    input_bias: ir.Array
    state_bias: ir.Array


class States(NamedTuple):
    """What a layer gives in one direction.

    Attributes:
        steps: What it gives at each step, [1, 1, 1, size], in the order of the input.
        last: What is told of the last step in its direction: the same, and the cell of an LSTM.
    """

    steps: list[ir.Tensor]
    last: tuple[ir.Tensor, ...]


Directions = list[States]
"""Of one layer: forwards, and maybe backwards."""


def weights_of(params: Sequence[Any], has_biases: bool) -> Iterator[GateWeights]:
    """Yield the weights of each layer and direction, from what torch lists.

    Raises:
        Unsupported: A layer projects its states (`proj_size`).
    """
    count = 4 if has_biases else 2
    require(len(params) % count == 0, "a recurrent layer with proj_size; 0 can be")
    for first in range(0, len(params), count):
        found = [constant(each) for each in params[first : first + count]]
        none = np.zeros(len(found[0]), np.float32)
        yield GateWeights(*found, *([] if has_biases else (none, none)))


@dataclass
class StepOps:
    """Adds the ops of one layer in one direction.

    Attributes:
        reader: What reads the model.
        node: The layer.
        name: Of what is added, behind the node's.
        roles: What an op is to its step -> the names of what it gives, of all steps.
    """

    reader: ModelReader
    node: Any
    name: str
    roles: dict[str, list[ir.Tensor]] = field(default_factory=dict)

    def op(
        self,
        role: str,
        kind: ir.Kind,
        inputs: Sequence[ir.Tensor],
        shape: ir.Shape | None = None,
        **how: Any,
    ) -> ir.Tensor:
        """Add an op of the step at hand; it gives the shape of its first input by default."""
        made = self.roles.setdefault(role, [])
        suffix = f".{self.name}.{role}{len(made)}"
        shape = inputs[0].shape if shape is None else shape
        made.append(self.reader.op(kind, self.node, inputs, shape, suffix=suffix, **how))
        return made[-1]

    def layer(self, role: str, rows: ir.Array, bias: ir.Array) -> Callable[[ir.Tensor], ir.Tensor]:
        """Return what adds a layer over tokens, of whose weights all steps have one."""
        data = rows[:, None, None]
        weight, offsets = (
            self.reader.constant(self.node, f"{self.name}.{role}.{what}", values)
            for what, values in (("weight", data), ("bias", bias))
        )

        def add(x: ir.Tensor) -> ir.Tensor:
            shape = (*x.shape[:3], len(rows))
            return self.op(role, "conv2d", [x, weight, offsets], shape, window=ir.Window())

        return add

    def part(self, role: str, x: ir.Tensor, number: int, size: int) -> ir.Tensor:
        """Add what takes one of several gates, each of a size."""
        places = Places(channels=tuple(range(number * size, (number + 1) * size)))
        return self.op(role, "take", [x], taken_shape(x.shape, places), attributes=places)

    def at(self, role: str, x: ir.Tensor, step: int) -> ir.Tensor:
        """Add what takes one step of all."""
        places = Places(columns=(step,))
        return self.op(role, "take", [x], taken_shape(x.shape, places), attributes=places)

    def tied(self) -> Iterator[tuple[str, ...]]:
        """Yield what has one scale: what all steps give in one role."""
        for made in self.roles.values():
            if len(made) > 1:
                yield tuple(each.name for each in made)


def lstm(steps: StepOps, x: ir.Tensor, w: GateWeights, order: Sequence[int]) -> States:
    """Add an LSTM over tokens [1, 1, steps, channels]; torch's gates are i, f, g, o."""
    size = w.of_state.shape[1]
    bias = w.input_bias + w.state_bias
    gates = np.arange(4 * size).reshape(4, size)
    rows = {"gates": gates[[0, 1, 3]].ravel(), "new": gates[2]}
    of_input = {k: steps.layer(f"{k}_x", w.of_input[at], bias[at])(x) for k, at in rows.items()}
    of_state = {k: steps.layer(f"{k}_h", w.of_state[at], bias[at] * 0) for k, at in rows.items()}
    states: dict[int, ir.Tensor] = {}
    state: ir.Tensor | None = None
    for step in order:
        sums = {}
        for name, each in of_input.items():
            sums[name] = steps.at(f"{name}_x_at", each, step)
            if state is not None:
                operands = [sums[name], of_state[name](state)]
                sums[name] = steps.op(f"{name}_sum", "add", operands)
        gate = steps.op("gates", "sigmoid", [sums["gates"]])
        new = steps.op("new", "tanh", [sums["new"]])
        own = steps.op("own", "mul", [steps.part("i", gate, 0, size), new])
        if state is None:
            cell = own
        else:
            kept = steps.op("kept", "mul", [steps.part("f", gate, 1, size), cell])
            cell = steps.op("cell", "add", [kept, own])
        shown = steps.op("shown", "tanh", [cell])
        state = steps.op("state", "mul", [steps.part("o", gate, 2, size), shown])
        states[step] = state
    assert state is not None  # there is a step
    return States([states[step] for step in range(len(order))], (state, cell))


def gru(steps: StepOps, x: ir.Tensor, w: GateWeights, order: Sequence[int]) -> States:
    """Add a GRU over tokens [1, 1, steps, channels]; torch's gates are r, z, n."""
    size = w.of_state.shape[1]
    gates, new = np.arange(2 * size), np.arange(2 * size, 3 * size)
    bias = w.input_bias + w.state_bias
    gates_x = steps.layer("gates_x", w.of_input[gates], bias[gates])(x)
    new_x = steps.layer("new_x", w.of_input[new], w.input_bias[new])(x)
    gates_h = steps.layer("gates_h", w.of_state[gates], bias[gates] * 0)
    new_h = steps.layer("new_h", w.of_state[new], w.state_bias[new])
    states: dict[int, ir.Tensor] = {}
    state: ir.Tensor | None = None
    for step in order:
        sums, own = steps.at("gates_x_at", gates_x, step), steps.at("new_x_at", new_x, step)
        if state is not None:
            sums = steps.op("gates_sum", "add", [sums, gates_h(state)])
        gate = steps.op("gates", "sigmoid", [sums])
        if state is not None:
            seen = steps.op("seen", "mul", [steps.part("r", gate, 0, size), new_h(state)])
            own = steps.op("new_sum", "add", [own, seen])
        elif w.state_bias[new].any():
            reset = steps.part("r", gate, 0, size)
            own = steps.op("new_sum", "add", [own, _scaled(steps, reset, w.state_bias[new])])
        made = steps.op("new", "tanh", [own])
        kept = steps.part("z", gate, 1, size)
        if state is None:
            state = steps.op("first", "sub", [made, steps.op("left", "mul", [kept, made])])
        else:
            gap = steps.op("gap", "sub", [state, made])
            state = steps.op("state", "add", [made, steps.op("kept", "mul", [kept, gap])])
        states[step] = state
    assert state is not None  # there is a step
    return States([states[step] for step in range(len(order))], (state,))


def _scaled(steps: StepOps, x: ir.Tensor, factors: ir.Array) -> ir.Tensor:
    operands = [
        steps.reader.constant(steps.node, f"{steps.name}.{what}", values)
        for what, values in (("scale", factors), ("shift", factors * 0))
    ]
    return steps.op("seen_first", "affine", [x, *operands])


class Layers(NamedTuple):
    """What a recurrent module of torch gives.

    Attributes:
        tokens: Of all steps, [1, 1, steps, channels]; both directions, one behind the other.
        last: Of each layer and direction, as torch has them, `States.last`.
    """

    tokens: ir.Tensor
    last: list[tuple[ir.Tensor, ...]]


Step = Callable[[StepOps, ir.Tensor, GateWeights, Sequence[int]], States]
KINDS: Mapping[str, Step] = {"lstm": lstm, "gru": gru}


def layers(
    reader: ModelReader,
    node: Any,
    kind: str,
    x: ir.Tensor,
    weights: Sequence[GateWeights],
    directions: int,
    shows_steps: bool = True,
) -> tuple[Layers, list[tuple[str, ...]]]:
    """Add a recurrent module over tokens.

    Args:
        reader: What reads the model.
        node: The module.
        kind: One of `KINDS`.
        x: [1, 1, steps, channels].
        weights: Of each layer and direction.
        directions: 1, or 2: forwards and backwards.
        shows_steps: Whether anything reads more than the last step of the last layer.

    Returns:
        What it gives, and groups of activations that have one scale.

    Raises:
        Unsupported: It has more than `MOST_STEPS` steps.
    """
    count = x.shape[2]
    require(
        count <= MOST_STEPS,
        f"a recurrent layer of {count} steps; {MOST_STEPS} can be, as an artifact holds each",
    )
    last: list[tuple[ir.Tensor, ...]] = []
    tied: list[tuple[str, ...]] = []
    for number in range(len(weights) // directions):
        made: Directions = []
        for direction in range(directions):
            steps = StepOps(reader, node, f"layer{number}{'_back' * direction}")
            order = range(count - 1, -1, -1) if direction else range(count)
            own = weights[number * directions + direction]
            made.append(KINDS[kind](steps, x, own, order))
            tied += [*steps.tied(), tuple(each.name for each in made[-1].steps)]
        if shows_steps or number + 1 < len(weights) // directions:
            x = _side_by_side(reader, node, made, f".layer{number}")
        last += [each.last for each in made]
    return Layers(x, last), tied


def _side_by_side(reader: ModelReader, node: Any, made: Directions, suffix: str) -> ir.Tensor:
    """Add what joins all steps, and both directions."""
    whole = [
        rows(reader, node, each.steps, f"{suffix}.steps{number}")
        for number, each in enumerate(made)
    ]
    if len(whole) == 1:
        return whole[0]
    shape = (*whole[0].shape[:3], sum(each.shape[3] for each in whole))
    return reader.op("concat", node, whole, shape, suffix=f"{suffix}.both")


def rows(reader: ModelReader, node: Any, parts: Sequence[ir.Tensor], suffix: str) -> ir.Tensor:
    """Add what puts [1, 1, 1, channels] one behind the other, as tokens."""
    if len(parts) == 1:
        return parts[0]
    shape = (1, 1, len(parts), parts[0].shape[3])
    return reader.op("concat_along", node, parts, shape, suffix=suffix, attributes=Along("columns"))
