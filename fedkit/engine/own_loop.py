"""A model that a user's own loop trains: their optimiser, their batches, our masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fedkit.core.errors import TaskError
from fedkit.core.lookup import theirs
from fedkit.engine.base import GradientSums, LocalTraining, check_loss
from fedkit.engine.torch import TorchEngine, drawn_from
from fedkit.sparse.state import Masks, ModelState
from fedkit.tasks.task import Examples

Loop = Callable[[nn.Module], float]
"""Trains a model in place for a round; returns the mean training loss."""


class OwnLoopEngine(TorchEngine):
    """The torch engine, with a loop of the user's in place of its own.

    The loop sees an ordinary module. Gradients of pruned weights are zero in it, and the masks are
    laid over what it returns, whatever the optimiser did. It may move the module to a device and
    leave it there.

    Args:
        model: The model; the engine owns it from now on.
        loss: (outputs, targets) -> scalar tensor, for what is asked besides training: which
            gradients of pruned weights are the largest, and which candidate is the best.
        loop: Trains.
    """

    def __init__(
        self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], loop: Loop
    ) -> None:
        super().__init__(model, loss)
        self._loop = loop

    def train(
        self,
        state: ModelState,
        examples: Examples,
        how: LocalTraining,
        seed: int,
        gradient_sums: GradientSums | None = None,
    ) -> tuple[ModelState, float]:
        """See `Engine.train`. Of `how` only what is trained counts; all else is the loop's affair.

        What torch, numpy and `random` draw in the loop is drawn from `seed`.

        Raises:
            TaskError: The loop fails, or returns no number.
            FleetError: The loss is not finite.
        """
        with drawn_from(seed), self.only(how.trained):
            self._load(state)
            self._restart_statistics()
            self._model.train()
            with (
                _masked(self._weights, state.masks, gradient_sums),
                theirs("the training loop", TaskError),
            ):
                loss = float(self._loop(self._model))
        self._model.to("cpu")
        self._model.zero_grad(set_to_none=True)
        trained = self._read(state.masks)
        for name, mask in state.masks.items():
            trained.weights[name][~mask] = 0
        still = self._weights.keys() - self._moving(how.trained).keys()
        weights = {n: state.weights[n] if n in still else w for n, w in trained.weights.items()}
        return replace(trained, weights=weights), check_loss(loss)


@contextmanager
def _masked(
    weights: Mapping[str, nn.Parameter], masks: Masks, sums: GradientSums | None
) -> Iterator[None]:
    """Let no gradient reach a pruned weight in a block; add up what it would have been."""

    def hook(name: str) -> Callable[[Tensor], Tensor]:
        mask = torch.from_numpy(masks[name])

        def keep(gradient: Tensor) -> Tensor:
            if sums is not None:
                sums[name] = sums.get(name, np.float32(0)) + gradient.detach().cpu().numpy()
            return gradient * mask.to(gradient.device)

        return keep

    hooks = [
        weights[name].register_hook(hook(name))  # type: ignore[no-untyped-call]
        for name in masks
        if weights[name].requires_grad
    ]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()
