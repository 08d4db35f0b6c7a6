"""The interface between algorithms and the code that computes on a device."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import FleetError
from fedkit.sparse.layout import Layout
from fedkit.sparse.state import ModelState, Weights
from fedkit.sparse.topk import Entries
from fedkit.stats.moments import Merge, Moments, NormMoments, merge
from fedkit.tasks.losses import Loss
from fedkit.tasks.metrics import Measure
from fedkit.tasks.task import Examples, Metric

STATISTICS_BATCH = 64
"""Examples that are normalised together when only statistics are wanted; equal in all engines.

As many as a usual batch of training, so that statistics take no more memory than that.
"""


def even_batches(order: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Cut an order into batches of nearly equal size.

    None is of one example, which no batch norm of features takes, if there are two or more and
    `batch_size` is above 2. With 2, an odd number of examples leaves one over.
    """
    return np.array_split(order, -(-len(order) // batch_size))


@dataclass(frozen=True)
class Batch:
    """Examples that are computed with together.

    Attributes:
        inputs: Holds their inputs, [.., ...].
        order: Which of `inputs` they are, int64 [n].
        targets: [n, ...].
    """

    inputs: NDArray[Any]
    order: NDArray[np.int64]
    targets: NDArray[np.int64]


class TrainingBatches:
    """The batches that a device trains on, epoch by epoch; the same in all engines."""

    def __init__(
        self,
        examples: Examples,
        how: LocalTraining,
        seed: int,
        inputs: NDArray[Any] | None = None,
        encode: Callable[[NDArray[np.float32]], NDArray[Any]] = lambda inputs: inputs,
    ) -> None:
        """Take what to train on.

        Args:
            examples: The device's data.
            how: Gives the size of batches.
            seed: Of the order of the examples, and of what their `augment` draws.
            inputs: What an engine computes with in place of the examples' inputs.
            encode: Makes that of changed inputs.
        """
        self._examples, self._size, self._encode = examples, how.batch_size, encode
        self._inputs = examples.inputs if inputs is None else inputs
        self._order = np.random.default_rng(seed)
        self._draws = np.random.default_rng([seed, _AUGMENT])

    def epoch(self) -> Iterator[Batch]:
        """Yield each example once, in a new order.

        Raises:
            TaskError: `augment` failed, or returned what are no inputs.
        """
        order = self._order.permutation(len(self._examples))
        for batch in even_batches(order, self._size):
            targets = self._examples.targets[batch]
            if self._examples.augment is None:
                yield Batch(self._inputs, batch, targets)
            else:
                yield Batch(self._changed(batch), np.arange(len(batch)), targets)

    def _changed(self, batch: NDArray[np.int64]) -> NDArray[Any]:
        return self._encode(self._examples.augmented(batch, self._draws))


_AUGMENT = 1
"""Beside a seed, tells the draws of `augment` from those of the order."""


def merge_batches(
    parts: Mapping[str, Sequence[Moments]], absolute: Container[str], frozen: bool
) -> NormMoments:
    """Return the moments of all batches of each norm that was met; see `Engine.norm_moments`."""
    spread: Merge = "absolute" if frozen else "folded"
    return {
        name: merge(moments, spread if name in absolute else "pooled")
        for name, moments in parts.items()
        if moments
    }


def check_loss(loss: float) -> float:
    """Return a training loss.

    Raises:
        FleetError: It is not finite.
    """
    if not np.isfinite(loss):
        raise FleetError(f"the training loss became {loss}; lower lr (--lr)")
    return loss


class MeanLoss:
    """The mean loss over examples that came in batches.

    Args:
        loss: What says how much a batch counts; None: its number of examples.
    """

    def __init__(self, loss: Loss | None) -> None:
        self._loss, self._total, self._share = loss, 0.0, 0.0

    def add(self, value: float, targets: NDArray[Any]) -> None:
        """Add the loss of a batch with such targets, [n, ...]."""
        share = len(targets) if self._loss is None else self._loss.share(targets)
        self._total += value * share
        self._share += share

    @property
    def value(self) -> float:
        """The mean; 0 where nothing counts."""
        return self._total / self._share if self._share else 0.0


NormLevels = tuple[tuple[str, ...], ...]
"""Names of norms by level, each once."""


def measure(
    engine: Engine, state: ModelState, examples: Examples, metric: Metric | Measure
) -> float:
    """Return a metric of a model's outputs for examples; only a batch of them is held at once."""
    seen, start = metric.start(), 0
    for outputs in engine.output_batches(state, examples.inputs):
        seen.add(outputs, examples.targets[start : start + len(outputs)])
        start += len(outputs)
    return seen.value()


GradientSums = dict[str, NDArray[np.float32]]
"""Per prunable parameter a sum of gradients, float32 of its shape; a missing one is 0."""


@dataclass(frozen=True)
class LocalTraining:
    """How a device trains: epochs over its data, batch size, SGD's parameters."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    trained: frozenset[str] | None = None
    """Names of the weights that move; None: all."""
    progress: float = 1.0
    """Share of a run that is over when this is done, 0 to 1, which schedules of norms follow."""


@runtime_checkable
class Replicable(Protocol):
    """An engine that can be had several times, to compute side by side in threads."""

    def replica(self) -> Engine:
        """Return an engine that computes the same, to the bit, and shares nothing that changes."""


@runtime_checkable
class Resting(Protocol):
    """An engine that keeps memory between calls, to save time."""

    def rest(self) -> None:
        """Give it back; the next call takes it anew, and returns what it would have."""


class Engine(Protocol):
    """Computes with one model on one device's data; every call is a pure function of its inputs."""

    layout: Layout

    def initial_state(self) -> ModelState:
        """Return the freshly initialised dense model."""

    def train(
        self,
        state: ModelState,
        examples: Examples,
        how: LocalTraining,
        seed: int,
        gradient_sums: GradientSums | None = None,
    ) -> tuple[ModelState, float]:
        """Train the kept weights; return the new state and the mean loss of the last epoch.

        Args:
            state: The model.
            examples: What it trains on.
            how: Epochs, batches and rates.
            seed: Seed of the order of examples.
            gradient_sums: Where given, the gradient of EVERY prunable weight in every step is added
                up here, without weight decay. That costs what a dense model's weight gradients do.

        Raises:
            FleetError: The loss stopped being finite.
        """

    @property
    def absolute_norms(self) -> frozenset[str]:
        """Norms that divide by a mean absolute deviation; its square stands for their variance."""

    @property
    def norm_parameters(self) -> frozenset[str]:
        """Names of the weights that are parameters of norm layers, of whatever kind."""

    def norm_levels(self, input_shape: tuple[int, ...]) -> NormLevels:
        """Return the norms in an order in which each depends on those of earlier levels alone.

        Args:
            input_shape: Shape of one example.
        """

    def norm_moments(
        self, state: ModelState, examples: Examples, frozen: bool = False
    ) -> NormMoments:
        """Return the moments of each norm layer's input, forward only.

        Args:
            state: The model.
            examples: What runs through it.
            frozen: Norms normalise by the state's running statistics instead of their batch's, so
                that the moments are those of all examples together, and deviations of
                `absolute_norms` are taken around the state's running mean.
        """

    def loss(self, state: ModelState, examples: Examples) -> float:
        """Return the mean loss under the running statistics."""

    def top_gradients(
        self, state: ModelState, examples: Examples, amounts: Mapping[str, int]
    ) -> dict[str, Entries]:
        """Return the `amounts[layer]` largest gradients of PRUNED weights of each given layer."""

    def gradients(self, state: ModelState, examples: Examples) -> Weights:
        """Return the gradient of the mean training loss by EVERY prunable weight, kept or pruned.

        All examples are one batch, under its own statistics; weight decay is not part of the loss.

        Returns:
            float32 arrays of the weights' shapes, by name in the order of `layout.prunable`.

        Raises:
            FleetError: The loss is not finite.
        """

    def outputs(self, state: ModelState, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the model's outputs under the running statistics, [n, ...]."""

    def output_batches(
        self, state: ModelState, inputs: NDArray[np.float32]
    ) -> Iterator[NDArray[np.float32]]:
        """Yield what `outputs` returns, a batch after the other.

        Nothing else may be asked of the engine before the last one.
        """
