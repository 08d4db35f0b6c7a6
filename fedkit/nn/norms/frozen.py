"""A layer norm with a deviation that is frozen, which is a linear layer.

Source: Baroni et al., "Transformers Don't Need LayerNorm at Inference Time", 2025 (arXiv
2507.02559), and Heimersheim, "You can remove GPT2's LayerNorm by fine-tuning", 2024 (arXiv
2409.13710). A model is trained with layer norms, these are frozen, and it is trained on.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkit.nn.norms.in_place import compute_itself


class FrozenLayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(running_var + eps) * weight + bias over the last axis.

    `running_var` [1] is the mean variance of all tokens, `running_mean` [1] is 0. No pass changes
    them: exact statistics of a fleet (`bn_merge`), or `with_frozen_layer_norms`, set them.

    Takes and returns [..., width].
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        compute_itself(self)
        self.register_buffer("running_mean", torch.zeros(1))
        self.register_buffer("running_var", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        scale = self.weight / (self.running_var + self.eps).sqrt()
        if torch.compiler.is_exporting():
            centre = torch.eye(self.width, dtype=x.dtype) - 1 / self.width
            return functional.linear(x, scale[:, None] * centre, self.bias)
        return (x - x.mean(-1, keepdim=True)) * scale + self.bias


def with_frozen_layer_norms(model: nn.Module, inputs: Tensor) -> nn.Module:
    """Return a copy of a model whose layer norms over the last axis are frozen.

    Args:
        model: Is run in evaluation, once; it is left as it was.
        inputs: [n, ...], of which each norm's variance is measured.
    """
    model = copy.deepcopy(model)
    seen: dict[str, Tensor] = {}
    norms = layer_norms(model)
    hooks = [
        norm.register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].var(-1, correction=0).mean()})
        )
        for name, norm in norms.items()
    ]
    was_training = model.training
    with torch.no_grad():
        model.eval()(inputs)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    for name, variance in seen.items():
        freeze(model, name, float(variance))
    return model


def layer_norms(model: nn.Module) -> dict[str, nn.LayerNorm]:
    """Return the layer norms of a model that can be frozen, by name, in its order."""
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.LayerNorm and _is_of_last(module)
    }


def freeze(model: nn.Module, name: str, variance: float) -> None:
    """Put a frozen norm, of the same parameters, in the place of one of `layer_norms`.

    Args:
        model: Is changed.
        name: Of the norm.
        variance: Of all tokens that it will see, in the mean.
    """
    parent, _, attribute = name.rpartition(".")
    frozen = _frozen(layer_norms(model)[name], variance)
    setattr(model.get_submodule(parent), attribute, frozen)


def _is_of_last(norm: nn.LayerNorm) -> bool:
    return len(norm.normalized_shape) == 1 and norm.weight is not None


def _frozen(norm: nn.LayerNorm, variance: float) -> FrozenLayerNorm:
    frozen = FrozenLayerNorm(norm.normalized_shape[0], norm.eps)
    frozen.weight = norm.weight
    if norm.bias is not None:
        frozen.bias = norm.bias
    frozen.running_var.fill_(variance)
    return frozen.train(norm.training)
