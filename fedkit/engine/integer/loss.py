"""The gradient of a loss as int16; that of plain cross-entropy in integers, by a table of 2^x."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.integer.constants import WIDE, Reals, first_bits
from fedkit.engine.integer.integer_op import LEAST
from fedkit.tasks.losses import PLAIN, Loss

_POINT = 16
_TABLE_BITS = 8
_TABLE = np.array([round(2.0 ** (30 - i / 2**_TABLE_BITS)) for i in range(2**_TABLE_BITS + 1)])
"""2^-f for f = 0, 1/256 .. 1, with 30 bits behind the point."""


def loss_gradient(
    loss: Loss, outputs: Reals, targets: NDArray[Any]
) -> tuple[float, NDArray[np.int16], float]:
    """Return the loss of a batch, its gradient by the outputs, and what 1 of that is worth.

    The unit of plain cross-entropy of features is fixed. That of all others is chosen by the
    largest slope of the batch; slopes below half of it count as 0.

    Args:
        loss: Which one.
        outputs: [n, ...].
        targets: [n, ...], which fit.
    """
    if loss == PLAIN and outputs.ndim == 2:
        value, gradient = cross_entropy(outputs, targets)
        return value, gradient, 1.0 / (WIDE * len(outputs))
    value, slopes = loss.gradient(outputs, targets)
    unit = max(float(np.abs(slopes).max()), LEAST) / WIDE
    return value, np.rint(slopes / unit).astype(np.int16), unit


def cross_entropy(
    logits: NDArray[np.float64], targets: NDArray[np.int64]
) -> tuple[float, NDArray[np.int16]]:
    """Return the mean loss, and the gradient of each example's loss in steps of 1/32767.

    Args:
        logits: [n, classes].
        targets: Classes, [n].

    Returns:
        The loss, within 1e-5 plus 1e-9 per class of the real one; and int16 [n, classes],
        probability minus 1 for the target.
    """
    # From the largest, for logits may be larger than any power that is counted.
    distance = logits.max(1, keepdims=True) - logits
    octaves = np.minimum(distance / math.log(2), 2.0**30)
    powers = _power(np.rint(octaves * 2**_POINT).astype(np.int64))
    total = powers.sum(1, keepdims=True)
    gradient = (powers * WIDE + total // 2) // total
    rows = np.arange(len(targets))
    # The target's own power may be too small to be counted; its distance never is.
    spread = first_bits(np.log(np.ldexp(total[:, 0].astype(np.float64), -30)))
    losses = spread + distance[rows, targets]
    gradient[rows, targets] -= WIDE
    return float(np.mean(losses)), gradient.astype(np.int16)


def _power(below: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 2^-below, `_POINT` bits behind the point in, 30 out; linear between table entries."""
    whole, part = below >> _POINT, below & (2**_POINT - 1)
    rest_bits = _POINT - _TABLE_BITS
    index, rest = part >> rest_bits, part & (2**rest_bits - 1)
    left, right = _TABLE[index], _TABLE[index + 1]
    value = left - (((left - right) * rest) >> rest_bits)
    return np.asarray(value >> np.minimum(whole, 40))
