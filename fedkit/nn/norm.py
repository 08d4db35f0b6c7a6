"""Normalisation layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fedkit.core.numerics import K


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
        statistics, parameters = (self.running_mean, self.running_var), (self.weight, self.bias)
        if torch.compiler.is_exporting():
            out: Tensor = _OPS.l1_batch_norm(
                input, *statistics, *parameters, self.training, self.eps
            )
            return out
        return l1_batch_norm(
            *(input, *statistics, *parameters),
            training=self.training,
            momentum=self._count() if self.training else 0.0,
            eps=self.eps,
        )

    @torch.no_grad()
    def _count(self) -> float:
        """Count a batch and return the momentum; None means the plain mean over all of them."""
        if self.num_batches_tracked is None:
            return 0.0
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            return float(1 / self.num_batches_tracked.item())
        return self.momentum


class L1LayerNorm(nn.LayerNorm):
    """Layer normalisation by the mean absolute deviation, which takes no square root.

    Over the last axes, those of `normalized_shape`: d = x - mean(x), y = weight * d / (K mean|d| +
    eps) + bias. Takes and returns [..., *normalized_shape]; the arguments are those of
    `nn.LayerNorm`. Nothing is tracked: training and evaluation are the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        shape = list(self.normalized_shape)
        if list(input.shape[-len(shape) :]) != shape:
            raise ValueError(
                f"expected input [..., {', '.join(map(str, shape))}] (got {list(input.shape)})"
            )
        norm = _OPS.l1_layer_norm if torch.compiler.is_exporting() else _l1_layer_norm
        out: Tensor = norm(input, shape, self.weight, self.bias, self.eps)
        return out


# What the layers compute, as functions and as ops, so that a traced model shows one op for each, as
# of torch's own norms.


def _moments(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return per channel mean, what is off it, and spread."""
    mean = input.mean((0, 2, 3))
    centred = input - _over_channels(mean)
    return mean, centred, K * centred.abs().mean((0, 2, 3))


def _scaled(
    centred: Tensor, spread: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    out = centred / _over_channels(spread + eps)
    if weight is None or bias is None:
        return out
    return out * _over_channels(weight) + _over_channels(bias)


def l1_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """Normalise as `L1BatchNorm2d` does; arguments are those of `F.batch_norm`.

    As that does, it follows the `__torch_function__` protocol, so that a log of the calls of
    torch has one norm in it.
    """
    tensors = (input, running_mean, running_var, weight, bias)
    if has_torch_function_variadic(*tensors):
        named: dict[str, Any] = {"training": training, "momentum": momentum, "eps": eps}
        out: Tensor = handle_torch_function(l1_batch_norm, tensors, *tensors, **named)
        return out
    if not training and running_mean is not None and running_var is not None:
        return _l1_batch_norm(*tensors, False, eps)
    mean, centred, spread = _moments(input)
    if training and running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.detach(), momentum)
            running_var.lerp_(spread.detach().square(), momentum)
    return _scaled(centred, spread, weight, bias, eps)


def _l1_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
) -> Tensor:
    """Normalise by the batch or by running statistics, which stay as they are."""
    if training or running_mean is None or running_var is None:
        _, centred, spread = _moments(input)
    else:
        centred, spread = input - _over_channels(running_mean), running_var.sqrt()
    return _scaled(centred, spread, weight, bias, eps)


def _l1_layer_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(axes, keepdim=True)
    out = centred / (K * centred.abs().mean(axes, keepdim=True) + eps)
    if weight is not None:
        out = out * weight
    return out if bias is None else out + bias


_LIBRARY: Any = torch.library.Library("fedkit", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "l1_batch_norm(Tensor input, Tensor? running_mean, Tensor? running_var, Tensor? weight, "
    "Tensor? bias, bool training, float eps) -> Tensor"
)
_LIBRARY.define(
    "l1_layer_norm(Tensor input, int[] normalized_shape, Tensor? weight, Tensor? bias, float eps) "
    "-> Tensor"
)
_LIBRARY.impl("l1_batch_norm", _l1_batch_norm, "CompositeExplicitAutograd")
_LIBRARY.impl("l1_layer_norm", _l1_layer_norm, "CompositeExplicitAutograd")
_OPS: Any = torch.ops.fedkit


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
