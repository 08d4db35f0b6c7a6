"""Several labels: fedkit run --task examples.several_labels:TASK --partition iid --devices 4"""

import numpy as np
from torch import nn

from fedkit import Examples, Task
from fedkit.tasks import digits, losses, metrics

PRIME = np.isin(np.arange(10), (2, 3, 5, 7))
LABELS = np.stack([np.arange(10) % 2, np.arange(10) >= 5, PRIME], axis=1)


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 3),
    )  # fmt: skip


def labelled(images: Examples) -> Examples:
    return Examples(images.inputs, LABELS[images.targets])


TASK = Task(
    "odd-large-prime", model,
    lambda: labelled(digits.train_data()), lambda: labelled(digits.test_data()),
    loss=losses.BCEWithLogits(pos_weight=[1.0, 1.0, 1.5]), metric=metrics.F1(),
)  # fmt: skip
