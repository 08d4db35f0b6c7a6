"""The numpy norms against torch: by gradcheck, and against torch's own and our modules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedkit.integers.l1norm import Kind, Normalized, norm_backward, norm_forward
from fedkit.nn.norm import L1BatchNorm2d, L1LayerNorm

EPS = 0.1
KINDS: dict[Kind, nn.Module] = {
    "batch": nn.BatchNorm2d(3, eps=EPS),
    "l1-batch": L1BatchNorm2d(3, eps=EPS),
    "layer": nn.LayerNorm(4, eps=EPS),
    "l1-layer": L1LayerNorm(4, eps=EPS),
}
"""Each kind, and the module that computes the same of [n, 3, height, 4]."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def arguments(kind: Kind) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(3, 3, 2, 4, dtype=torch.float64)
    weight, bias = torch.randn(2, 3 if kind.endswith("batch") else 4, dtype=torch.float64)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


class L1NormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kind: Kind) -> Tensor:
        done = norm_forward(x.numpy(), weight.numpy(), bias.numpy(), EPS, kind)
        ctx.save_for_backward(weight, *map(torch.from_numpy, (done.y, done.xhat, done.sigma)))
        ctx.kind = kind
        return torch.from_numpy(done.y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, *saved = (tensor.numpy() for tensor in ctx.saved_tensors)
        found = norm_backward(gradients[0].numpy(), weight, Normalized(*saved), ctx.kind)
        return *map(torch.from_numpy, (found.x, found.weight, found.bias)), None


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_forward_pass(kind: Kind) -> None:
    assert torch.autograd.gradcheck(
        lambda *given: L1NormFunction.apply(*given, kind), arguments(kind)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_equal_the_modules(kind: Kind) -> None:
    module, (x, weight, bias) = KINDS[kind].double().train(), arguments(kind)
    parameters = {"weight": weight, "bias": bias}
    g = torch.randn_like(x)
    expected = torch.func.functional_call(module, parameters, x)
    found = L1NormFunction.apply(x, weight, bias, kind)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)
    for ours, theirs in zip(
        torch.autograd.grad(found, (x, weight, bias), g),
        torch.autograd.grad(expected, (x, weight, bias), g),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4), (2, 3, 2, 2, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_axes(kind: Kind, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    size = shape[1 if kind.endswith("batch") else -1]
    done = norm_forward(x, np.full(size, 3.0), np.full(size, 7.0), 1e-9, kind)
    found = norm_backward(np.ones(shape), np.full(size, 3.0), done, kind)
    together = tuple(i for i in range(len(shape)) if i != 1) if kind.endswith("batch") else -1
    assert np.allclose(done.y.mean(together), 7)
    spread = np.abs if kind.startswith("l1") else np.square
    expected = 3 * np.sqrt(2 / np.pi) if kind.startswith("l1") else 9
    assert np.allclose(spread(done.y - 7).mean(together), expected)
    # A gradient that moves all outputs alike is undone by the mean.
    assert np.allclose(found.x, 0)
    assert np.allclose(found.bias, x.size / size) and found.weight.shape == (size,)


def test_on_normal_inputs_both_deviations_agree() -> None:
    x = np.random.default_rng(0).normal(3, 2, (4000, 2))
    one, zero = np.ones(2), np.zeros(2)
    l1, l2 = (norm_forward(x, one, zero, 0.0, kind).sigma for kind in ("l1-batch", "batch"))
    assert np.allclose(l1, l2, rtol=0.03) and np.allclose(l1, 2, rtol=0.05)
