"""The digits of `fedkit.tasks.digits`, a row at a time: a small series for models of series.

What a line of eight sensors would see of a digit that passes them. Nothing was measured so: the
images are those of the task `digits`, and so is the split. Inputs are float32 [n, 8, 8] in 0 .. 1,
(channels, length): channel c at step s is the pixel in row s and column c.
"""

from __future__ import annotations

import numpy as np

from fedkit.tasks import digits
from fedkit.tasks.task import Examples, Task


def train_data() -> Examples:
    """Return the 1,437 training examples."""
    return _by_rows(digits.train_data())


def test_data() -> Examples:
    """Return the 360 test examples."""
    return _by_rows(digits.test_data())


def _by_rows(images: Examples) -> Examples:
    return Examples(np.swapaxes(images.inputs[:, 0], 1, 2), images.targets)


TASK = Task("digits-rows", "tc-resnet8", train_data, test_data)
"""The task `digits-rows`."""
