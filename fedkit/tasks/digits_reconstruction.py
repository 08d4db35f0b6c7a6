"""The digits of `fedkit.tasks.digits` to be told again by an autoencoder.

Inputs and targets are the 64 pixels of an image, float32 [n, 64] in 0 .. 1.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from fedkit.tasks import digits, losses, metrics
from fedkit.tasks.task import Examples, Task


def train_data() -> Examples:
    """Return the 1,437 training examples."""
    return _flat(digits.train_data())


def test_data() -> Examples:
    """Return the 360 test examples."""
    return _flat(digits.test_data())


def _flat(images: Examples) -> Examples:
    pixels: NDArray[Any] = images.inputs.reshape(len(images), -1)
    return Examples(pixels, pixels)


ERROR = metrics.MeanSquaredError()
"""How far what comes out is from what went in."""

TASK = Task("digits-reconstruction", "ad-autoencoder", train_data, test_data, losses.MSE(), ERROR)
"""The task `digits-reconstruction`."""
