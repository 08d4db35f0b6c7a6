"""Layer norms in integers, against their float64 definition up to stated bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from fedkit.core.numerics import K
from fedkit.engine.base import LocalTraining
from fedkit.engine.integer.constants import Chain, Ints, Mix, Read
from fedkit.engine.integer.engine import IntegerEngine, quantize_inputs
from fedkit.engine.integer.layer_norm import deviation_constants, most_of, reciprocal
from fedkit.engine.integer.numpy_backend import NumpyBackend
from fedkit.engine.ops.copy import Copy
from fedkit.engine.ops.layer_norm_integer import NumpyLayerNorm
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.layer_norm import LayerNorm
from fedkit.engine.plan.structure import LayerKind, Plan, Shape, StoredTensor
from fedkit.integers import l1norm
from fedkit.nn.norm import L1LayerNorm, with_l1_norms
from fedkit.nn.zoo import seeded
from fedkit.shiftquant import convert
from fedkit.sparse.state import ModelState
from fedkit.tasks import digits
from tests.engine.integer import steps
from tests.engine.plan.plans import PlanCase
from tests.engine.sparse.cases import engines, layered

Array = NDArray[Any]

KINDS: list[LayerKind] = ["layer", "l1-layer"]
SHAPES = [(4, 6, 6), (50, 1, 1), (3, 1, 1), (16, 24, 24)]

STEPS = 0.53
"""Largest error of a normalised value in steps of its channel: half of one, and a little."""

SHARE = 6e-4
"""Largest error of a gradient as a share of the tensor's largest."""


def case_of(
    kind: LayerKind, shape: Shape, count: int, eps: float = 1e-5, affine: bool = True
) -> PlanCase:
    """Return a convolution, a layer norm over what it writes, and a linear layer."""
    one, none, size, rng = (1, 1), (0, 0), math.prod(shape), np.random.default_rng(0)
    scale, offset = ("scale", "offset") if affine else (None, None)
    weights = {
        "conv": rng.standard_normal((shape[0], shape[0], 1, 1)),
        "scale": rng.uniform(0.5, 1.5, shape),
        "offset": 0.3 * rng.standard_normal(shape),
        "fc": rng.standard_normal((3, size)) / math.sqrt(size),
    }
    kept = ("conv", "fc", scale, offset)
    weights = {name: w.astype(np.float32) for name, w in weights.items() if name in kept}
    plan = Plan(
        {name: weight.shape for name, weight in weights.items()},
        {},
        ("conv", "fc"),
        (*map(StoredTensor, (shape, shape, shape, (size, 1, 1), (3, 1, 1))),),
        (
            Conv(0, 1, "conv", None, one, one, none, one, 1),
            LayerNorm(1, 2, "layer", eps, scale, offset, kind),
            Copy(2, 3),
            Conv(3, 4, "fc", None, one, one, none, one, 1),
        ),
        output=4,
    )
    masks = {name: np.ones(weights[name].shape, bool) for name in plan.prunable}
    sizes, means = np.exp(rng.standard_normal((2, count, 1, 1, 1)))
    inputs = means + sizes * rng.standard_normal((count, *shape))
    targets = rng.integers(0, 3, count)
    return PlanCase(
        plan, ModelState(weights, {}, masks), inputs.astype(np.float32), targets, 0.5, 1
    )


@dataclass
class StepTrace:
    """Real numbers behind one step's integers, beside what float64 makes of the norm's input.

    Attributes:
        y: What is read of the norm's output, [n, elements].
        step: What the code 1 is worth there, [elements].
        gradients: Of the norm's input, scale and offset; the latter two only where it has them.
        forward: The definition's result for the same input.
        backward: Its gradients for the same gradient of the output.
    """

    y: Array
    step: Array
    gradients: dict[str, Array]
    forward: l1norm.Normalized
    backward: dict[str, Array]


def run(case: PlanCase) -> StepTrace:
    made, count = steps.make(case, None, 8), len(case.inputs)
    backend, norm, plane = (
        made._backend,
        case.plan.ops[1],
        math.prod(case.plan.tensors[1].shape[1:]),
    )
    assert isinstance(backend, NumpyBackend) and isinstance(norm, LayerNorm)
    made.forward(*quantize_inputs(case.inputs), np.arange(count))
    x, y = (
        (backend.x[tensor] * made.worth[tensor].factor[:, None, None]).reshape(count, -1)
        for tensor in (1, 2)
    )
    made.loss(case.targets)
    made.backward()
    gx, gy = (
        (backend.g[tensor] * made.slopes[tensor].unit[:, None, None]).reshape(count, -1)
        for tensor in (1, 2)
    )
    size, real = x.shape[1], made.network.real
    scale = real("scale") if norm.weight else np.ones(size)
    offset = real("offset") if norm.bias else np.zeros(size)
    forward = l1norm.norm_forward(x, scale, offset, norm.eps, norm.kind)
    backward = l1norm.norm_backward(gy, scale, forward, norm.kind)
    gradients = {"x": gx}
    for name in {"scale", "offset"} & set(case.plan.weights):
        units = np.repeat(made.gradient_units[name], plane)
        gradients[name] = made.network.part(name, made.gradient) * units
    expected = {"x": backward.x, "scale": backward.weight, "offset": backward.bias}
    step = np.repeat(made.worth[2].factor, plane)
    return StepTrace(y, step, gradients, forward, expected)


def assert_near(found: StepTrace) -> None:
    error = np.abs(found.y - found.forward.y) / found.step
    assert error[np.abs(found.forward.xhat) < 7.9].max() < STEPS
    for name, gradient in found.gradients.items():
        expected = found.backward[name]
        assert np.abs(gradient - expected).max() <= SHARE * np.abs(expected).max(), name


# What the integers stand for


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_the_definition(
    kind: LayerKind, shape: Shape, count: int
) -> None:
    assert_near(run(case_of(kind, shape, count)))


@pytest.mark.parametrize("eps", [1e-2, 1.0, 10.0])
@pytest.mark.parametrize("kind", KINDS)
def test_eps_counts(kind: LayerKind, eps: float) -> None:
    assert_near(run(case_of(kind, (4, 6, 6), 5, eps)))


@pytest.mark.parametrize("kind", KINDS)
def test_without_scale_and_offset_codes_have_4_bits_behind_the_point(kind: LayerKind) -> None:
    found = run(case_of(kind, (4, 6, 6), 5, affine=False))
    assert_near(found)
    assert (found.step == 1 / 16).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_channels_own_scale_decides_on_its_steps(kind: LayerKind) -> None:
    case = case_of(kind, (3, 4, 4), 5)
    case.state.weights["scale"][0] = 1e-3
    case.state.weights["scale"][1] = 1.0
    case.state.weights["offset"][:] = 0.0
    found = run(case)
    assert_near(found)
    assert found.step[::16][:2] == pytest.approx([1e-3 / 16, 1 / 16], rel=1e-3)


# All that may be zero


@pytest.mark.parametrize("kind", KINDS)
def test_equal_values_become_the_offset(kind: LayerKind) -> None:
    """Alone, and beside an example that is none of them; their gradient is that of eps alone."""
    for others in (0, 1):
        case = case_of(kind, (4, 6, 6), 1 + others, eps=1e-2)
        case.state.weights["conv"][:] = 0.5
        case.inputs[0] = 0.7
        found = run(case)
        assert not found.forward.xhat[0].any()
        assert np.abs(found.y[0] - case.state.weights["offset"].ravel()).max() < found.step.max()
        assert_near(found)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind: LayerKind) -> None:
    case = case_of(kind, (4, 6, 6), 3)
    case.inputs[:] = 0.0
    for name in ("scale", "offset"):
        case.state.weights[name][:] = 0.0
    found = run(case)
    assert not found.y.any()
    assert not found.gradients["x"].any() and not found.gradients["scale"].any()
    assert found.gradients["offset"].any()


# One division per example


@given(
    st.sampled_from(KINDS), st.integers(1, 2**16), st.floats(1e-9, 1e3), st.floats(0, 1)
)  # fmt: skip
def test_a_multiplier_has_15_bits(kind: LayerKind, count: int, eps: float, share: float) -> None:
    how = deviation_constants(kind == "l1-layer", count, eps)
    most = count**2 * most_of(count)
    size = int(share * (most if how.l1 else most * most_of(count)))
    found, shift = reciprocal(size, how)
    size = max(size + how.eps, 1)
    deviations = count**2 / K / size if how.l1 else count / math.sqrt(size)
    worth = min(2**12 * deviations, 32767.0)
    assert 0 <= found < 2**15 and shift >= 0
    assert math.ldexp(found, -shift) == pytest.approx(worth, rel=2.0**-13.9)


# Rounding at random


class KeyedLayerNorm(NumpyLayerNorm):
    """Notes the keys by which gradients of layer norms are rounded."""

    keys: ClassVar[list[int | None]] = []

    def backward(self, read: Read, chain: Chain, factor: Ints, out: Chain, mix: Mix | None) -> None:
        self.keys.append(out.key)
        super().backward(read, chain, factor, out, mix)


def test_every_step_and_seed_rounds_by_a_key_of_its_own() -> None:
    case = case_of("l1-layer", (4, 6, 6), 3)
    with steps.computed_by({LayerNorm: KeyedLayerNorm}):
        made, keys = steps.make(case, None, 4), []
    for seed in (7, 8, 7):
        KeyedLayerNorm.keys.clear()
        made.restart(seed)
        for _ in range(2):
            made.forward(*quantize_inputs(case.inputs), np.arange(3))
            made.loss(case.targets)
            made.backward()
        keys.append(list(KeyedLayerNorm.keys))
    one, other, again = keys
    assert one == again
    assert None not in one and len({*one, *other}) == 4


# Training


@pytest.mark.slow
@pytest.mark.parametrize("norm", [nn.LayerNorm, L1LayerNorm])
def test_digits_are_learnt_with_4_bits_as_in_float(norm: type[nn.LayerNorm]) -> None:
    reference, sparse = engines(layered(norm, (1, 8, 8), 10), (1, 8, 8))
    state, test = reference.initial_state(), digits.test_data()
    how = LocalTraining(epochs=6, batch_size=32, lr=0.05, momentum=0.9, weight_decay=1e-4)
    shares = []
    for engine in (sparse, IntegerEngine(sparse.plan, bits=4)):
        trained, _ = engine.train(state, digits.train_data(), how, seed=0)
        for name in ("1.weight", "1.bias"):
            assert np.abs(trained.weights[name] - state.weights[name]).mean() > 1e-3
        shares.append((engine.outputs(trained, test.inputs).argmax(1) == test.targets).mean())
    real, found = shares
    assert real > 0.9 and found > real - 0.05


def test_a_torch_model_with_layer_norms_is_converted() -> None:
    model = with_l1_norms(seeded(layered(nn.LayerNorm, (1, 8, 8), 10), 0))
    made, data = convert(model, (1, 8, 8), bits=4), digits.train_data().take(np.arange(64))
    kinds = [op.kind for op in made.engine.plan.ops if isinstance(op, LayerNorm)]
    assert kinds == ["l1-layer"] * 3
    losses = [made.train_step(data.inputs, data.targets, lr=0.05) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    made.store(model)
    stored = model.state_dict()["1.weight"].numpy()
    np.testing.assert_array_equal(stored, made.state().weights["1.weight"])
