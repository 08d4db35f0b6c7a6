"""An engine whose training steps a microcontroller makes; a gateway stands between it and a fleet.

A gateway is an ordinary device of a fleet but for this engine. The examples lie with the gateway,
which sends the images of each batch; then it computes all else, as the losses of candidates, by
itself. Or they lie on the microcontroller and never leave it; then it can train, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import DataError, EngineError
from fedkit.engine.base import (
    Batch,
    GradientSums,
    LocalTraining,
    TrainingBatches,
    check_loss,
)
from fedkit.engine.kernels.network import layers_of
from fedkit.engine.plan.plan import plan_digest
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.sparse.state import ModelState, Weights, masks_digest, same_masks
from fedkit.sparse.topk import Entries
from fedkit.stats.moments import NormMoments
from fedkit.tasks.task import Examples
from fedkit.trainer.link import About, TrainerLink
from fedkit.trainer.on_disk import TrainerFolder


class LinkedEngine(SparseEngine):
    """The sparse engine, but that training goes over a line.

    Args:
        trainer: The folder whose sources the microcontroller runs.
        link: The line.

    Raises:
        EngineError: It runs other sources, or the kernels are missing here.
        FleetError: The line is broken.
    """

    def __init__(self, trainer: TrainerFolder, link: TrainerLink) -> None:
        super().__init__(trainer.plan, stored_bits=trainer.stored_bits)
        self._trainer, self._link = trainer, link
        self._layers = layers_of(trainer.plan, trainer.masks, 1)[1]
        shapes = [trainer.plan.stats[name] for name in trainer.statistics]
        self._statistics = [prod(shape) for shape in shapes]
        self.about = link.about()
        self._check_same(self.about)

    def _check_same(self, about: About) -> None:
        trainer = self._trainer
        ours = {
            "plan": plan_digest(trainer.plan),
            "masks": masks_digest(trainer.masks),
            "batch": trainer.batch,
            "stored_bits": trainer.stored_bits,
            "values": trainer.values,
            "statistics": sum(self._statistics),
        }
        theirs = {name: getattr(about, name) for name in ours}
        if odd := [name for name in ours if ours[name] != theirs[name]]:
            raise EngineError(
                f"the microcontroller runs another trainer than {trainer.path} holds (of another "
                f"{', '.join(odd)}); flash the sources of that folder, or name its own"
            )

    def train(
        self,
        state: ModelState,
        examples: Examples,
        how: LocalTraining,
        seed: int,
        gradient_sums: GradientSums | None = None,
    ) -> tuple[ModelState, float]:
        """See `Engine.train`: the same steps as those of `SparseEngine` with its plain kernels."""
        self._check(state, examples, how, gradient_sums)
        self._layers.load(state.weights)
        self._link.begin(seed, self._layers.values)
        batches, loss = TrainingBatches(examples, how, seed), 0.0
        rates = how.lr, how.momentum, how.weight_decay
        for _ in range(how.epochs):
            self._link.epoch()
            losses = []
            for batch in batches.epoch():
                self._put(batch)
                losses.append(check_loss(self._link.step(rates)))
            loss = sum(losses) / len(losses)
        self._layers.values[:] = self._link.values(len(self._layers.values))
        return ModelState(self._layers.weights(), self._found(state), state.masks), loss

    def _put(self, batch: Batch) -> None:
        """Give a batch to the microcontroller."""
        for place, (index, label) in enumerate(zip(batch.order, batch.targets, strict=True)):
            self._link.put(place, batch.inputs[index], int(label))

    def _found(self, state: ModelState) -> Mapping[str, NDArray[np.float32]]:
        """Return the running statistics, in the model's order."""
        if not self._statistics:
            return state.stats
        ends = np.cumsum(self._statistics)
        parts = np.split(self._link.statistics(int(ends[-1])), ends[:-1])
        found = dict(zip(self._trainer.statistics, parts, strict=True))
        return {name: found[name] for name in self.plan.stats}

    def _check(
        self,
        state: ModelState,
        examples: Examples,
        how: LocalTraining,
        gradient_sums: GradientSums | None,
    ) -> None:
        batch = self._trainer.batch
        if not same_masks(state.masks, self._trainer.masks):
            raise EngineError(
                "the server's masks differ from those that the microcontroller was flashed with; "
                "export the trainer of the run's last checkpoint and flash it (fedkit export RUN "
                "--target c99-train), or take a method that leaves masks as they are"
            )
        if how.batch_size != batch or len(examples) % batch:
            raise EngineError(
                f"batch_size is {how.batch_size} and there are {len(examples)} examples; the "
                f"microcontroller takes {batch} at a time, and needs full batches (--batch-size "
                f"{batch})"
            )
        if how.trained is not None or gradient_sums is not None:
            raise EngineError(
                "a part of the weights is to be trained, or all gradients are to be added up; a "
                "microcontroller trains what is kept, and nothing else"
            )

    def replica(self) -> NoReturn:
        """Refuse: there is one microcontroller."""
        raise EngineError("a microcontroller cannot answer in several threads; run one worker")


class OwnExamplesEngine(LinkedEngine):
    """One whose microcontroller has the examples; it trains, and nothing else can be asked of it.

    Attributes:
        examples: Stand in for those that a gateway never sees: they tell how many there are.
    """

    def __init__(self, trainer: TrainerFolder, link: TrainerLink) -> None:
        super().__init__(trainer, link)
        count = self.about.examples
        if not count:
            raise DataError(
                "the microcontroller has no examples of its own; let its firmware have some, or "
                "give the gateway data"
            )
        shape = (count, *trainer.plan.tensors[0].shape)
        self.examples = Examples(np.zeros(shape, np.float32), np.zeros(count, np.int64))

    def _put(self, batch: Batch) -> None:
        for place, index in enumerate(batch.order):
            self._link.put_own(place, int(index))

    def _refuse(self) -> NoReturn:
        raise EngineError(
            "the examples lie on the microcontroller, which trains and does nothing else; take a "
            "method and a selection that ask devices for training alone, or give the gateway data"
        )

    def norm_moments(
        self, state: ModelState, examples: Examples, frozen: bool = False
    ) -> NormMoments:
        """Refuse."""
        self._refuse()

    def loss(self, state: ModelState, examples: Examples) -> float:
        """Refuse."""
        self._refuse()

    def output_batches(self, state: ModelState, inputs: NDArray[Any]) -> Iterator[Any]:
        """Refuse."""
        self._refuse()

    def top_gradients(
        self, state: ModelState, examples: Examples, amounts: Mapping[str, int]
    ) -> dict[str, Entries]:
        """Refuse."""
        self._refuse()

    def gradients(self, state: ModelState, examples: Examples) -> Weights:
        """Refuse."""
        self._refuse()
