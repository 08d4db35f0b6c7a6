"""What the integers stand for: logits and gradients of the float model, up to stated bounds.

The bounds are what was measured, with a little room: resnet8 on 128 digits, density 1 and 0.3,
batch and L1 norms. They tell when a change makes the arithmetic worse, not how good it could be.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.grad import conv2d_weight

from fedkit.engine.integer.constants import CODE, ONE, Chain, Ints, Mix, Read
from fedkit.engine.integer.engine import IntegerEngine, quantize_inputs
from fedkit.engine.integer.gradients import RULES
from fedkit.engine.integer.program import IntegerProgram
from fedkit.engine.ops.conv_integer import NumpyConv
from fedkit.engine.plan.conv import Conv
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.sparse.state import ModelState
from fedkit.tasks import digits
from fedkit.tasks.task import Examples
from tests.engine.integer import steps
from tests.engine.plan.plans import random_case
from tests.engine.sparse.cases import engines, l1, pruned, zoo
from tests.naive import plan as naive_plan

Array = NDArray[Any]

SHAPE = (1, 8, 8)


def small() -> nn.Module:
    """Return a model of three layers."""
    body = (nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    more = (nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(*body, *more, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 10))


MODELS = {
    "batch": zoo("resnet8", SHAPE, 10),
    "l1": l1(zoo("resnet8", SHAPE, 10)),
    "small": small,
    "small-l1": l1(small),
}
SETTINGS = [(name, density) for name in ("batch", "l1") for density in (1.0, 0.3)]


@functools.cache
def model(norm: str, density: float) -> tuple[SparseEngine, ModelState, Examples]:
    reference, engine = engines(MODELS[norm], SHAPE)
    data = digits.train_data().take(np.arange(128))
    return engine, pruned(reference.initial_state(), density), data


@functools.cache
def real(norm: str, density: float) -> tuple[Array, dict[str, Array]]:
    """Return logits under the batch's statistics, and gradients, in float64 by torch."""
    engine, state, data = model(norm, density)
    weights = {n: torch.from_numpy(w).double().requires_grad_() for n, w in state.weights.items()}
    stats = {name: torch.from_numpy(value) for name, value in state.stats.items()}
    inputs = torch.from_numpy(data.inputs).double()
    logits = naive_plan.run(engine.plan, weights, stats, inputs, training=True)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.targets))
    slopes = torch.autograd.grad(loss, [weights[name] for name in engine.layout.prunable])
    gradients = dict(zip(engine.layout.prunable, (s.numpy() for s in slopes), strict=True))
    return logits.detach().numpy(), gradients


@functools.cache
def integer_gradients(norm: str, density: float, bits: int, rule: str) -> dict[str, Array]:
    engine, state, data = model(norm, density)
    made = IntegerEngine(engine.plan, bits=bits, gradient=rule)
    return dict(made.gradients(state, data))


def flat(gradients: dict[str, Array]) -> Array:
    return np.concatenate([value.ravel() for value in gradients.values()])


def cosine(one: Array, other: Array) -> float:
    return float((one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other)))


def off(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# Gradients


@pytest.mark.parametrize(("norm", "density"), SETTINGS)
@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_8_bits_point_where_the_real_ones_do(
    norm: str, density: float, rule: str
) -> None:
    found, (_, expected) = integer_gradients(norm, density, 8, rule), real(norm, density)
    assert cosine(flat(found), flat(expected)) > 0.97
    for name, gradient in expected.items():
        assert cosine(found[name], gradient) > 0.93, name
        product = float((found[name] * gradient).sum())
        # And they are as long: nothing is lost or added on the way.
        assert product == pytest.approx(float(np.square(gradient).sum()), rel=0.15), name


@pytest.mark.parametrize("density", [1.0, 0.3])
@pytest.mark.parametrize("name", ["small", "small-l1"])
def test_gradients_of_a_small_model_are_nearer_still(name: str, density: float) -> None:
    found, (_, expected) = integer_gradients(name, density, 8, "shiftquant"), real(name, density)
    assert cosine(flat(found), flat(expected)) > 0.99
    assert all(cosine(found[layer], expected[layer]) > 0.98 for layer in expected)


@pytest.mark.parametrize(("norm", "density"), SETTINGS)
def test_every_layers_gradient_is_nearer_with_more_bits(norm: str, density: float) -> None:
    _, expected = real(norm, density)
    found = [integer_gradients(norm, density, bits, "shiftquant") for bits in (3, 4, 8)]
    for name, gradient in expected.items():
        coarse, middle, fine = (off(gradients[name], gradient) for gradients in found)
        assert coarse > middle > fine, name
        assert fine < 0.36, name


def readings(program: IntegerProgram) -> Iterator[tuple[int, tuple[Read, float]]]:
    """Yield how each convolution read its source, by number."""
    for number in program.network.layers:
        yield number, program._ops[number].reading


@pytest.mark.parametrize("name", ["small", "small-l1"])
def test_what_is_clipped_gets_no_gradient(name: str) -> None:
    """A few inputs are so large that norms cut values off, and convolutions read them clipped."""
    engine, state, data = model(name, 1.0)
    loud = np.where(np.arange(128) % 32 == 0, 40, 1).astype(np.float32)
    data = Examples(data.inputs * loud[:, None, None, None], data.targets)
    made = IntegerEngine(engine.plan, bits=8, backend="numpy")  # which keeps what it chose
    found = dict(made.gradients(state, data))
    (program,) = made._programs.values()
    clips = {n: read.high * unit for n, (read, unit) in readings(program) if read.clips}
    cut = [(np.abs(program._backend.codes(t)) == CODE).mean() for t in program.statistics]
    assert clips and max(cut) > 0.001

    weights = {n: torch.from_numpy(w).double().requires_grad_() for n, w in state.weights.items()}
    stats = {n: torch.from_numpy(value) for n, value in state.stats.items()}

    def slopes(**within: Any) -> dict[str, Array]:
        inputs = torch.from_numpy(data.inputs).double()
        logits = naive_plan.run(engine.plan, weights, stats, inputs, training=True, **within)
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.targets))
        names = engine.layout.prunable
        parts = torch.autograd.grad(loss, [weights[name] for name in names])
        return dict(zip(names, (part.numpy() for part in parts), strict=True))

    expected = slopes(norms_within=CODE * ONE, convs_within=clips)
    for layer, gradient in expected.items():
        assert cosine(found[layer], gradient) > 0.95, layer
    # The test would see it if clipping were ignored.
    # Passed on regardless, gradients would point elsewhere.
    assert cosine(flat(found), flat(expected)) > cosine(flat(found), flat(slopes())) + 0.05


def test_finer_rules_are_nearer() -> None:
    """At 4 bits, over all layers: one scale, powers of two, any scale."""
    for norm, density in SETTINGS:
        expected = flat(real(norm, density)[1])
        errors = [off(flat(integer_gradients(norm, density, 4, rule)), expected) for rule in RULES]
        assert list(RULES) == ["per-tensor", "shiftquant", "per-channel"]
        assert errors == sorted(errors, reverse=True)


# Logits


@pytest.mark.parametrize(("norm", "density"), SETTINGS)
@pytest.mark.parametrize(("bits", "most"), [(8, 0.06), (6, 0.09), (4, 0.25)])
def test_logits_are_near_the_real_ones(norm: str, density: float, bits: int, most: float) -> None:
    engine, state, data = model(norm, density)
    expected, _ = real(norm, density)
    made = IntegerEngine(engine.plan, bits=bits)
    program = made.program(state, "statistics", len(data))
    program.forward(*quantize_inputs(data.inputs), np.arange(len(data)))
    assert off(program.outputs(), expected) < most
    # The same under running statistics that are those of the batch.
    stats = dict(state.stats)
    for name, moments in engine.norm_moments(state, data).items():
        stats[f"{name}.running_mean"] = moments.mean.astype(np.float32)
        stats[f"{name}.running_var"] = moments.variance.astype(np.float32)
    adjusted = replace(state, stats=stats)
    assert off(made.outputs(adjusted, data.inputs), engine.outputs(adjusted, data.inputs)) < most


@pytest.mark.parametrize(("norm", "density"), SETTINGS)
def test_moments_are_near_the_real_ones(norm: str, density: float) -> None:
    engine, state, data = model(norm, density)
    found = IntegerEngine(engine.plan).norm_moments(state, data)
    expected = engine.norm_moments(state, data)
    assert list(found) == list(expected)
    for name, moments in expected.items():
        deviation = np.sqrt(moments.variance)
        assert found[name].n == moments.n
        assert np.abs((found[name].mean - moments.mean) / deviation).max() < 0.1, name
        assert np.abs(np.sqrt(found[name].variance) / deviation - 1).max() < 0.1, name


# Random rounding


class RepeatingConv(NumpyConv):
    """Draws every weight gradient many times, by other keys."""

    DRAWS = 60

    def backward(
        self, read: Read, chain: Chain, shift: Ints, mix: Mix | None, source: bool, weights: bool
    ) -> tuple[Array, Array]:
        backend = self.backend
        g, x = dict(backend.g), backend.read(self.op.source, read)
        draws = []
        for draw in range(self.DRAWS):
            key = (chain.key or 0) + draw * 0x9E3779B97F4A7C15
            again = replace(chain, key=key % 2**64)
            draws.append(super().backward(read, again, shift, None, False, True)[0])
        mean, variance = self._expected(x, chain)
        self._scores(np.array(draws), mean, variance)
        backend.g = g
        return super().backward(read, chain, shift, mix, source, weights)

    def _expected(self, x: Array, chain: Chain) -> tuple[Array, Array]:
        """Return mean and variance of the gradients, were rounding to be without bias."""
        op = self.op
        exact = self._exact(op.target, chain)
        share = exact - np.floor(exact)
        factor = chain.factor[:, None, None].astype(np.float64)
        weights = torch.zeros(self.weights.shape, dtype=torch.float64)
        how = (op.stride, op.padding, op.dilation, op.groups)
        found = [
            conv2d_weight(
                torch.from_numpy(a.astype(np.float64)), weights.shape, torch.from_numpy(b), *how
            ).numpy()
            for a, b in ((x, exact * factor), (x * x, share * (1 - share) * factor**2))
        ]
        kept = self.backend.network.parameters.kept.get(op.weight)
        mean, variance = (part.reshape(-1) for part in found)
        return (mean, variance) if kept is None else (mean[kept], variance[kept])

    def _exact(self, tensor: int, chain: Chain) -> Array:
        """Return what is rounded, within the limits."""
        a, b, c = (part[:, None, None].astype(np.float64) for part in (chain.a, chain.b, chain.c))
        g = self.backend.g[tensor]
        y = a * g + c
        if chain.carrier != "none":
            code = self.backend.x[tensor]
            y = a * np.where(np.abs(code) == CODE, 0, g) + c
            y = y + b * (code if chain.carrier == "x" else np.sign(code))
        exact = np.ldexp(y, -chain.shift[:, None, None])
        return np.asarray(np.clip(exact, -chain.limit, chain.limit))

    scores: ClassVar[list[Array]] = []
    spreads: ClassVar[list[float]] = []

    def _scores(self, draws: Array, mean: Array, variance: Array) -> None:
        error = np.sqrt(variance / len(draws))
        spread = error > 1e-9
        np.testing.assert_allclose(draws.mean(0)[~spread], mean[~spread], atol=1e-6)
        self.scores.append((draws.mean(0) - mean)[spread] / error[spread])
        if spread.any():
            self.spreads.append(float((draws.var(0, ddof=1)[spread] / variance[spread]).mean()))


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_weight_gradients_are_right_on_average(rule: str) -> None:
    """Each within 4 standard errors, and with the variance that rounding at random has."""
    RepeatingConv.scores.clear()
    RepeatingConv.spreads.clear()
    for seed in range(10):
        choose = random.Random(seed).choice
        case = random_case(choose, most=3, densities=(1.0, 0.5))
        with steps.computed_by({Conv: RepeatingConv}):
            made = steps.make(case, None, choose((2, 3, 4)), rule)
        steps.train(made, case, None, steps=1)
    everything = np.concatenate(RepeatingConv.scores)
    assert len(everything) > 200
    assert np.abs(everything).max() < 4
    assert np.mean(RepeatingConv.spreads) == pytest.approx(1.0, abs=0.1)


class KeyedConv(NumpyConv):
    """Notes the keys of the random roundings."""

    keys: ClassVar[list[int | None]] = []

    def backward(
        self, read: Read, chain: Chain, shift: Ints, mix: Mix | None, source: bool, weights: bool
    ) -> tuple[Array, Array]:
        self.keys.append(chain.key)
        return super().backward(read, chain, shift, mix, source, weights)


def test_every_layer_step_and_seed_rounds_by_a_key_of_its_own() -> None:
    case = random_case(random.Random(3).choice, ("chain",), most=2)
    keys = []
    for seed in (7, 8, 7):
        KeyedConv.keys.clear()
        with steps.computed_by({Conv: KeyedConv}):
            made = steps.make(case, None, 4)
        codes, scale = quantize_inputs(case.inputs)
        made.restart(seed)
        for _ in range(2):
            made.forward(codes, scale, np.arange(len(codes)))
            made.loss(case.targets)
            made.backward()
        keys.append(list(KeyedConv.keys))
    one, other, again = keys
    assert one == again
    assert None not in one and len(one) >= 2 * 3
    assert len({*one, *other}) == len(one) + len(other)
