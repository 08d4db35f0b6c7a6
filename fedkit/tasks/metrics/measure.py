"""What every metric is: a value that is added up batch by batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import TaskError

Ints = NDArray[np.int64]


class Accumulator(ABC):
    """What a metric has seen so far. How examples were cut into batches changes no bit of it."""

    @abstractmethod
    def add(self, outputs: NDArray[Any], targets: NDArray[Any]) -> None:
        """Take in a batch.

        Args:
            outputs: [n, ...], as a model returns them.
            targets: [n, ...].

        Raises:
            TaskError: They do not fit each other, or this metric.
        """

    @abstractmethod
    def value(self) -> float:
        """Return the metric of all that was added.

        Raises:
            TaskError: There is nothing to measure.
        """


class Measure(ABC):
    """One metric. Each is a frozen dataclass of its own settings.

    Attributes:
        name: What its number is called.
        higher_is_better: Whether a larger number is a better model.
        form: Format specification of the number.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    form: ClassVar[str] = ".4g"

    @abstractmethod
    def start(self) -> Accumulator:
        """Return an accumulator that has seen nothing."""

    def __call__(self, outputs: NDArray[Any], targets: NDArray[Any]) -> float:
        """Return the value for outputs and targets, [n, ...]; errors as of a `Accumulator`."""
        seen = self.start()
        seen.add(outputs, targets)
        return seen.value()


def nothing_to_measure(name: str) -> TaskError:
    """Return what is wrong where no target counts."""
    return TaskError(f"{name} of no targets has no value; measure on some that it does not ignore")


def check_indices(name: str, targets: NDArray[Any], classes: int) -> None:
    """Refuse targets that are not indices of so many classes."""
    if targets.dtype.kind not in "iu":
        raise TaskError(
            f"{name} takes class indices, integers, and the targets are {targets.dtype}"
        )
    if targets.size and (targets.min() < 0 or targets.max() >= classes):
        raise TaskError(
            f"{name} of {classes} classes takes targets in 0 .. {classes - 1}, and these are from "
            f"{targets.min()} to {targets.max()}; ignore what is no class (ignore_index)"
        )


def check_places(name: str, outputs: NDArray[Any], targets: NDArray[Any]) -> None:
    """Refuse targets unless there is one for each place of outputs [n, classes, ...]."""
    found = (*outputs.shape[:1], *outputs.shape[2:])
    if outputs.ndim < 2 or found != np.shape(targets):
        raise TaskError(
            f"outputs {outputs.shape} tell the classes of {found}, and the targets are "
            f"{np.shape(targets)}; {name} compares outputs [n, classes, ...] with targets "
            "[n, ...]: bring such targets, or give the task a metric of its own"
        )
