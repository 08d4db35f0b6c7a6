"""What each norm of the registry computes in training, written down once more, slowly, in float64.

A reference is given a module and goes through the same steps. Most are a formula, whose gradient is
autograd's; those that smooth over steps have gradients of their own and are plain numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float64]
Step = tuple[Floats, Floats]
"""Outputs, and the gradient of the inputs."""

Reference = Callable[[nn.Module], Callable[[Tensor, Tensor], Step]]
"""Module -> (inputs, gradient of the outputs) -> step."""


def _formula(formula: Callable[[Any, Tensor], Tensor]) -> Reference:
    """Let autograd differentiate a formula of (the module's parameters, inputs)."""

    def reference(module: nn.Module) -> Callable[[Tensor, Tensor], Step]:
        def step(x: Tensor, gradient: Tensor) -> Step:
            x = x.detach().requires_grad_()
            y = formula(module, x)
            (dx,) = torch.autograd.grad(y, x, gradient)
            return y.detach().numpy(), dx.numpy()

        return step

    return reference


def _per_channel(x: Tensor, moments: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Return (x - centre) / spread, channel by channel; `moments` of all its values."""
    parts = []
    for channel in x.unbind(1):
        centre, spread = moments(channel.reshape(-1))
        parts.append((channel - centre) / spread)
    return torch.stack(parts, 1)


def _per_row(x: Tensor, moments: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    rows = []
    for row in x.reshape(-1, x.shape[-1]):
        centre, spread = moments(row)
        rows.append((row - centre) / spread)
    return torch.stack(rows).reshape(x.shape)


def _usual(eps: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def moments(values: Tensor) -> tuple[Tensor, Tensor]:
        mean = values.sum() / len(values)
        return mean, (((values - mean) ** 2).sum() / len(values) + eps) ** 0.5

    return moments


def _absolute(eps: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def moments(values: Tensor) -> tuple[Tensor, Tensor]:
        mean = values.sum() / len(values)
        deviation = (values - mean).abs().sum() / len(values)
        return mean, (np.pi / 2) ** 0.5 * deviation + eps

    return moments


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 2))


def _affine(norm: Any, x: Tensor) -> Tensor:
    return x * _wide(norm.weight, x) + _wide(norm.bias, x)


def _batch(norm: Any, x: Tensor) -> Tensor:
    return _affine(norm, _per_channel(x, _usual(norm.eps)))


def _layer(norm: Any, x: Tensor) -> Tensor:
    return _per_row(x, _usual(norm.eps)) * norm.weight + norm.bias


def _rms(norm: Any, x: Tensor) -> Tensor:
    eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps

    def moments(row: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(()), ((row**2).sum() / len(row) + eps) ** 0.5

    return _per_row(x, moments) * norm.weight


def _groups(norm: Any, x: Tensor, groups: int) -> Tensor:
    examples = []
    for example in x:
        parts = [
            (part - centre) / spread
            for part in example.chunk(groups)
            for centre, spread in [_usual(norm.eps)(part.reshape(-1))]
        ]
        examples.append(torch.cat(parts))
    return _affine(norm, torch.stack(examples))


def _progressive(norm: Any, x: Tensor) -> Tensor:
    rep = norm.rep
    flat = x.reshape(-1, x.shape[-1])
    share = _batch(rep, flat) + rep.eta * flat
    return norm.gamma * _layer(norm.layer_norm, x) + (1 - norm.gamma) * share.reshape(x.shape)


def _frozen(norm: Any, x: Tensor) -> Tensor:
    deviation = (norm.running_var + norm.eps) ** 0.5
    mean = x.sum(-1, keepdim=True) / x.shape[-1]
    return (x - mean) / deviation * norm.weight + norm.bias


def _evo_s0(norm: Any, x: Tensor) -> Tensor:
    spreads = torch.stack(
        [
            torch.stack(
                [
                    _usual(norm.eps)(part.reshape(-1))[1]
                    for part in example.chunk(norm.groups)
                    for _ in part
                ]
            )
            for example in x
        ]
    )[..., None, None]
    return x / (1 + torch.exp(-norm.v * x)) / spreads * norm.weight + norm.bias


def _evo_b0(norm: Any, x: Tensor) -> Tensor:
    batch = torch.stack([_usual(norm.eps)(each.reshape(-1))[1] for each in x.unbind(1)])
    own = torch.stack(
        [_usual(norm.eps)(plane.reshape(-1))[1] for example in x for plane in example]
    ).reshape(*x.shape[:2], 1, 1)
    either = norm.v * x + own
    larger = torch.where(either > batch[:, None, None], either, batch[:, None, None])
    return x / larger * norm.weight + norm.bias


_ALPHA, _LAMBDA = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def _selu(module: nn.Module, x: Tensor) -> Tensor:
    return torch.where(x > 0, _LAMBDA * x, _LAMBDA * _ALPHA * (torch.exp(x) - 1))


def _skip(module: Any, x: Tensor) -> Tensor:
    weight, bias = module.branch.weight[:, :, 0, 0], module.branch.bias
    return x + module.alpha * (torch.einsum("oc,nchw->nohw", weight, x) + _wide(bias, x))


# Those with a memory


class _Unified:
    """Rings of the last steps, as lists."""

    def __init__(self, module: Any) -> None:
        self.norm, self.squares, self.products = module, list[Floats](), list[Floats]()

    def __call__(self, x: Tensor, gradient: Tensor) -> Step:
        norm, own = self.norm, _means(np.square(x.numpy()))
        last = np.array([*self.squares, own][-norm.window :]) + norm.eps
        geometric = np.prod(last, 0) ** (1 / len(last))
        warms = len(self.squares) < norm.warmup
        is_outlier = False
        if not warms:
            deviations = np.sqrt(np.array(self.squares[-norm.window :]))
            spread = ((deviations - deviations.mean()) ** 2).mean()
            is_outlier = bool((last.mean(0) - geometric > norm.window * spread).any())
        divisor = own + norm.eps if warms or is_outlier else geometric
        y, xhat, g = _scaled(norm, x, gradient, divisor)
        nu = product = _means(g * xhat)
        if not is_outlier:
            self.squares.append(own)
            self.products.append(product)
            nu = product if warms else np.mean(self.products[-norm.window :], 0)
        return y, (g - _spread(nu, g) * xhat) / _spread(np.sqrt(divisor), g)


class _Power:
    def __init__(self, module: Any) -> None:
        self.norm, self.steps = module, 0
        self.psi, self.nu = np.zeros(0), np.zeros(x_channels(module))

    def __call__(self, x: Tensor, gradient: Tensor) -> Step:
        norm, own = self.norm, _means(np.square(x.numpy()))
        warms = self.steps < norm.warmup
        divisor = (own if warms else self.psi) + norm.eps
        share = 1 / (self.steps + 1) if warms else 1 - norm.alpha
        self.psi = own if self.steps == 0 else (1 - share) * self.psi + share * own
        self.steps += 1
        y, xhat, g = _scaled(norm, x, gradient, divisor)
        product, squares = _means(g * xhat), _means(xhat**2)
        nu = product if warms else self.nu
        self.nu = self.nu * (1 - (1 - norm.alpha) * squares) + (1 - norm.alpha) * product
        return y, (g - _spread(nu, g) * xhat) / _spread(np.sqrt(divisor), g)


def x_channels(module: Any) -> int:
    """How many channels a norm has."""
    return int(module.num_features)


def _scaled(
    norm: Any, x: Tensor, gradient: Tensor, divisor: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return outputs, what is normalised, and the gradient of that by the outputs'."""
    weight, bias = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    xhat = x.numpy() / _spread(np.sqrt(divisor), x)
    y = xhat * _spread(weight, x) + _spread(bias, x)
    return y, xhat, gradient.numpy() * _spread(weight, x)


def _means(x: Floats) -> Floats:
    return np.array([x[:, channel].mean() for channel in range(x.shape[1])])


def _spread(values: Floats, like: Any) -> Floats:
    return values.reshape(-1, *[1] * (len(like.shape) - 2))


REFERENCES: dict[str, Reference] = {
    "BatchNorm": _formula(_batch),
    "L1-BatchNorm": _formula(lambda n, x: _affine(n, _per_channel(x, _absolute(n.eps)))),
    "LayerNorm": _formula(_layer),
    "RMSNorm": _formula(_rms),
    "L1-LayerNorm": _formula(lambda n, x: _per_row(x, _absolute(n.eps)) * n.weight + n.bias),
    "GroupNorm": _formula(lambda n, x: _groups(n, x, n.num_groups)),
    "InstanceNorm": _formula(lambda n, x: _groups(n, x, x.shape[1])),
    "RepBN": _formula(lambda n, x: _batch(n, x) + n.eta * x),
    "PRepBN": _formula(_progressive),
    "UnifiedNorm": _Unified,
    "PowerNorm": _Power,
    "frozen LayerNorm": _formula(_frozen),
    "masked BatchNorm": _formula(_batch),
    "EvoNorm-S0": _formula(_evo_s0),
    "EvoNorm-B0": _formula(_evo_b0),
    "SELU": _formula(_selu),
    "SkipInit": _formula(_skip),
}
"""Name of a row -> what it computes."""
