"""Handwritten digits of scikit-learn: 1,797 images of 8x8, part of its wheel, so never downloaded.

Inputs are float32 [n, 1, 8, 8] in 0 .. 1 (the 17 grey levels 0 .. 16 divided by 16), targets are
the ten digits. Four fifths of each class are for training (1,437), one fifth for testing (360); the
choice is seeded and never changes.
"""

from __future__ import annotations

import functools

import numpy as np

from fedkit.tasks.task import Examples, Task

_GREY_LEVELS = 16
_SPLIT_SEED = 0


def train_data() -> Examples:
    """Return the 1,437 training examples."""
    return _load()[0]


def test_data() -> Examples:
    """Return the 360 test examples."""
    return _load()[1]


@functools.cache
def _load() -> tuple[Examples, Examples]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, targets = load_digits(return_X_y=True)
    train, test = train_test_split(
        np.arange(len(targets)), test_size=0.2, stratify=targets, random_state=_SPLIT_SEED
    )
    inputs = (images / _GREY_LEVELS).astype(np.float32).reshape(-1, 1, 8, 8)
    everything = Examples(inputs, targets.astype(np.int64))
    return everything.take(train), everything.take(test)


TASK = Task("digits", "resnet8", train_data, test_data)
"""The task `digits`."""
