"""Losses that all engines have; a task of another one trains on torch.

>>> from fedkit.tasks import losses
>>> losses.CrossEntropy(label_smoothing=0.1, ignore_index=-100)
CrossEntropy(weight=None, ignore_index=-100, label_smoothing=0.1, kind='cross_entropy')

Each is a frozen dataclass that is called like torch's function of its name, (outputs, targets) ->
scalar tensor, and that knows its value and gradient in numpy. A new one is a class and its place in
`LOSSES`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from fedkit.tasks.losses.binary import BCEWithLogits
from fedkit.tasks.losses.cross_entropy import PLAIN, CrossEntropy
from fedkit.tasks.losses.definition import Loss
from fedkit.tasks.losses.embeddings import InfoNCE, TripletMargin
from fedkit.tasks.losses.regression import L1, MSE, Huber, SmoothL1

LOSSES: Mapping[str, type[Loss]] = {
    str(row.kind): row
    for row in (CrossEntropy, MSE, L1, Huber, SmoothL1, BCEWithLogits, TripletMargin, InfoNCE)
}
"""Name -> loss."""


def known(loss: object) -> Loss | None:
    """Return the loss that an object is: one of ours, or torch's of the same meaning; else None.

    Args:
        loss: Anything that a task may have, such as `losses.MSE()`, `torch.nn.MSELoss()`,
            `torch.nn.functional.mse_loss` or a `functools.partial` of it.

    Raises:
        TaskError: It is torch's, with a value that is out of range.
    """
    if isinstance(loss, Loss):
        return loss
    nn = sys.modules.get("torch.nn")  # without torch nobody has one of its losses
    if nn is None:
        return None
    found = (row.of_torch(loss, nn) for row in LOSSES.values())
    return next((row for row in found if row is not None), None)


__all__ = [
    "L1",
    "LOSSES",
    "MSE",
    "PLAIN",
    "BCEWithLogits",
    "CrossEntropy",
    "Huber",
    "InfoNCE",
    "Loss",
    "SmoothL1",
    "TripletMargin",
    "known",
]
