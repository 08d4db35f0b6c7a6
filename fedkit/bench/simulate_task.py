"""The data and the model of `fedkit bench simulate`: digits with noise, enough for its devices.

`FEDKIT_BENCH_DEVICES` says for how many devices; every process of a run is given it.
"""

from __future__ import annotations

import functools
import os

import numpy as np

from fedkit.tasks import load_task
from fedkit.tasks.task import Examples, Task

DEVICES = "FEDKIT_BENCH_DEVICES"
PER_DEVICE = 20
MODEL = "resnet8"
_NOISE = 0.1


@functools.cache
def train_data() -> Examples:
    """Return `PER_DEVICE` examples that each device owns: random digits, each with noise."""
    digits = load_task("digits").examples("train")
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(digits), PER_DEVICE * int(os.environ[DEVICES]))
    noise = rng.normal(0, _NOISE, (len(drawn), *digits.inputs.shape[1:])).astype(np.float32)
    owners = np.arange(len(drawn)) // PER_DEVICE
    return Examples(digits.inputs[drawn] + noise, digits.targets[drawn], owners)


def share(device: int) -> Examples:
    """Return what a device owns."""
    return train_data().take(np.arange(PER_DEVICE) + device * PER_DEVICE)


def test_data() -> Examples:
    """Return the digits for testing."""
    return load_task("digits").examples("test")


task = Task("noisy digits", MODEL, train_data, test_data)
"""What the run's configuration names."""
