"""A task of your own in 30 lines: fedkit run --task examples.own_task:TASK --devices 5 --alpha 5"""

import numpy as np
from sklearn.datasets import load_breast_cancer
from torch import nn

from fedkit import Examples, Task


def model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(30, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(),
        nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Linear(32, 2),
    )  # fmt: skip


def data(first: int, last: int) -> Examples:
    features, targets = load_breast_cancer(return_X_y=True)
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    order = np.random.default_rng(0).permutation(len(targets))[first:last]
    return Examples(scaled[order].astype(np.float32), targets[order].astype(np.int64))


TASK = Task("tumours", model, lambda: data(0, 450), lambda: data(450, 569))
