"""A class per pixel: fedkit run --task examples.segmentation:TASK --partition iid --devices 4"""

import numpy as np
from torch import nn

from fedkit import Examples, Task
from fedkit.tasks import digits, losses, metrics

UNSURE = 255  # between paper and ink


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 2, 1),
    )  # fmt: skip


def by_pixels(images: Examples) -> Examples:
    ink = images.inputs[:, 0]
    noise = np.random.default_rng(0).normal(0, 0.2, images.inputs.shape).astype(np.float32)
    return Examples(images.inputs + noise, np.where(abs(ink - 0.5) < 0.1, UNSURE, ink > 0.5))


TASK = Task(
    "ink", model, lambda: by_pixels(digits.train_data()), lambda: by_pixels(digits.test_data()),
    loss=losses.CrossEntropy(ignore_index=UNSURE), metric=metrics.Jaccard(ignore_index=UNSURE),
)  # fmt: skip
