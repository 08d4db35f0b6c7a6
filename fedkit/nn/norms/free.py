"""What takes the place of norms: self-normalising activations, and scaled residual branches.

Sources: Klambauer et al., "Self-Normalizing Neural Networks", 2017 (arXiv 1706.02515); De and
Smith, "Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep Networks",
2020 (arXiv 2002.10444).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class ScaledResidual(nn.Module):
    """x + alpha * branch(x), with one number alpha.

    Args:
        branch: Returns what it is given the shape of.
        alpha: Of the start; 0 is SkipInit, by which a deep network starts as the identity.
        learned: Whether alpha is trained, as in SkipInit; else it is a constant, as 1 / sqrt(2).
    """

    alpha: Tensor

    def __init__(self, branch: nn.Module, alpha: float = 1.0, learned: bool = True) -> None:
        super().__init__()
        self.branch = branch
        value = torch.tensor([alpha])
        if learned:
            self.alpha = nn.Parameter(value)
        else:
            self.register_buffer("alpha", value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        out: Tensor = x + self.alpha * self.branch(x)
        return out


def skip_init(branch: nn.Module) -> ScaledResidual:
    """Return a residual branch that starts as nothing: x + 0 * branch(x), alpha learned."""
    return ScaledResidual(branch, 0.0)


def lecun_normal_(model: nn.Module) -> nn.Module:
    """Draw a model's weights so that SELU keeps mean 0 and variance 1: LeCun's normal.

    Weights of convolutions and linear layers get a variance of 1 / (inputs of a filter), biases
    become 0. Changes and returns the model.
    """
    for layer in model.modules():
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def with_selu(model: nn.Module) -> nn.Module:
    """Return a copy of a model with SELU for its ReLUs and without batch norms, drawn for them.

    A convolution or linear layer before a norm has no bias, mostly, and gets none here.
    """
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        parent, _, attribute = name.rpartition(".")
        if isinstance(layer, nn.ReLU | nn.ReLU6):
            setattr(model.get_submodule(parent), attribute, nn.SELU())
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            setattr(model.get_submodule(parent), attribute, nn.Identity())
    return lecun_normal_(model)
