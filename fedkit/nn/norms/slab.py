"""The norms of SLAB (Guo et al., "SLAB: Efficient Transformers", 2024, arXiv 2405.11582).

Layer norms train Transformers well and cost a root per token on a device; batch norms fold away and
train them badly. RepBN adds a share of its input to a batch norm, and PRepBN begins as a layer norm
and ends as a RepBN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedkit.core.errors import ConfigError
from fedkit.nn.norms.in_place import compute_itself


class RepBatchNorm(nn.modules.batchnorm._BatchNorm):
    """RepBN: BN(x) + eta * x (equation 5), which in evaluation is one scale and shift per channel.

    Takes and returns [n, channels, ...] of two to four dimensions; arguments and buffers are those
    of `nn.BatchNorm1d`. `eta` [1] is learned from 1 on.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__(channels, eps, momentum)
        self.eta = nn.Parameter(torch.ones(1))

    def _check_input_dim(self, input: Tensor) -> None:
        if not 2 <= input.dim() <= 4:
            raise ValueError(f"expected 2D, 3D or 4D input (got {input.dim()}D input)")

    def forward(self, input: Tensor) -> Tensor:
        """Return the same shape."""
        if not torch.compiler.is_exporting():
            return super().forward(input) + self.eta * input
        self._check_input_dim(input)
        held = self.running_mean, self.running_var, self.weight, self.bias, self.eta
        out: Tensor = _OPS.rep_batch_norm(input, *held, self.training, self.eps)
        return out


class ProgressiveNorm(nn.Module):
    """PRepBN: gamma * LN(x) + (1 - gamma) * RepBN(x), over the last axis (equation 3).

    Training starts with the layer norm; `gamma` falls to 0 along a line over the first `until` of
    all rounds. It follows the server's round (`follow`), and is in no model that travels: a device
    that missed rounds, or comes late, has the right one. In evaluation it is 0, as in the paper's
    code, so that what is measured before that round is what would be exported then.

    Args:
        width: Of the last axis.
        eps: Of both norms.
        until: Share of the rounds after which gamma is 0; above 0, at most 1.
    """

    gamma: Tensor

    def __init__(self, width: int, eps: float = 1e-5, until: float = 0.5) -> None:
        super().__init__()
        if not 0 < until <= 1:
            raise ConfigError(f"until is {until}; it must be a share of the rounds, above 0 to 1")
        self.until, self.eps = until, eps
        compute_itself(self)
        self.layer_norm, self.rep = nn.LayerNorm(width, eps), RepBatchNorm(width, eps)
        self.register_buffer("gamma", torch.zeros(()), persistent=False)

    def follow(self, progress: float) -> None:
        """Set gamma for a round.

        Args:
            progress: Share of the run that is over when the round ends, 0 to 1.
        """
        self.gamma.fill_(max(0.0, 1 - progress / self.until))

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, ..., width] of the same."""
        channels = x.dim() - 1
        out: Tensor = self.rep(x.transpose(1, channels)).transpose(1, channels)
        if not self.training or not self.gamma:
            return out
        share: Tensor = self.gamma * self.layer_norm(x)
        return share + (1 - self.gamma) * out


def _rep_batch_norm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    eta: Tensor,
    training: bool,
    eps: float,
) -> Tensor:
    """Compute RepBN by running statistics, which is all that a trace asks for."""
    shape = (-1, *(1,) * (input.dim() - 2))
    scale = weight / (running_var + eps).sqrt()
    shift = bias - running_mean * scale
    out: Tensor = input * (scale + eta).view(shape) + shift.view(shape)
    return out


_LIBRARY: Any = torch.library.Library("fedkit", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "rep_batch_norm(Tensor input, Tensor running_mean, Tensor running_var, Tensor weight, "
    "Tensor bias, Tensor eta, bool training, float eps) -> Tensor"
)
_LIBRARY.impl("rep_batch_norm", _rep_batch_norm, "CompositeExplicitAutograd")
_OPS: Any = torch.ops.fedkit
