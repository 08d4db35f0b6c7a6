"""Tasks with a target for each place: from training, on torch, to artifacts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

import edge
import fedkit
from fedkit.config import make_config
from fedkit.core.errors import DataError, TaskError
from fedkit.flower.device_app import _engine_of_task
from fedkit.tasks import load_task
from fedkit.tasks.task import accuracy

SETTINGS: dict[str, Any] = {
    **{"devices": 2, "rounds": 1, "epochs": 1, "batch_size": 8, "density": 0.5},
    **{"partition": "iid", "lr": 0.1, "seed": 1},
}


def data(shape: tuple[int, ...], count: int = 48) -> fedkit.Examples:
    """Return noise, and for each place which of three channels is largest there."""
    inputs = np.random.default_rng(0).standard_normal((count, 3, *shape)).astype(np.float32)
    return fedkit.Examples(inputs, inputs.argmax(axis=1))


def task(shape: tuple[int, ...], model: Callable[[], nn.Module]) -> fedkit.Task:
    return fedkit.Task("own", model, lambda: data(shape), lambda: data(shape))


def pixels() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 1)
    )


def steps() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 6, 1), nn.ReLU(), nn.Conv1d(6, 3, 1))


@pytest.mark.parametrize(
    ("shape", "model", "target"), [((5, 4), pixels, "tflite"), ((7,), steps, "onnx")]
)
def test_a_task_of_places_trains_is_exported_and_checked(
    shape: tuple[int, ...], model: Callable[[], nn.Module], target: str, tmp_path: Path
) -> None:
    own = task(shape, model)
    result = fedkit.run(own, **SETTINGS)
    test = own.examples("test")
    path = tmp_path / f"own.{target}"
    edge.export_model(result.module(), test.inputs, path, accept_error=True)
    report = edge.check_artifact(path, test.inputs)
    assert (report.mismatches, report.outputs.integers) == (0, test.inputs.size)
    outputs = edge.open_artifact(path).predict(test.inputs)
    assert outputs.shape == test.inputs.shape
    by_hand = np.mean([np.argmax(o, 0) == t for o, t in zip(outputs, test.targets, strict=True)])
    assert accuracy(outputs, test.targets) == pytest.approx(float(by_hand))
    assert abs(accuracy(outputs, test.targets) - result.accuracy) < 0.1


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("digits-pixels", "fp32"),
        ("digits-reconstruction", "int8"),
        pytest.param("digits-pixels", "int8", marks=pytest.mark.slow),
        pytest.param("digits-reconstruction", "fp32", marks=pytest.mark.slow),
    ],
)
def test_the_tasks_of_maps_and_features_train_without_torch(name: str, precision: str) -> None:
    chosen = {"test_examples": 60, "examples_per_device": 40, "lr": 0.05, "precision": precision}
    result = fedkit.run(name, **{**SETTINGS, **chosen})
    assert "torch" not in result._scenario.engine_notice
    first, last = result.steps[0].accuracy, result.steps[-1].accuracy
    assert first is not None and last is not None and first != last


@pytest.mark.parametrize(
    ("name", "model", "reason"),
    [
        ("digits", "unet-w8", r"an output per class of each pixel, and .* int64 \[n\] from 0 to 9"),
        ("digits", "ad-autoencoder", r"returns its inputs, and .* int64 \[n\] from 0 to 9"),
        ("digits-pixels", "resnet8", r"an output per class, and .* int64 \[n, 8, 8\] from 0 to 10"),
        ("digits-pixels", "ad-autoencoder", r"returns its inputs, and .* int64 \[n, 8, 8\]"),
        ("digits-reconstruction", "unet-w8", r"of each pixel, and .* float32 \[n, 64\]"),
        ("digits-rows", "unet-w8", r"of each pixel, and .* int64 \[n\]"),
    ],
)
def test_a_zoo_model_needs_targets_for_what_it_returns(name: str, model: str, reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        load_task(name).build_model(1, model)


def test_a_run_refuses_targets_of_other_places() -> None:
    inputs = data((5, 4)).inputs
    other = fedkit.Examples(inputs, np.zeros((48, 4, 5), np.int64))
    own = fedkit.Task("own", pixels, lambda: other, lambda: other)
    with pytest.raises(TaskError, match=r"maps \[n, classes, ...\] with int64 \[n, ...\]"):
        fedkit.run(own, **SETTINGS)


def test_a_device_of_a_fleet_takes_targets_of_places_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = make_config({"task": "digits-pixels", "partition": "iid"})
    examples = load_task("digits-pixels").examples("train").take(np.arange(20))
    assert type(_engine_of_task(config, examples)).__name__ == "SparseEngine"
    assert "engine: sparse" in capsys.readouterr().err
    for targets in (examples.targets[:, 0, 0], examples.targets[:, 1:], examples.targets + 1):
        with pytest.raises(DataError, match="targets"):
            _engine_of_task(config, fedkit.Examples(examples.inputs, targets))


@pytest.mark.parametrize("targets", [(6, 1), (6, 4), (6, 5, 4, 1), (1, 5, 4), (5, 4)])
def test_accuracy_takes_a_target_for_each_place_alone(targets: tuple[int, ...]) -> None:
    """Others would be spread over the places, and give some number."""
    outputs: NDArray[np.float64] = np.random.default_rng(0).standard_normal((6, 3, 5, 4))
    assert 0 <= accuracy(outputs, np.zeros((6, 5, 4), np.int64)) <= 1
    with pytest.raises(TaskError, match=r"tell the classes of \(6, 5, 4\)"):
        accuracy(outputs, np.zeros(targets, np.int64))
