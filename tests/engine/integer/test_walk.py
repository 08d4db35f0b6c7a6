"""Tables of steps: one walk where the kernels have all steps, and what happens in its middle."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from fedkit.core.errors import EngineError
from fedkit.engine.integer.engine import IntegerEngine, quantize_inputs
from fedkit.engine.kernels import native
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.structure import Plan, StoredTensor
from fedkit.sparse.state import ModelState
from tests.engine.integer import steps
from tests.engine.plan.plans import FUNCTIONS, KINDS, random_case


@pytest.mark.parametrize("seed", range(6))
def test_python_does_nothing_between_the_kernels_of_a_convolutional_network(seed: int) -> None:
    case = random_case(random.Random(seed).choice, KINDS, most=3)
    walker = steps.make(case, native.load_kernels(), 6)._walker
    assert walker is not None
    for pieces in (walker._forward_pieces, walker._backward_pieces):
        (piece,) = pieces
        assert piece.run is None
    assert walker._backward_pieces[0].last == len(walker._steps)


@pytest.mark.parametrize("kinds", [KINDS, FUNCTIONS], ids=["", "functions"])
def test_who_asks_is_called_before_each_op(kinds: tuple[str, ...]) -> None:
    case = random_case(random.Random(5).choice, kinds, most=3)
    codes, scale = quantize_inputs(case.inputs)
    found = []
    for kernels, asks in (
        (None, True),
        (native.load_kernels(), True),
        (native.load_kernels(), False),
    ):
        made, asked = steps.make(case, kernels, 6), list[int]()
        made.forward(codes, scale, np.arange(len(codes)))
        made.loss(case.targets)
        made.backward(asked.append if asks else None)
        found.append((asked, made.gradient))
    (one, gradient), (other, same), (none, alike) = found
    assert one == other == sorted(one, reverse=True) and len(one) > 2 and none == []
    np.testing.assert_array_equal(same, gradient)
    np.testing.assert_array_equal(alike, gradient)


@pytest.mark.parametrize("simd", native.available())
def test_sums_that_leave_int32_are_told_as_numpy_tells_them(simd: str) -> None:
    """The second layer's; the first one has been computed by then."""
    width, one = 70_000, (1, 1)
    shapes: dict[str, tuple[int, ...]] = {
        "first": (1, 1, 1, 1),
        "wide": (width, 1, 1, 1),
        "last": (2, width, 1, 1),
    }
    tensors = tuple(StoredTensor((channels, 1, 1)) for channels in (1, 1, width, 2))
    ops = tuple(
        Conv(n, n + 1, name, None, one, one, (0, 0), one, 1) for n, name in enumerate(shapes)
    )
    plan = Plan(shapes, {}, tuple(shapes), tensors, ops, 3)
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    state = ModelState(weights, {}, {name: np.ones(s, np.bool_) for name, s in shapes.items()})
    said = []
    for backend in ("numpy", "native"):
        engine = IntegerEngine(plan, backend=backend, simd=simd)
        program = engine.program(state, "evaluate", 1)
        with pytest.raises(EngineError, match="the sums of last may reach") as error:
            program.forward(np.full((1, 1, 1, 1), 127, np.int8), 1.0, np.arange(1))
        said.append(str(error.value))
    assert said[0] == said[1]
    assert re.search(r"may reach 1\.13e\+09", said[0])
