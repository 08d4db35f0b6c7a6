"""A yes or no for each output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.reals import Reals, exp, log
from fedkit.tasks.losses.definition import PerElement, like, number, numbers
from fedkit.tasks.targets import describe, first_example

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BCEWithLogits(PerElement):
    """Binary cross-entropy of each output, a logit; targets are 0 .. 1, of the outputs' shape.

    Attributes:
        pos_weight: What a yes counts: a number, one for each channel of outputs [n, channels, ...],
            or None for 1.
    """

    pos_weight: float | Sequence[float] | None = None
    kind: Literal["binary_cross_entropy_with_logits"] = "binary_cross_entropy_with_logits"

    in_torch: ClassVar[str] = "BCEWithLogitsLoss"

    def __post_init__(self) -> None:
        if (given := self.pos_weight) is not None:
            read = numbers if isinstance(given, Sequence) or np.ndim(given) else number
            object.__setattr__(self, "pos_weight", read(given))
        super().__post_init__()

    def _problems(self) -> Iterator[str]:
        weights = np.atleast_1d(1.0 if self.pos_weight is None else self.pos_weight)
        if not weights.size or not ((weights >= 0) & np.isfinite(weights)).all():
            yield (
                f"pos_weight is {self.pos_weight!r:.60}; it must be a number of at least 0, or one "
                "for each channel"
            )

    @classmethod
    def with_values(cls, values: dict[str, Any]) -> BCEWithLogits | None:
        """See `Loss.with_values`; torch aligns several weights with the last axis, not with 1."""
        if (weight := values.get("pos_weight")) is None:
            return super().with_values(values)
        weights = np.asarray(weight, np.float64)
        return (
            super().with_values({**values, "pos_weight": weights.item()})
            if weights.size == 1
            else None
        )

    def _by_torch(self, outputs: Tensor, targets: Tensor) -> Tensor:
        import torch
        from torch.nn import functional

        weight = None
        if self.pos_weight is not None:
            weight = torch.tensor(self._weight(outputs.dim()), dtype=outputs.dtype)
        return functional.binary_cross_entropy_with_logits(
            outputs, like(targets, outputs), pos_weight=weight
        )

    def _weight(self, dims: int) -> Reals:
        """Return what a yes counts, to be multiplied with outputs of so many dimensions."""
        given = np.array(1.0 if self.pos_weight is None else self.pos_weight, np.float64)
        return given.reshape(-1, *[1] * (dims - 2)) if given.ndim else given

    def terms(self, outputs: Reals, targets: Reals) -> tuple[Reals, Reals]:
        """See `PerElement`."""
        power = exp(-np.abs(outputs))
        no = np.where(outputs < 0, 1.0, power) / (1.0 + power)  # 1 - sigmoid(outputs)
        yes = 1.0 + (self._weight(outputs.ndim) - 1.0) * targets
        below = np.maximum(-outputs, 0.0) + log(1.0 + power)  # -log(sigmoid(outputs))
        return (1.0 - targets) * outputs + yes * below, 1.0 - targets - yes * no

    def outputs_problem(self, shape: tuple[int, ...]) -> str:
        """See `Loss.outputs_problem`."""
        weights = len(self.pos_weight) if isinstance(self.pos_weight, tuple) else 0
        if weights and (not shape or shape[0] != weights):
            return (
                f"loss {self.kind} has a pos_weight for {weights} channels, and an example's "
                f"outputs have shape {shape}; give one for each of their channels"
            )
        return ""

    def targets_problem(self, shape: tuple[int, ...], targets: NDArray[Any]) -> str:
        """See `Loss.targets_problem`."""
        if problem := super().targets_problem(shape, targets):
            return problem
        if (wrong := (targets < 0) | (targets > 1)).any():
            return (
                f"targets are {describe(targets)}; loss {self.kind} takes 0 for no .. 1 for yes: "
                f"others, {first_example(wrong)}, mean nothing"
            )
        return ""
