"""Losses of embeddings: examples of one class lie together, those of others apart.

Outputs are [n, features], targets the classes of the examples, int64 [n]; any whole numbers do. The
examples of a batch are compared with each other, so that the loss depends on how many a batch has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.reals import Reals, exp, log
from fedkit.tasks.losses.definition import Loss, not_positive
from fedkit.tasks.targets import describe

if TYPE_CHECKING:
    from torch import Tensor

_APART = 1e-6
"""Added to each difference before a distance is taken, as torch does."""

_SHORTEST = 1e-12
"""Least length that an embedding is divided by, as torch does."""


class InBatch(Loss):
    """A base of losses that compare the examples of a batch."""

    def outputs_problem(self, shape: tuple[int, ...]) -> str:
        """See `Loss.outputs_problem`."""
        if len(shape) == 1:
            return ""
        return f"outputs have shape {shape}; loss {self.kind} compares embeddings, (features,)"

    def targets_problem(self, shape: tuple[int, ...], targets: NDArray[Any]) -> str:
        """See `Loss.targets_problem`."""
        if targets.ndim == 1 and targets.dtype.kind in "iu":
            return ""
        return f"targets are {describe(targets)}; loss {self.kind} takes a class each, int64 [n]"

    def outputs_for(self, targets: NDArray[Any]) -> tuple[int, ...]:
        """See `Loss.outputs_for`; any number of features does."""
        return ()


@dataclass(frozen=True)
class TripletMargin(InBatch):
    """Mean of max(0, margin + d(a, p) - d(a, n)) over all triplets of a batch; 0 if it has none.

    a and p are two examples of one class, n is one of another; d is the distance of torch's
    `triplet_margin_loss`. A batch of b examples has up to b^3 / 4 triplets.

    Attributes:
        margin: Greater than 0.
    """

    margin: float = 1.0
    kind: Literal["triplet_margin_loss"] = "triplet_margin_loss"

    def _problems(self) -> Iterator[str]:
        return not_positive("margin", self.margin)

    def _by_torch(self, outputs: Tensor, targets: Tensor) -> Tensor:
        import torch
        from torch.nn import functional

        same = targets[:, None] == targets
        other = ~same
        a, p, n = torch.nonzero(
            (same & ~torch.eye(len(targets), dtype=torch.bool))[:, :, None] & other[:, None],
            as_tuple=True,
        )
        if len(a) == 0:
            return outputs.sum() * 0.0
        distance = functional.pairwise_distance(outputs[:, None], outputs[None], eps=_APART)
        return torch.clamp_min(self.margin + distance[a, p] - distance[a, n], 0.0).mean()

    def _by_numpy(self, outputs: Reals, targets: NDArray[Any]) -> tuple[float, Reals]:
        """Triplets are taken an anchor at a time."""
        total, count, slopes = 0.0, 0, np.zeros_like(outputs)
        for anchor in range(len(outputs)):
            same = targets == targets[anchor]
            other = np.flatnonzero(~same)
            same[anchor] = False
            apart = outputs[anchor] - outputs + _APART
            distance = np.sqrt(np.square(apart).sum(axis=1))
            terms = self.margin + distance[same][:, None] - distance[other]
            counts = ~(terms < 0)  # a NaN counts
            total, count = total + float(terms[counts].sum()), count + terms.size
            pull = np.zeros(len(outputs))
            pull[same], pull[other] = counts.sum(axis=1), -counts.sum(axis=0)
            along = apart * (pull / distance)[:, None]
            slopes -= along
            slopes[anchor] += along.sum(axis=0)
        if count == 0:
            return 0.0 * float(outputs.sum()), slopes
        return total / count, slopes / count


@dataclass(frozen=True)
class InfoNCE(InBatch):
    """Cross-entropy that picks an example's own class among the others of its batch.

    For each example i that is not alone of its class, -log softmax over all j != i of
    cos(i, j) / temperature, averaged over the j of its class; then the mean over these i, 0 if
    there are none. With two views of an example as a class it is the loss of SimCLR, with labels
    that of supervised contrastive learning (L_out of Khosla et al., 2020, equation 2).

    Attributes:
        temperature: Greater than 0.
    """

    temperature: float = 0.1
    kind: Literal["info_nce"] = "info_nce"

    def _problems(self) -> Iterator[str]:
        return not_positive("temperature", self.temperature)

    def _by_torch(self, outputs: Tensor, targets: Tensor) -> Tensor:
        import torch
        from torch.nn import functional

        itself = torch.eye(len(targets), dtype=torch.bool)
        same = (targets[:, None] == targets) & ~itself
        anchors = same.any(dim=1)
        if not anchors.any():
            return outputs.sum() * 0.0
        unit = functional.normalize(outputs, dim=1, eps=_SHORTEST)
        near = (unit @ unit.T / self.temperature).masked_fill(itself, -torch.inf)
        losses = torch.logsumexp(near, dim=1, keepdim=True) - near
        each = losses.masked_fill(~same, 0.0).sum(dim=1)[anchors] / same.sum(dim=1)[anchors]
        return each.mean()

    def _by_numpy(self, outputs: Reals, targets: NDArray[Any]) -> tuple[float, Reals]:
        """Products are taken an example at a time, in one order anywhere."""
        length = np.sqrt(np.square(outputs).sum(axis=1, keepdims=True))
        unit = outputs / np.maximum(length, _SHORTEST)
        total, slopes = 0.0, np.zeros_like(outputs)
        same = targets[:, None] == targets
        np.fill_diagonal(same, False)
        anchors = np.flatnonzero(same.any(axis=1))
        for anchor in anchors:
            others = np.arange(len(unit)) != anchor
            loss, pull = self._of(unit[anchor], unit[others], same[anchor][others])
            total += loss
            slopes[others] += pull[:, None] * unit[anchor]
            slopes[anchor] += (pull[:, None] * unit[others]).sum(axis=0)
        if len(anchors) == 0:
            return 0.0 * float(outputs.sum()), slopes
        # A length below the least is a constant.
        along = np.where(length > _SHORTEST, (slopes * unit).sum(axis=1, keepdims=True), 0.0)
        slopes = (slopes - unit * along) / np.maximum(length, _SHORTEST)
        return total / len(anchors), slopes / len(anchors)

    def _of(self, unit: Reals, others: Reals, same: NDArray[np.bool_]) -> tuple[float, Reals]:
        """Return the loss of one example, and its slope by the cosine with each other one."""
        near = (unit * others).sum(axis=1) / self.temperature
        below = near - near.max()
        powers = exp(below)
        share = same / same.sum()
        loss = float((share * (log(powers.sum()) - below)).sum())
        return loss, (powers / powers.sum() - share) / self.temperature
