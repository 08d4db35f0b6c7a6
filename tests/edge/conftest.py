"""Models and data that several files here need, made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from edge.targets.tflite.runner import Runtime, available_runtimes
from fedkit.graph import ir
from fedkit.nn.zoo import build_model
from tests.edge.define.tflite_runtimes import RUNTIMES
from tests.edge.policy_places import PLACES, PolicyRun

Images = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _models_are_the_same_each_time(seeded_single_thread: None) -> None:
    pass


@pytest.fixture(scope="session")
def torch_outputs() -> Callable[[nn.Module, Images], Images]:
    """Run a torch model on numpy inputs."""

    def run(model: nn.Module, inputs: Images) -> Images:
        with torch.no_grad():
            return np.asarray(model(torch.from_numpy(inputs)).numpy())

    return run


@pytest.fixture
def both_runtimes() -> tuple[str, ...]:
    runtimes = available_runtimes()
    if len(runtimes) < 2:
        pytest.skip("tflite-runtime is not installed; it ends at Python 3.11 and numpy 1")
    return runtimes


@pytest.fixture(scope="session")
def linear_graph() -> Callable[..., ir.Graph]:
    """Build input [1, f] -> linear -> output from its weights and bias."""

    def build(weight: Images, bias: Images) -> ir.Graph:
        outputs, features = weight.shape
        tensors = {
            "x": ir.Tensor("x", (1, features)),
            "w": ir.Tensor("w", weight.shape, "float32", weight.astype(np.float32)),
            "b": ir.Tensor("b", bias.shape, "float32", bias.astype(np.float32)),
            "y": ir.Tensor("y", (1, outputs)),
        }
        op = ir.Op("linear", ("x", "w", "b"), ("y",), source="fc")
        return ir.Graph(tensors, (op,), ("x",), ("y",))

    return build


@dataclass(frozen=True)
class TrainedModel:
    """A model trained on scikit-learn's digits, and its data."""

    model: nn.Module
    train: Images
    test: Images
    targets: NDArray[np.int64]


@pytest.fixture(scope="session")
def trained() -> TrainedModel:
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    inputs = (images[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    labels = targets[order].astype(np.int64)
    torch.manual_seed(0)
    model = build_model("resnet8", (1, 8, 8), 10)
    _train(model, torch.from_numpy(inputs[:1297]), torch.from_numpy(labels[:1297]))
    return TrainedModel(model.eval(), inputs[:1297], inputs[1297:], labels[1297:])


def _train(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, epochs: int = 4) -> None:
    steps = epochs * (len(inputs) // 32)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0.05, steps)
    for _ in range(steps):
        batch = torch.randint(len(inputs), (32,))
        loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    if request.param not in available_runtimes():
        pytest.skip(f"{request.param} is not installed for this Python")
    chosen: Runtime = request.param
    return chosen


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> PolicyRun:
    if request.param == "tflite-runtime" and request.param not in available_runtimes():
        pytest.skip("tflite-runtime is not installed; it ends at Python 3.11 and numpy 1")
    return PLACES[request.param]
