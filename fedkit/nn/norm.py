"""Normalisation layers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fedkit.integers.l1norm import K


class L1BatchNorm2d(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation by the mean absolute deviation, which takes no square root to train.

    Per channel over (n, height, width): d = x - mean(x), s = K mean|d|, y = weight * d / (s + eps)
    + bias. For normally distributed inputs s is the standard deviation. Takes and returns
    [n, channels, height, width]; the arguments are those of `nn.BatchNorm2d`.

    `running_var` averages s squared, without a correction for the number of samples, so that they
    can be merged as variances are; evaluation divides by sqrt(running_var) + eps.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 4:
            raise ValueError(f"expected 4D input (got {input.dim()}D input)")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if self.training or self.running_mean is None or self.running_var is None:
            mean = input.mean((0, 2, 3))
            centred = input - _over_channels(mean)
            spread = K * centred.abs().mean((0, 2, 3))
            if self.training:
                self._track(mean.detach(), spread.detach())
        else:
            centred = input - _over_channels(self.running_mean)
            spread = self.running_var.sqrt()
        out = centred / _over_channels(spread + self.eps)
        if self.affine:
            out = out * _over_channels(self.weight) + _over_channels(self.bias)
        return out

    @torch.no_grad()
    def _track(self, mean: Tensor, spread: Tensor) -> None:
        """Move the running statistics by `momentum`; None means the plain mean over all calls."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, factor)
        self.running_var.lerp_(spread.square(), factor)


class L1LayerNorm(nn.LayerNorm):
    """Layer normalisation by the mean absolute deviation, which takes no square root.

    Over the last axes, those of `normalized_shape`: d = x - mean(x), y = weight * d / (K mean|d| +
    eps) + bias. Takes and returns [..., *normalized_shape]; the arguments are those of
    `nn.LayerNorm`. Nothing is tracked: training and evaluation are the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        axes = tuple(range(-len(self.normalized_shape), 0))
        if input.shape[axes[0] :] != self.normalized_shape:
            raise ValueError(
                f"expected input [..., {', '.join(map(str, self.normalized_shape))}] "
                f"(got {list(input.shape)})"
            )
        centred = input - input.mean(axes, keepdim=True)
        out = centred / (K * centred.abs().mean(axes, keepdim=True) + self.eps)
        if self.weight is not None:
            out = out * self.weight
        return out if self.bias is None else out + self.bias


def with_l1_norms(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose norms are L1 ones with the same parameters.

    `BatchNorm2d` becomes `L1BatchNorm2d`, `LayerNorm` becomes `L1LayerNorm`.
    """
    model = copy.deepcopy(model)
    for name, norm in list(model.named_modules()):
        l1 = _l1_of(norm)
        if l1 is not None:
            l1.load_state_dict(norm.state_dict())
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, l1)
    return model


def _l1_of(norm: nn.Module) -> nn.Module | None:
    """Return a new L1 norm of the same kind, None for other modules."""
    if type(norm) is nn.BatchNorm2d:
        return L1BatchNorm2d(
            *(norm.num_features, norm.eps, norm.momentum, norm.affine),
            track_running_stats=norm.track_running_stats,
        )
    if type(norm) is nn.LayerNorm:
        shape, has_bias = list(norm.normalized_shape), norm.bias is not None
        return L1LayerNorm(shape, norm.eps, norm.elementwise_affine, bias=has_bias)
    return None


def _over_channels(values: Tensor) -> Tensor:
    return values[:, None, None]
