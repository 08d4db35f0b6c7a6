"""Take the deviation out of layer norms, one after another, while a model is fine-tuned.

A layer norm whose deviation is a constant is linear: an export holds it as a matrix, which folds
into the layers behind it (`fedkit export RUN --rewrite lowrank_merge`). After Heimersheim, 2024,
"You can remove GPT2's LayerNorm by fine-tuning": norms are frozen at the mean of their deviations,
with some steps of training between, in which the model gets used to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fedkit.core.errors import ConfigError

_MOMENTUM = 0.05
"""Of the mean of deviations, per step."""


class FrozenLayerNorm(nn.Module):
    """A layer norm over the last axis that divides by a constant.

    Takes and returns [..., channels]: (x - mean(x)) / deviation * weight + bias.

    Args:
        norm: Whose parameters it takes, the same tensors.
        deviation: What it divides by, above 0.
    """

    deviation: Tensor

    def __init__(self, norm: nn.LayerNorm, deviation: float) -> None:
        super().__init__()
        (self.channels,) = norm.normalized_shape
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32))

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_exporting() and not self.training:
            return nn.functional.linear(input, self._matrix(), self.bias)
        out = (input - input.mean(-1, keepdim=True)) / self.deviation
        out = out if self.weight is None else out * self.weight
        return out if self.bias is None else out + self.bias

    def _matrix(self) -> Tensor:
        """Return what takes the mean off and scales, [channels, channels]."""
        centring = torch.eye(self.channels) - 1 / self.channels
        scale = torch.ones(self.channels) if self.weight is None else self.weight
        return centring * (scale / self.deviation)[:, None]

    def extra_repr(self) -> str:
        return f"{self.channels}, deviation={self.deviation:.3g}"


class LayerNormRemoval:
    """Freezes the layer norms of a model while it trains; `step` is called after each batch.

    Example:
        removal = LayerNormRemoval(model, every=50)
        for inputs, targets in batches:
            loss = cross_entropy(model(inputs), targets)
            ...
            removal.step()

    Args:
        model: In which frozen norms take the places of layer norms; parameters stay the same
            tensors, so an optimiser goes on with them.
        every: Steps between two norms, at least 1; the first is frozen after so many too.
        names: Which norms, in their order; by default all layer norms of the model over the last
            axis alone, in its order.

    Raises:
        ConfigError: The model has no such norm, or `every` is below 1.
    """

    def __init__(self, model: nn.Module, every: int, names: Iterable[str] | None = None) -> None:
        if every < 1:
            raise ConfigError(f"every is {every}; give steps between two norms, at least 1")
        self.model, self.every, self.steps = model, every, 0
        known = layer_norms(model)
        self.left = list(known if names is None else names)
        if unknown := [name for name in self.left if name not in known]:
            raise ConfigError(
                f"{unknown[0]!r} is no layer norm over the last axis; these are: "
                f"{', '.join(known) or 'none'}"
            )
        if not self.left:
            raise ConfigError(f"{type(model).__name__} has no layer norm over the last axis")
        self.deviations: dict[str, float] = {}
        self._hooks = {name: self._watch(name, known[name]) for name in self.left}

    @property
    def is_done(self) -> bool:
        """Whether all norms are frozen."""
        return not self.left

    def step(self) -> str:
        """Count a batch, and freeze the next norm if it is time; return its name, or nothing.

        Raises:
            ConfigError: The norm has seen no example in training mode.
        """
        self.steps += 1
        if self.is_done or self.steps % self.every:
            return ""
        name = self.left.pop(0)
        if name not in self.deviations:
            raise ConfigError(
                f"the layer norm {name!r} has seen no example in training mode; call step after "
                "a batch was trained on"
            )
        self._hooks.pop(name).remove()
        freeze(self.model, name, self.deviations[name])
        return name

    def _watch(self, name: str, norm: nn.LayerNorm) -> Any:
        """Let a norm tell its mean deviation whenever it sees a batch in training."""

        def look(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if norm.training:
                seen = _mean_deviation(inputs[0].detach(), float(norm.eps))  # type: ignore[arg-type]
                before = self.deviations.get(name, seen)
                self.deviations[name] = before + _MOMENTUM * (seen - before)

        return norm.register_forward_pre_hook(look)


def layer_norms(model: nn.Module) -> dict[str, nn.LayerNorm]:
    """Return the layer norms of a model over the last axis alone, by name, in its order."""
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1
    }


def freeze(model: nn.Module, name: str, deviation: float) -> None:
    """Let a layer norm of a model divide by a constant.

    Args:
        model: It is changed.
        name: Of the norm.
        deviation: The constant.

    Raises:
        ConfigError: The constant is not above 0.
    """
    if not 0 < deviation < float("inf"):
        raise ConfigError(f"deviation is {deviation}; a norm divides by a number above 0")
    parent, _, attribute = name.rpartition(".")
    frozen = FrozenLayerNorm(model.get_submodule(name), deviation)  # type: ignore[arg-type]
    frozen.train(model.training)
    setattr(model.get_submodule(parent), attribute, frozen)


def _mean_deviation(x: Tensor, eps: float) -> float:
    return float((x.var(-1, unbiased=False) + eps).sqrt().mean())
