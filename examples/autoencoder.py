"""Told again: fedkit run --task examples.autoencoder:TASK --partition iid --devices 4"""

import numpy as np
from torch import nn

from fedkit import Examples, Task
from fedkit.tasks import digits, losses, metrics


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.ConvTranspose2d(4, 8, 2, stride=2), nn.ReLU(),
        nn.Conv2d(8, 1, 3, padding=1),
    )  # fmt: skip


def told_again(images: Examples, noise: float = 0.1) -> Examples:
    dots = np.random.default_rng(0).normal(0, noise, images.inputs.shape)
    return Examples((images.inputs + dots).astype(np.float32), images.inputs)


TASK = Task(
    "digits-without-noise", model,
    lambda: told_again(digits.train_data()), lambda: told_again(digits.test_data()),
    loss=losses.MSE(), metric=metrics.MeanAbsoluteError(),
)  # fmt: skip
