"""Numbers: fedkit run --task examples.regression:TASK --partition iid --devices 4 --lr 0.05"""

import numpy as np
from sklearn.datasets import load_diabetes
from torch import nn

from fedkit import Examples, Task
from fedkit.tasks import losses, metrics


def model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(10, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Linear(32, 1),
    )  # fmt: skip


def data(first: int, last: int) -> Examples:
    features, progress = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(progress))[first:last]
    scaled = (progress - progress.mean()) / progress.std()
    return Examples(20 * features[order].astype(np.float32), scaled[order, None])


TASK = Task(
    "diabetes", model, lambda: data(0, 350), lambda: data(350, 442),
    loss=losses.Huber(delta=1.0), metric=metrics.R2(),
)  # fmt: skip
