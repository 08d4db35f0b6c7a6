"""Freeze layer norms one after another, while a model is fine-tuned.

After Heimersheim, "You can remove GPT2's LayerNorm by fine-tuning", 2024 (arXiv 2409.13710): a norm
gets the mean of its deviations as a constant, and some steps of training follow, in which the model
gets used to it, before the next one. Where all go at once, models diverge.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedkit.core.errors import ConfigError
from fedkit.nn.norms.frozen import freeze, layer_norms

_MOMENTUM = 0.05
"""Of the mean of deviations, per step."""


class LayerNormRemoval:
    """Freezes the layer norms of a model while it trains; `step` is called after each batch.

    What an export makes of frozen norms, and which guards it leaves, is in `edge.passes.ln_freeze`.

    Args:
        model: In which frozen norms take the places of layer norms; their parameters stay the same
            tensors, so an optimiser goes on with them.
        every: Steps between two norms, at least 1; the first is frozen after so many too.
        names: Which norms, in their order; by default all layer norms of the model over the last
            axis that have weights, in its order.

    Attributes:
        left: Names of the norms that are not frozen yet.
        deviations: Name -> mean deviation, as far as a norm has seen batches in training mode.

    Raises:
        ConfigError: The model has no such norm, or `every` is below 1.
    """

    def __init__(self, model: nn.Module, every: int, names: Iterable[str] | None = None) -> None:
        if every < 1:
            raise ConfigError(f"every is {every}; give steps between two norms, at least 1")
        known = layer_norms(model)
        self.left = list(known if names is None else names)
        if unknown := [name for name in self.left if name not in known]:
            raise ConfigError(
                f"{unknown[0]!r} is no layer norm over the last axis with weights; these are: "
                f"{', '.join(known) or 'none'}"
            )
        if not self.left:
            raise ConfigError(f"{type(model).__name__} has no layer norm over the last axis")
        self.deviations: dict[str, float] = {}
        self._model, self._every, self._steps = model, every, 0
        self._hooks = {name: self._watch(name, known[name]) for name in self.left}

    def step(self) -> str:
        """Count a batch, and freeze the next norm if it is time; return its name, or nothing.

        Raises:
            ConfigError: The norm has seen no batch in training mode.
        """
        self._steps += 1
        if not self.left or self._steps % self._every:
            return ""
        name = self.left[0]
        if name not in self.deviations:
            raise ConfigError(
                f"the layer norm {name!r} has seen no batch in training mode; call step after "
                "each batch that the model was trained on"
            )
        self.left.pop(0)
        self._hooks.pop(name).remove()
        freeze(self._model, name, self.deviations[name] ** 2)
        return name

    def _watch(self, name: str, norm: nn.LayerNorm) -> RemovableHandle:
        """Keep the mean deviation that a norm divides by, of all that it sees in training."""

        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if module.training:
                with torch.no_grad():
                    seen = float(inputs[0].std(-1, correction=0).mean())
                before = self.deviations.get(name, seen)
                self.deviations[name] = before + _MOMENTUM * (seen - before)

        return norm.register_forward_pre_hook(look)
