"""Softmax and cross-entropy, for an example or for each place of a map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.reals import Reals, exp, log
from fedkit.tasks.losses.definition import Loss, numbers, parts
from fedkit.tasks.targets import describe, first_example

if TYPE_CHECKING:
    from torch import Tensor

MOST_CLASSES = 1 << 20
"""A larger target is not a class index but a quantity."""

_NOBODY = -100
"""torch's `ignore_index` where none is wanted; no class has this index."""


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Softmax cross-entropy: the mean over examples, or over the places of all maps.

    Outputs are [n, classes, ...], targets class indices from 0, int64 [n, ...]. Where no target of
    a batch counts, torch's value is NaN, and this one 0.

    Attributes:
        weight: What a target of each class counts, or None for 1.
        ignore_index: A target that counts nothing; None for none (torch's default is -100).
        label_smoothing: Share of each target that is spread over all classes, 0 .. 1.
    """

    weight: Sequence[float] | None = None
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    kind: Literal["cross_entropy"] = "cross_entropy"

    in_torch: ClassVar[str] = "CrossEntropyLoss"
    classifies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.weight is not None:
            object.__setattr__(self, "weight", numbers(self.weight))
        super().__post_init__()

    def _problems(self) -> Iterator[str]:
        weight, smoothing = self.weight, self.label_smoothing
        if weight is not None and not (weight and all(0 <= w < np.inf for w in weight)):
            yield f"weight is {weight!r:.60}; it must be a number of at least 0 for each class"
        if not 0 <= smoothing <= 1:
            yield f"label_smoothing is {smoothing!r}; it must be in 0 .. 1"
        index = self.ignore_index
        if index is not None and not (isinstance(index, int) and abs(index) < 2**63):
            yield f"ignore_index is {index!r}; it must be an int64, or None"

    @classmethod
    def with_values(cls, values: dict[str, Any]) -> CrossEntropy | None:
        """See `Loss.with_values`; torch ignores -100 where nothing is said."""
        return super().with_values({"ignore_index": _NOBODY, **values})

    def _by_torch(self, outputs: Tensor, targets: Tensor) -> Tensor:
        import torch
        from torch.nn import functional

        if not self._counts_all and self.share(targets.numpy()) == 0:
            return outputs.sum() * 0.0
        return functional.cross_entropy(
            outputs,
            targets,
            weight=None if self.weight is None else torch.tensor(self.weight, dtype=outputs.dtype),
            ignore_index=_NOBODY if self.ignore_index is None else self.ignore_index,
            label_smoothing=self.label_smoothing,
        )

    def _by_numpy(self, outputs: Reals, targets: NDArray[Any]) -> tuple[float, Reals]:
        by_place = np.ascontiguousarray(np.moveaxis(outputs, 1, -1))
        rows = by_place.reshape(-1, outputs.shape[1])
        value, slopes = self._of_rows(rows, targets.reshape(-1))
        slopes = np.moveaxis(slopes.reshape(by_place.shape), -1, 1)
        return value, np.ascontiguousarray(slopes)

    def _of_rows(self, rows: Reals, targets: NDArray[np.int64]) -> tuple[float, Reals]:
        """Return loss and slopes; outputs are [places, classes], targets [places]."""
        loss, total, slopes = 0.0, self._total(targets), np.empty_like(rows)
        if total == 0:
            return 0.0 * float(rows.sum()), np.zeros_like(rows)
        for part in parts(len(rows), rows.shape[1]):
            value, slopes[part] = self._sum(rows[part], targets[part])
            loss += value
        return loss / total, slopes / total

    def _sum(self, rows: Reals, targets: NDArray[np.int64]) -> tuple[float, Reals]:
        """Return the sum of the places' losses, and its slopes."""
        counted, wanted = self._counted(targets), self._wanted(targets, rows.shape[1])
        with np.errstate(invalid="ignore"):
            below = rows - rows.max(axis=1, keepdims=True)
            powers = exp(below)
            sums = powers.sum(axis=1, keepdims=True)
            losses = (wanted * (log(sums) - below)).sum(axis=1)
            slopes = powers / sums * wanted.sum(axis=1, keepdims=True) - wanted
        return float(losses[counted].sum()), slopes * counted[:, None]

    def _wanted(self, targets: NDArray[np.int64], classes: int) -> Reals:
        """Return what each output of each place should be, times the weights, [places, classes]."""
        weight = np.ones(classes) if self.weight is None else np.array(self.weight)
        wanted = np.tile(weight * (self.label_smoothing / classes), (len(targets), 1))
        index = np.where(self._counted(targets), targets, 0)
        wanted[np.arange(len(targets)), index] += weight[index] * (1.0 - self.label_smoothing)
        return wanted

    @property
    def _counts_all(self) -> bool:
        """Whether every target counts 1."""
        return self.weight is None and self.ignore_index is None

    def _counted(self, targets: NDArray[Any]) -> NDArray[np.bool_]:
        if self.ignore_index is None:
            return np.ones(targets.shape, np.bool_)
        return np.asarray(targets != self.ignore_index)

    def _total(self, targets: NDArray[np.int64]) -> float:
        """Return what all targets count."""
        counted = targets[self._counted(targets)]
        return counted.size if self.weight is None else float(np.array(self.weight)[counted].sum())

    def share(self, targets: NDArray[Any]) -> float:
        """See `Loss.share`: what the targets count, so that each counts the same in all batches."""
        return len(targets) if self._counts_all else self._total(targets)

    def outputs_problem(self, shape: tuple[int, ...]) -> str:
        """See `Loss.outputs_problem`."""
        if not shape:
            return f"outputs are one number each; loss {self.kind} needs one for each class"
        if self.weight is not None and len(self.weight) != shape[0]:
            return (
                f"loss {self.kind} has weights of {len(self.weight)} classes, and the model has "
                f"{shape[0]} outputs; give a weight for each"
            )
        return ""

    def targets_problem(self, shape: tuple[int, ...], targets: NDArray[Any]) -> str:
        """See `Loss.targets_problem`."""
        if targets.shape[1:] != shape[1:] or targets.dtype.kind not in "iu":
            wanted = ", ".join(map(str, ("n", *shape[1:])))
            return (
                f"targets are {describe(targets)}, and loss {self.kind} takes class indices, int64 "
                f"[{wanted}]"
            )
        counted = self._counted(targets)
        if (wrong := counted & ((targets < 0) | (targets >= shape[0]))).any():
            found = targets[counted]
            return (
                f"targets are from {found.min()} to {found.max()}; the model has {shape[0]} "
                f"classes, counted from 0: others, {first_example(wrong)}, are none"
            )
        return ""

    def outputs_for(self, targets: NDArray[Any]) -> tuple[int, ...]:
        """See `Loss.outputs_for`."""
        counted = targets[self._counted(targets)]
        if targets.dtype.kind != "i" or not counted.size or counted.max() >= MOST_CLASSES:
            return ()
        return (int(counted.max()) + 1, *targets.shape[1:])


PLAIN = CrossEntropy()
"""The loss of a task that names none."""
