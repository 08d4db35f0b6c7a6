"""Whole steps of integer training on any backend, and the integers they leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.integer import program
from fedkit.engine.integer.backend import Backend
from fedkit.engine.integer.engine import quantize_inputs
from fedkit.engine.integer.integer_network import IntegerNetwork
from fedkit.engine.integer.integer_op import IntegerFamily
from fedkit.engine.integer.native_backend import NativeBackend
from fedkit.engine.integer.numpy_backend import NumpyBackend
from fedkit.engine.integer.optimiser import Sgd
from fedkit.engine.integer.program import IntegerProgram, Mode
from fedkit.engine.kernels.native import Kernels
from fedkit.engine.ops.registry import integer_family
from fedkit.engine.plan.structure import PlanOp
from tests.engine.kernels.programs import choices_of
from tests.engine.plan.plans import PlanCase

Array = NDArray[Any]

NUMPY_LANES = 16
RATE, MOMENTUM, DECAY = 0.05, 0.9, 0.01


@dataclass
class Trace:
    """Every integer that is left of some steps, and the real numbers made of them, by name."""

    arrays: dict[str, Array] = field(default_factory=dict)

    def add(self, name: str, array: Any) -> None:
        self.arrays[name] = np.array(array)


def make(
    case: PlanCase,
    kernels: Kernels | None,
    bits: int,
    rule: str = "shiftquant",
    mode: Mode = "train",
    room: int = 0,
) -> IntegerProgram:
    """Return a program for a case, loaded; kernels None: numpy; room: more examples than given."""
    batch = len(case.inputs) + room

    def backend(program: IntegerProgram) -> Backend:
        if kernels is None:
            return NumpyBackend(program.network)
        return NativeBackend(program.network, kernels, program.schedule, batch)

    lanes = NUMPY_LANES if kernels is None else int(kernels.int_lanes())
    with choices_of(case):
        network = IntegerNetwork(case.plan, case.state.masks, bits, lanes)
        made = IntegerProgram(network, backend, mode, batch, rule)
    network.load(case.state)
    return made


@contextmanager
def computed_by(classes: Mapping[type[PlanOp], type[Any]]) -> Iterator[None]:
    """Let other classes compute ops in numpy where a backend is bound meanwhile."""

    def patched(op: PlanOp) -> IntegerFamily:
        family = integer_family(op)
        return replace(family, numpy=classes.get(type(op), family.numpy))

    with mock.patch.object(program, "integer_family", patched):
        yield


def train(made: IntegerProgram, case: PlanCase, kernels: Kernels | None, steps: int = 2) -> Trace:
    """Train on the whole batch, in another order at every step."""
    made.network.load(case.state)
    made.restart(7)
    optimiser = Sgd(made.network, kernels, MOMENTUM, DECAY, seed=7)
    inputs, scale = quantize_inputs(case.inputs)
    found = Trace()
    for step in range(steps):
        order = np.roll(np.arange(len(inputs)), step)
        made.forward(inputs, scale, order)
        found.add(f"logits {step}", made.outputs())
        found.add(f"loss {step}", made.loss(case.targets[order]))
        made.backward()
        for name, value in whats_left(made):
            found.add(f"{name} {step}", value)
        optimiser.step(made.gradient, made.gradient_units, RATE)
        found.add(f"weights {step}", made.network.weights)
        found.add(f"velocity {step}", made.network.velocity)
    return found


def whats_left(made: IntegerProgram) -> Iterator[tuple[str, Array]]:
    """Yield what forward and backward pass leave."""
    yield "gradient", made.gradient
    for name, unit in made.gradient_units.items():
        yield f"unit of {name}", unit
    for tensor, seen in made.statistics.items():
        for kind, value in vars(seen).items():
            yield f"{kind} of {tensor}", value


def mismatches(one: Trace, other: Trace) -> list[str]:
    """Name what differs in any bit, or is there only once."""
    differing = one.arrays.keys() ^ other.arrays.keys()
    shared = one.arrays.keys() & other.arrays.keys()
    differing |= {n for n in shared if one.arrays[n].tobytes() != other.arrays[n].tobytes()}
    return sorted(differing)
