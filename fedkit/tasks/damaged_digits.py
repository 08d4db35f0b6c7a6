"""Digits as machines: an autoencoder learns how they look, and a damaged one is an anomaly.

A digit stands for a type of machine, the 64 pixels of its image for what is measured of one. Ten
sites hold machines of four types each. Training data is normal; `damaged` makes an anomaly of an
image by mixing the pixels of a square of 4x4 up, so that their sum and their values stay.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedkit.tasks import digits, losses, metrics
from fedkit.tasks.task import Examples, Task

SITES = 10
TYPES_PER_SITE = 4

_SIDE, _SQUARE = 8, 4
_SITES_SEED, _DAMAGE_SEED = 0, 1


def train_data() -> Examples:
    """Return the 1,437 training examples, float32 [n, 64]; owners are sites."""
    return _machines(digits.train_data())


def test_data() -> Examples:
    """Return the 360 test examples, all of them normal."""
    return _machines(digits.test_data())


def damaged(examples: Examples) -> Examples:
    """Return an anomaly made of each example; the same ones at every call."""
    draws = np.random.default_rng(_DAMAGE_SEED)
    images = examples.inputs[:].reshape(-1, _SIDE, _SIDE).copy()
    for image in images:
        row, column = draws.integers(0, _SIDE - _SQUARE + 1, 2)
        square = image[row : row + _SQUARE, column : column + _SQUARE]
        square[...] = _mixed(square, draws)
    pixels = images.reshape(len(images), -1)
    return Examples(pixels, pixels, examples.owners, columns=examples.columns)


def _mixed(square: NDArray[np.float32], draws: np.random.Generator) -> NDArray[np.float32]:
    return draws.permutation(square.ravel()).reshape(square.shape)


def _machines(images: Examples) -> Examples:
    """Return images as features; a site holds machines of the types that follow its number."""
    pixels = images.inputs.reshape(len(images), -1)
    steps = np.random.default_rng(_SITES_SEED).integers(0, TYPES_PER_SITE, len(images))
    sites = (images.targets - steps) % SITES
    return Examples(pixels, pixels, sites, columns={"type": images.targets})


TASK = Task(
    "damaged-digits",
    "ad-autoencoder",
    train_data,
    test_data,
    losses.MSE(),
    metrics.MeanSquaredError(),
)
"""The task `damaged-digits`; its metric is the error on normal examples."""
