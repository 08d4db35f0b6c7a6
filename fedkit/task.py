"""What a user brings: a model, data, a loss and a metric.

A task is one frozen object. The CLI finds it as `--task package.module:name` through
`fedkit.tasks.load_task`. Importing this module does not import torch: a device that trains without
torch reads its `Examples` from here too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedkit.errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Examples:
    """Labelled examples, in memory.

    Attributes:
        inputs: float32 [n, ...]; images are [n, channels, height, width].
        targets: int64 [n], class indices from 0.
        owners: natural id of each example, [n] of str or int; only the `natural-id` partition
            reads it.

    Raises:
        TaskError: The lengths differ, or an input is NaN or infinite.
    """

    inputs: NDArray[np.float32]
    targets: NDArray[np.int64]
    owners: NDArray[np.generic] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.inputs), len(self.targets)}
        if self.owners is not None:
            lengths.add(len(self.owners))
        if len(lengths) != 1:
            raise TaskError(
                f"examples have {len(self.inputs)} inputs, {len(self.targets)} targets and "
                f"{'no' if self.owners is None else len(self.owners)} owners; "
                "all must have the same length"
            )
        if not np.isfinite(self.inputs).all():
            raise TaskError("examples hold NaN or infinite inputs; clean the data set first")

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: NDArray[np.int64]) -> Examples:
        """Return the examples at `indices` (int64 [m]), in that order."""
        owners = None if self.owners is None else self.owners[indices]
        return Examples(self.inputs[indices], self.targets[indices], owners)

    @property
    def classes(self) -> NDArray[np.int64]:
        """Distinct targets, ascending, int64 [c]."""
        return np.unique(self.targets)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean softmax cross-entropy; outputs [n, classes], targets int64 [n]."""
    from torch.nn import functional

    return functional.cross_entropy(outputs, targets)


def accuracy(outputs: NDArray[np.generic], targets: NDArray[np.int64]) -> float:
    """Return the share of rows whose largest output is the target; outputs [n, classes]."""
    return float(np.mean(outputs.argmax(axis=1) == targets))


@dataclass(frozen=True)
class Task:
    """A learning problem for a fleet.

    Attributes:
        name: Short name, used in reports and run folders.
        model: A factory returning a fresh `nn.Module`, or a model name of `fedkit.nn.zoo`.
        train_data: Returns the training examples. A simulation splits them over its devices
            with a partitioner; on a board the function returns that board's own data.
        test_data: Returns the test examples the server measures on.
        loss: (outputs, targets) -> scalar tensor, the mean over the batch.
        metric: (outputs, targets) -> float, higher is better; numpy in, so that the exported
            artifact is measured by the same function.
    """

    name: str
    model: Callable[[], nn.Module] | str
    train_data: Callable[[], Examples]
    test_data: Callable[[], Examples]
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    metric: Callable[[NDArray[np.generic], NDArray[np.int64]], float] = accuracy

    def build_model(self, seed: int, override: str = "") -> nn.Module:
        """Build the model with weights drawn from `seed`; the global generator is untouched.

        Args:
            seed: Seed of torch's generator while the factory runs.
            override: Name of a zoo model to use instead of the task's own.
        """
        from fedkit.nn.zoo import build_model, seeded

        model = override or self.model
        if not isinstance(model, str):
            return seeded(model, seed)
        test = self.test_data()
        shape, classes = test.inputs.shape[1:], int(test.targets.max()) + 1
        return seeded(lambda: build_model(model, shape, classes), seed)
