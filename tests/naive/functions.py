"""What functions of one value mean, in torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def _elu(x: Tensor, alpha: float, gamma: float, rate: float) -> Tensor:
    return torch.where(x > 0, gamma * x, gamma * alpha * torch.expm1(rate * x.clamp(max=0)))


def _hard_sigmoid(x: Tensor, slope: float, offset: float) -> Tensor:
    if (slope, offset) == (1 / 6, 0.5):
        return F.hardsigmoid(x)  # whose gradient has the sixth of float32
    return F.hardtanh(slope * x + offset, 0, 1)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": F.hardswish,
    "elu": _elu,
    "leaky_relu": F.leaky_relu,
    "softplus": F.softplus,
    "exp": torch.exp,
    "log_sigmoid": F.logsigmoid,
    "mish": F.mish,
    "erf": torch.erf,
    "abs": torch.abs,
    "clip": torch.clamp,
}
