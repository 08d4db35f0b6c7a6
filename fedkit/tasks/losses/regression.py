"""Losses of numbers: how far each output is from its target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from fedkit.core.reals import Reals
from fedkit.tasks.losses.definition import PerElement, like, not_positive

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MSE(PerElement):
    """Mean of squared differences; targets are numbers of the outputs' shape."""

    kind: Literal["mse_loss"] = "mse_loss"

    in_torch: ClassVar[str] = "MSELoss"

    def _by_torch(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from torch.nn import functional

        return functional.mse_loss(outputs, like(targets, outputs))

    def terms(self, outputs: Reals, targets: Reals) -> tuple[Reals, Reals]:
        """See `PerElement`."""
        difference = outputs - targets
        return np.square(difference), 2.0 * difference


@dataclass(frozen=True)
class L1(PerElement):
    """Mean of absolute differences; targets are numbers of the outputs' shape."""

    kind: Literal["l1_loss"] = "l1_loss"

    in_torch: ClassVar[str] = "L1Loss"

    def _by_torch(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from torch.nn import functional

        return functional.l1_loss(outputs, like(targets, outputs))

    def terms(self, outputs: Reals, targets: Reals) -> tuple[Reals, Reals]:
        """See `PerElement`."""
        difference = outputs - targets
        return np.abs(difference), np.sign(difference)


@dataclass(frozen=True)
class Huber(PerElement):
    """Mean of d^2 / 2 for differences up to `delta`, beyond of delta * (|d| - delta / 2).

    Attributes:
        delta: Greater than 0.
    """

    delta: float = 1.0
    kind: Literal["huber_loss"] = "huber_loss"

    in_torch: ClassVar[str] = "HuberLoss"

    def _problems(self) -> Iterator[str]:
        return not_positive("delta", self.delta)

    def _by_torch(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from torch.nn import functional

        return functional.huber_loss(outputs, like(targets, outputs), delta=self.delta)

    def terms(self, outputs: Reals, targets: Reals) -> tuple[Reals, Reals]:
        """See `PerElement`."""
        difference = outputs - targets
        size, slope = np.abs(difference), np.clip(difference, -self.delta, self.delta)
        inner = np.abs(slope)
        return inner * (size - inner / 2), slope


@dataclass(frozen=True)
class SmoothL1(PerElement):
    """Mean of d^2 / (2 beta) for differences below `beta`, beyond of |d| - beta / 2.

    Attributes:
        beta: At least 0, which gives `L1`.
    """

    beta: float = 1.0
    kind: Literal["smooth_l1_loss"] = "smooth_l1_loss"

    in_torch: ClassVar[str] = "SmoothL1Loss"

    def _problems(self) -> Iterator[str]:
        if not 0 <= self.beta < np.inf:
            yield f"beta is {self.beta!r}; it must be finite and at least 0"

    def _by_torch(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from torch.nn import functional

        return functional.smooth_l1_loss(outputs, like(targets, outputs), beta=self.beta)

    def terms(self, outputs: Reals, targets: Reals) -> tuple[Reals, Reals]:
        """See `PerElement`."""
        difference = outputs - targets
        size = np.abs(difference)
        is_near = size < self.beta  # never for a beta of 0
        near = np.where(is_near, difference, 0.0) / (self.beta or 1.0)
        far = size - self.beta / 2
        return (
            np.where(is_near, near * difference / 2, far),
            np.where(is_near, near, np.sign(difference)),
        )
