"""Handwritten digits of scikit-learn: 1,797 images of 8x8, part of its wheel, so never downloaded.

Inputs are float32 [n, 1, 8, 8] in 0 .. 1 (the 17 grey levels 0 .. 16 divided by 16), targets are
the ten digits. Four fifths of each class are for training (1,437), one fifth for testing (360); the
choice is seeded and never changes.
"""

from __future__ import annotations

import functools
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import DataError
from fedkit.tasks.task import Examples, Task

_GREY_LEVELS = 16
_SPLIT_SEED = 0
_TEST_SHARE = 0.2


def train_data() -> Examples:
    """Return the 1,437 training examples."""
    return _load()[0]


def test_data() -> Examples:
    """Return the 360 test examples."""
    return _load()[1]


@functools.cache
def _load() -> tuple[Examples, Examples]:
    images, targets = _read()
    train, test = _split(targets)
    inputs = (images / _GREY_LEVELS).astype(np.float32).reshape(-1, 1, 8, 8)
    everything = Examples(inputs, targets)
    return everything.take(train), everything.take(test)


def _read() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Read what `sklearn.datasets.load_digits` does, without the seconds that its import takes."""
    library = find_spec("sklearn")
    if library is None or not library.submodule_search_locations:
        raise DataError("scikit-learn, which holds the digits, is not installed; install fedkit")
    folder = Path(library.submodule_search_locations[0])
    rows = np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return rows[:, :-1], rows[:, -1].astype(np.int64)


def _split(targets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split as scikit-learn does by class; its import takes seconds.

    Returns:
        What `train_test_split(np.arange(n), test_size=0.2, stratify=targets, random_state=0)`
        gives: indices for training and for testing.
    """
    rng = np.random.RandomState(_SPLIT_SEED)
    counts = np.bincount(targets)
    tests = math.ceil(_TEST_SHARE * len(targets))
    kept = _drawn(counts, len(targets) - tests, rng)
    tested = _drawn(counts - kept, tests, rng)
    train, test = [], []
    for label, (first, second) in enumerate(zip(kept, tested, strict=True)):
        own = np.flatnonzero(targets == label)[rng.permutation(counts[label])]
        train.append(own[:first])
        test.append(own[first : first + second])
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(test))


def _drawn(counts: NDArray[np.int64], number: int, rng: np.random.RandomState) -> NDArray[np.int64]:
    """Return how many of each class a stratified draw of `number` takes; ties by `rng`."""
    exact = counts / counts.sum() * number
    drawn: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    rest, missing = exact - drawn, number - int(drawn.sum())
    for value in np.unique(rest)[::-1]:
        (equal,) = np.nonzero(rest == value)
        more = min(len(equal), missing)
        if more:
            drawn[rng.choice(equal, more, replace=False)] += 1
        missing -= more
    return drawn


TASK = Task("digits", "resnet8", train_data, test_data)
"""The task `digits`."""
