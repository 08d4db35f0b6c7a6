"""The digits of `fedkit.tasks.digits`, pixel by pixel: a small segmentation.

Inputs are those of the task `digits`, float32 [n, 1, 8, 8]. Targets are int64 [n, 8, 8]: 0 for the
background, 1 + d for each pixel of a digit d, which has at least half of the 16 grey levels.
"""

from __future__ import annotations

import numpy as np

from fedkit.tasks import digits
from fedkit.tasks.task import Examples, Task

_INK = 0.5


def train_data() -> Examples:
    """Return the 1,437 training examples."""
    return _by_pixels(digits.train_data())


def test_data() -> Examples:
    """Return the 360 test examples."""
    return _by_pixels(digits.test_data())


def _by_pixels(images: Examples) -> Examples:
    is_ink = images.inputs[:, 0] >= _INK
    return Examples(images.inputs, np.where(is_ink, 1 + images.targets[:, None, None], 0))


TASK = Task("digits-pixels", "unet-w8", train_data, test_data)
"""The task `digits-pixels`."""
