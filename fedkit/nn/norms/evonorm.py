"""EvoNorms: a norm and its activation in one, found by search (Liu et al., 2020, arXiv 2004.02967).

Both take and return [n, channels, height, width], train on torch, and are refused by name in an
export: they divide by a root that is no norm of the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedkit.core.errors import ConfigError


class EvoNormS0(nn.Module):
    """x * sigmoid(v * x) / sqrt(variance of the group + eps) * weight + bias, of each example.

    Args:
        channels: Of the input.
        groups: Of channels, each of as many in a row; the paper takes 32.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, groups: int = 8, eps: float = 1e-5) -> None:
        super().__init__()
        if groups < 1 or channels % groups:
            raise ConfigError(f"{groups} groups do not divide {channels} channels")
        self.groups, self.eps = groups, eps
        self.v, self.weight, self.bias = _parameters(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        norm = _OPS.evo_norm_s0 if torch.compiler.is_exporting() else _evo_norm_s0
        out: Tensor = norm(x, self.v, self.weight, self.bias, self.groups, self.eps)
        return out


class EvoNormB0(nn.Module):
    """x / max(sqrt(batch variance), v * x + sqrt(variance of the example)) * weight + bias.

    `running_var` averages the batch's variances, corrected for their number of values, as
    `nn.BatchNorm2d` does; `running_mean` is kept to merge variances of devices exactly.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.v, self.weight, self.bias = _parameters(channels)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def reset_running_stats(self) -> None:
        """Start the running statistics anew."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        norm = _OPS.evo_norm_b0 if torch.compiler.is_exporting() else _evo_norm_b0
        variance = self._of_batch(x) if self.training else self.running_var
        out: Tensor = norm(x, variance, self.v, self.weight, self.bias, self.eps)
        return out

    def _of_batch(self, x: Tensor) -> Tensor:
        count = x.numel() // x.shape[1]
        if count < 2:
            raise ValueError(f"expected more than 1 value per channel, got {tuple(x.shape)}")
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            plain = 1 / self.num_batches_tracked.item()
            momentum = plain if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
        return variance


def _parameters(channels: int) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """Return v, weight and bias, [channels, 1, 1]."""
    one, none = torch.ones(channels, 1, 1), torch.zeros(channels, 1, 1)
    return nn.Parameter(one.clone()), nn.Parameter(one), nn.Parameter(none)


# As ops, so that an export names the layer it refuses, not its parts.


def _evo_norm_s0(
    x: Tensor, v: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> Tensor:
    parts = x.reshape(len(x), groups, -1, *x.shape[2:])
    variance = parts.var((2, 3, 4), correction=0, keepdim=True)
    spread = (variance + eps).sqrt().expand_as(parts).reshape(x.shape)
    out: Tensor = x * torch.sigmoid(v * x) / spread * weight + bias
    return out


def _evo_norm_b0(
    x: Tensor, variance: Tensor, v: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    of_example = (x.var((2, 3), correction=0, keepdim=True) + eps).sqrt()
    of_batch = (variance + eps).sqrt()[:, None, None]
    out: Tensor = x / torch.maximum(of_batch, v * x + of_example) * weight + bias
    return out


_LIBRARY: Any = torch.library.Library("fedkit", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "evo_norm_s0(Tensor x, Tensor v, Tensor weight, Tensor bias, int groups, float eps) -> Tensor"
)
_LIBRARY.define(
    "evo_norm_b0(Tensor x, Tensor variance, Tensor v, Tensor weight, Tensor bias, float eps) "
    "-> Tensor"
)
_LIBRARY.impl("evo_norm_s0", _evo_norm_s0, "CompositeExplicitAutograd")
_LIBRARY.impl("evo_norm_b0", _evo_norm_b0, "CompositeExplicitAutograd")
_OPS: Any = torch.ops.fedkit
