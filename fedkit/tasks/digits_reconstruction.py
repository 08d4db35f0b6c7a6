"""The digits of `fedkit.tasks.digits` to be told again by an autoencoder.

Inputs and targets are the 64 pixels of an image, float32 [n, 64] in 0 .. 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.tasks import digits, losses
from fedkit.tasks.task import Examples, Metric, Task


def train_data() -> Examples:
    """Return the 1,437 training examples."""
    return _flat(digits.train_data())


def test_data() -> Examples:
    """Return the 360 test examples."""
    return _flat(digits.test_data())


def _flat(images: Examples) -> Examples:
    pixels: NDArray[Any] = images.inputs.reshape(len(images), -1)
    return Examples(pixels, pixels)


def _mean_squared_error(outputs: NDArray[Any], targets: NDArray[Any]) -> float:
    return float(np.mean(np.square(outputs - targets)))


ERROR = Metric(_mean_squared_error, "mean squared error", higher_is_better=False)
"""How far what comes out is from what went in."""

TASK = Task("digits-reconstruction", "ad-autoencoder", train_data, test_data, losses.MSE(), ERROR)
"""The task `digits-reconstruction`."""
