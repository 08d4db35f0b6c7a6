"""Group norms in integers, against torch in float64 up to stated bounds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fedkit.engine.integer.engine import IntegerEngine, quantize_inputs
from fedkit.engine.integer.numpy_backend import NumpyBackend
from fedkit.engine.ops.copy import Copy
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.layer_norm import GroupNorm
from fedkit.engine.plan.structure import Plan, Shape, StoredTensor
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples
from tests.engine.integer import steps
from tests.engine.plan.plans import PlanCase

STEPS = 0.53
"""Largest error of a normalised value in steps of its channel: half of one, and a little."""

SHARE = 1e-3
"""Largest error of a gradient as a share of the tensor's largest."""

COUNT = 9


def case_of(shape: Shape, groups: int) -> PlanCase:
    """Return a convolution, a group norm of what it writes, and a linear layer."""
    one, none, size, rng = (1, 1), (0, 0), math.prod(shape), np.random.default_rng(0)
    weights = {
        "conv": rng.standard_normal((shape[0], shape[0], 1, 1)).astype(np.float32),
        "scale": rng.uniform(0.5, 1.5, shape[0]).astype(np.float32),
        "offset": (0.3 * rng.standard_normal(shape[0])).astype(np.float32),
        "fc": (rng.standard_normal((3, size)) / math.sqrt(size)).astype(np.float32),
    }
    plan = Plan(
        {name: weight.shape for name, weight in weights.items()},
        {},
        ("conv", "fc"),
        (*map(StoredTensor, (shape, shape, shape, (size, 1, 1), (3, 1, 1))),),
        (
            Conv(0, 1, "conv", None, one, one, none, one, 1),
            GroupNorm(1, 2, "group", 1e-5, "scale", "offset", groups),
            Copy(2, 3),
            Conv(3, 4, "fc", None, one, one, none, one, 1),
        ),
        output=4,
    )
    masks = {name: np.ones(weights[name].shape, bool) for name in plan.prunable}
    inputs = np.exp(rng.standard_normal((COUNT, 1, 1, 1))) * rng.standard_normal((COUNT, *shape))
    targets = rng.integers(0, 3, COUNT)
    return PlanCase(
        plan, ModelState(weights, {}, masks), inputs.astype(np.float32), targets, 0.5, 1
    )


@pytest.mark.parametrize(
    ("shape", "groups"), [((4, 6, 6), 2), ((6, 5, 5), 6), ((12, 1, 1), 3), ((3, 4, 4), 1)]
)
def test_integers_are_near_the_definition(shape: Shape, groups: int) -> None:
    case = case_of(shape, groups)
    made = steps.make(case, None, 8)
    backend = made._backend
    assert isinstance(backend, NumpyBackend)
    made.forward(*quantize_inputs(case.inputs), np.arange(COUNT))

    def across(values: NDArray[Any]) -> NDArray[Any]:
        return values[:, None, None]

    x, y = (torch.tensor(backend.x[t] * across(made.worth[t].factor)) for t in (1, 2))
    made.loss(case.targets)
    made.backward()
    gx, gy = (torch.tensor(backend.g[t] * across(made.slopes[t].unit)) for t in (1, 2))
    x.requires_grad_()
    scale, offset = (
        torch.tensor(made.network.real(name), dtype=torch.float64).requires_grad_()
        for name in ("scale", "offset")
    )
    wanted = F.group_norm(x, groups, scale, offset, 1e-5)
    wanted.backward(gy)
    step = torch.tensor(across(made.worth[2].factor))
    assert ((wanted - y).abs() / step).max() < STEPS
    found = {
        name: made.network.part(name, made.gradient) * made.gradient_units[name]
        for name in ("scale", "offset")
    }
    for mine, real in (
        (gx, x.grad),
        *((found[n], p.grad) for n, p in (("scale", scale), ("offset", offset))),
    ):
        assert real is not None
        assert np.abs(np.asarray(mine) - real.numpy()).max() < SHARE * real.abs().max()


def deeper(case: PlanCase) -> PlanCase:
    """Return a case with a layer of five features before the last."""
    one, none, rng, plan = (1, 1), (0, 0), np.random.default_rng(1), case.plan
    weights = {name: values for name, values in case.state.weights.items() if name != "fc"}
    hidden = case.state.weights["fc"].shape[1]
    for name, shape in (("hidden", (5, hidden)), ("fc", (3, 5))):
        weights[name] = (rng.standard_normal(shape) / math.sqrt(shape[1])).astype(np.float32)
    layers = (
        Conv(3, 4, "hidden", None, one, one, none, one, 1),
        Conv(4, 5, "fc", None, one, one, none, one, 1),
    )
    whole = replace(
        plan,
        weights={name: weight.shape for name, weight in weights.items()},
        prunable=("conv", "hidden", "fc"),
        tensors=(*plan.tensors[:4], StoredTensor((5, 1, 1)), StoredTensor((3, 1, 1))),
        ops=(*plan.ops[:3], *layers),
        output=5,
    )
    masks = {name: np.ones(weights[name].shape, bool) for name in whole.prunable}
    return replace(case, plan=whole, state=ModelState(weights, {}, masks))


def test_layers_at_the_edges_have_8_bits_and_those_between_the_engines() -> None:
    case = case_of((4, 6, 6), 2)
    data = Examples(case.inputs, case.targets)
    for each, same in ((case, True), (deeper(case), False)):
        found = [IntegerEngine(each.plan, bits=bits).gradients(each.state, data) for bits in (8, 6)]
        equal = {name: np.array_equal(found[0][name], found[1][name]) for name in found[0]}
        assert equal == dict.fromkeys(each.plan.prunable, same)
