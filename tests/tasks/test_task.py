"""What a task may bring: each kind of data and model works, or is refused in one clear line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkit.config import make_config
from fedkit.core.errors import ConfigError, DataError, EngineError, FedkitError, TaskError
from fedkit.server.scenario import Scenario
from fedkit.tasks import load_task, losses, metrics
from fedkit.tasks.task import ACCURACY, Examples, Metric, Task, accuracy
from sim import scenario
from sim.scenario import make_scenario

INPUTS = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
TARGETS = np.arange(60) % 3
IMAGES = np.random.default_rng(1).random((60, 16, 16, 3), dtype=np.float32)


# Examples: what numpy reads as numbers becomes float32 or int64 [n, ...]


def memory_map(folder: Path) -> Any:
    np.save(folder / "x.npy", INPUTS)
    return np.load(folder / "x.npy", mmap_mode="r")


def read_only() -> Any:
    inputs = INPUTS.copy()
    inputs.flags.writeable = False
    return inputs


READABLE: dict[str, Callable[[Path], Any]] = {
    "float32": lambda _: INPUTS,
    "float64": lambda _: INPUTS.astype(np.float64),
    "other byte order": lambda _: INPUTS.astype(">f4"),
    "lists": lambda _: INPUTS.tolist(),
    "tensor": lambda _: torch.from_numpy(INPUTS),
    "frame": lambda _: pd.DataFrame(INPUTS),
    "Fortran order": lambda _: np.asfortranarray(INPUTS),
    "negative strides": lambda _: INPUTS[::-1][::-1],
    "masked nowhere": lambda _: np.ma.masked_array(INPUTS),
    "memory map": memory_map,
    "read-only": lambda _: read_only(),
}


@pytest.mark.parametrize("kind", READABLE)
def test_inputs_of_each_kind_become_float32(kind: str, tmp_path: Path) -> None:
    examples = Examples(READABLE[kind](tmp_path), TARGETS)
    assert type(examples.inputs) is np.ndarray and examples.inputs.flags.c_contiguous
    assert examples.inputs.dtype == np.float32 and examples.inputs.dtype.isnative
    np.testing.assert_array_equal(examples.inputs, INPUTS)


def test_float32_inputs_are_not_copied() -> None:
    assert np.shares_memory(Examples(INPUTS, TARGETS).inputs, INPUTS)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64", "int64"])
def test_whole_inputs_stay_whole(dtype: str) -> None:
    examples = Examples(np.arange(12).reshape(4, 3).astype(dtype), [0, 1, 0, 1])  # type: ignore[arg-type]
    assert examples.inputs.dtype == np.int64 and examples.inputs.tolist()[3] == [9, 10, 11]


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ([0, 1, 2], np.int64),
        (np.array([True, False, True]), np.int64),
        (torch.tensor([0, 1, 2], dtype=torch.int32), np.int64),
        (pd.Series([0, 1, 2]), np.int64),
        ([0.5, 1, 2], np.float32),
        (np.eye(3), np.float32),
    ],
)
def test_targets_become_int64_or_float32(given: Any, dtype: type) -> None:
    examples = Examples(INPUTS[:3], given)
    assert examples.targets.dtype == dtype and len(examples) == 3
    assert examples.labelled == (dtype is np.int64)


BAD_INPUTS: dict[str, tuple[Any, str]] = {
    "text": (np.full((60, 2), "a"), "inputs are <U1, which is text"),
    "bytes": (np.full((60, 2), b"a"), "which is text"),
    "objects": (np.array([[1, "a"]] * 60, object), "Python objects of different kinds"),
    "nothing": (None, "inputs are a NoneType"),
    "ragged": ([[1.0], [1.0, 2.0]] * 30, "cannot be read as a numpy array"),
    "complex": (INPUTS.astype(complex), "inputs are complex128, they must be real numbers"),
    "dates": (np.zeros(60, "M8[s]"), "they must be real numbers"),
    "records": (np.zeros(60, "f4,i4"), "they must be real numbers"),
    "NaN": (np.where(np.arange(60) == 7, np.nan, INPUTS.T).T, "NaN or infinite inputs"),
    "infinity": (np.full((60, 2), np.inf), "NaN or infinite inputs"),
    "beyond float32": (np.full((60, 2), 1e39), "values that float32 cannot hold"),
    "beyond int64": (np.full((60, 2), 2**64 - 1, np.uint64), "which int64 cannot"),
    "number": (3.0, "inputs are a float; they must be an array"),
    "no array": (np.float32(3), "one row per example"),
    "dict": ({"a": 1}, "inputs are a dict"),
    "gradient": (torch.zeros(60, 2, requires_grad=True), "requires grad"),
    "masked": (np.ma.masked_array(INPUTS, INPUTS > 1), "masked in places"),
    "other length": (INPUTS[:59], "59 inputs, 60 targets"),
}


@pytest.mark.parametrize("kind", BAD_INPUTS)
def test_inputs_that_are_no_numbers_are_refused(kind: str) -> None:
    given, message = BAD_INPUTS[kind]
    with pytest.raises(TaskError, match=message):
        Examples(given, TARGETS)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.array(["cat", "dog", "cow"])[TARGETS], "targets are <U3, which is text; number it"),
        (np.where(TARGETS == 1, np.nan, 0.0), "NaN or infinite targets"),
        (TARGETS[0], "targets are a"),
    ],
)
def test_targets_that_are_no_numbers_are_refused(targets: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Examples(INPUTS, targets)


# Tasks: what cannot be called is refused at once


def task(model: Any = None, inputs: Any = INPUTS, targets: Any = TARGETS, **rest: Any) -> Task:
    def data() -> Examples:
        return Examples(inputs, targets)

    return Task("own", model or mlp(3), data, data, **rest)


def mlp(outputs: int, features: int = 6) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, outputs))


BAD_TASKS: dict[str, tuple[Callable[[], Any], str]] = {
    "instance": (lambda: task(nn.Linear(6, 3)), "a function that makes a fresh one"),
    "number": (lambda: task(3), "object of class int"),
    "loss class": (lambda: task(loss=nn.MSELoss), "loss of task 'own' is the class MSELoss"),
    "no metric": (lambda: task(metric=None), "metric of task 'own' is the object of class None"),
    "no name": (lambda: replace(task(), name=""), "the name of a task is ''"),
    "data": (lambda: Task("own", mlp(3), Examples(INPUTS, TARGETS), task), "train_data"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("kind", BAD_TASKS)
def test_a_task_of_wrong_parts_is_refused(kind: str) -> None:
    make, message = BAD_TASKS[kind]
    with pytest.raises(TaskError, match=message):
        make()


# Before a run: model, inputs, targets, loss and metric are tried together


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Scenario]]:
    """Return a function that makes a task's scenario."""

    def make(own: Task, **config: Any) -> Scenario:
        monkeypatch.setattr(scenario, "load_task", lambda path: own)
        make_scenario.cache_clear()
        keys = {"task": "own", "devices": 2, "partition": "iid", "server_share": 0, **config}
        return make_scenario(make_config(keys))

    yield make
    make_scenario.cache_clear()


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs.reshape(targets.shape), targets.float())


def mean_square(outputs: Any, targets: Any) -> float:
    return float(np.mean((outputs.reshape(targets.shape) - targets) ** 2))


def channels_first(images: Any) -> Any:
    return images.transpose(0, 3, 1, 2)


def cnn(channels: int) -> Callable[[], nn.Module]:
    layers = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    return lambda: nn.Sequential(nn.Conv2d(channels, 4, 3), *layers)


def conv1d() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(56, 3))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.table(x).mean(dim=1))
        return out


class Two(nn.Linear):
    def __init__(self) -> None:
        super().__init__(6, 3)

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


TOKENS = np.arange(240).reshape(60, 4) % 20
OWN = {"loss": squares, "metric": mean_square}

SOUND: dict[str, Callable[[], Task]] = {
    "classes": task,
    "regression on whole numbers": lambda: task(mlp(1), **OWN),
    "regression": lambda: task(mlp(1), targets=TARGETS + 0.3, **OWN),
    "negative targets": lambda: task(mlp(1), targets=TARGETS - 9, **OWN),
    "autoencoder": lambda: task(mlp(6), targets=INPUTS, **OWN),
    "several labels": lambda: task(mlp(3), targets=np.eye(3)[TARGETS], **OWN),
    "pixels": lambda: task(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1)), channels_first(IMAGES), (IMAGES[..., 0] > 0.5)
    ),
    "series": lambda: task(conv1d, channels_first(IMAGES)[:, :, 0]),
    "tokens": lambda: task(Tokens, TOKENS),
    "loss object": lambda: task(loss=nn.CrossEntropyLoss()),
}


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_task_passes(kind: str, made: Callable[..., Scenario]) -> None:
    found = made(SOUND[kind]())
    found.check()
    assert sum(map(len, found.devices)) == 60


def failing() -> nn.Module:
    raise ValueError("no such width\nand more")


UNSOUND: dict[str, tuple[Callable[[], Task], str]] = {
    "float classes": (lambda: task(targets=TARGETS / 1.0), r"targets.astype\(numpy.int64\)"),
    "quantities": (lambda: task(mlp(1), targets=TARGETS + 0.3), "give the task a loss and a metr"),
    "one-hot": (lambda: task(targets=np.eye(3)[TARGETS]), r"argmax\(axis=1\)"),
    "column": (lambda: task(targets=TARGETS[:, None]), r"targets.reshape\(-1\)"),
    "ignored": (lambda: task(targets=np.where(TARGETS, TARGETS, -100)), "from -100 to 2"),
    "few outputs": (lambda: task(mlp(2)), "has 2 outputs, but there are targets up to 2"),
    "accuracy of one output": (lambda: task(mlp(1), loss=squares), "or give the task a metric of"),
    "failing factory": (lambda: task(failing), r"ValueError: no such width at .*test_task.py, lin"),
    "factory of nothing": (lambda: task(lambda: None), "returned a NoneType"),
    "factory that exits": (lambda: task(lambda: sys.exit(3)), "SystemExit: 3"),
    "loss of nothing": (lambda: task(loss=lambda o, t: None), "must give a scalar tensor"),
    "loss per example": (
        lambda: task(loss=nn.CrossEntropyLoss(reduction="none")),
        r"gives shape \(\d+,\); it must give a scalar",
    ),
    "detached loss": (lambda: task(loss=lambda o, t: o.detach().sum()), "does not depend"),
    "failing loss": (lambda: task(loss=lambda o, t: o.nothing), "AttributeError.*test_task.py"),
    "failing metric": (lambda: task(metric=lambda o, t: o.nothing), "metric 'metric' failed"),
    "metric of nothing": (lambda: task(metric=lambda o, t: None), "metric 'metric' failed"),
    "features": (lambda: task(mlp(3, 5)), r"inputs of shape \(6,\): its Linear takes 5 features"),
    "images for features": (lambda: task(mlp(3, 768), IMAGES), r"begin the model with nn.Flatten"),
    "channels last": (lambda: task(cnn(3), IMAGES), r"inputs.transpose\(0, 3, 1, 2\)"),
    "channels last, zoo": (lambda: task("resnet8", IMAGES), r"transpose\(0, 3, 1, 2\)"),
    "no channel": (lambda: task(cnn(1), IMAGES[..., 0]), r"inputs\[:, None\] adds the channel"),
    "more channels": (lambda: task(cnn(1), channels_first(IMAGES)), "with 1 channels"),
    "series, channels last": (lambda: task(conv1d, IMAGES[:, :, 0]), r"transpose\(0, 2, 1\)"),
    "bytes for images": (
        lambda: task(cnn(3), (channels_first(IMAGES) * 255).astype(np.uint8)),
        r"its Conv2d takes float32: convert them with inputs.astype\(numpy.float32\)",
    ),
    "float tokens": (lambda: task(Tokens, TOKENS / 1.0), "its Embedding takes whole numbers"),
    "unknown tokens": (lambda: task(Tokens, TOKENS + 1), "from 1 to 20, and its Embedding has 20"),
    "model of two": (lambda: task(Two), "returns a tuple"),
    "zoo model for quantities": (
        lambda: task("resnet8", channels_first(IMAGES), TARGETS + 0.5),
        "has an output per class, and the targets of task 'own' are float32",
    ),
}


@pytest.mark.parametrize("kind", UNSOUND)
def test_an_unsound_task_is_refused_in_a_line(kind: str, made: Callable[..., Scenario]) -> None:
    make, message = UNSOUND[kind]
    with pytest.raises(FedkitError, match=message) as caught:
        made(make()).check()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, TaskError | ConfigError)


@pytest.mark.parametrize("kind", ["float tokens", "channels last", "series, channels last"])
def test_the_sparse_engine_says_the_same_of_inputs(
    kind: str, made: Callable[..., Scenario]
) -> None:
    make, message = UNSOUND[kind]
    with pytest.raises(TaskError, match=message):
        made(make(), engine="sparse").check()


def test_tokens_of_a_row_are_for_the_sparse_engine_and_others_are_told_the_way_out(
    made: Callable[..., Scenario],
) -> None:
    made(SOUND["tokens"](), engine="sparse").check()
    table = task(Tokens, TOKENS.reshape(len(TOKENS), 2, 2))
    with pytest.raises(EngineError, match=r"inputs are int64 of shape \(2, 2\).*engine torch"):
        made(table, engine="sparse").check()


def test_data_that_changes_from_call_to_call_is_refused(made: Callable[..., Scenario]) -> None:
    rng = np.random.default_rng(0)

    def fresh() -> Examples:
        return Examples(rng.random((60, 6), dtype=np.float32), TARGETS)

    for own in (replace(task(), train_data=fresh), replace(task(), test_data=fresh)):
        with pytest.raises(TaskError, match="_data of task 'own' returned other examples"):
            made(own).check()


LOST: dict[str, tuple[Callable[[Any, Any], tuple[Any, Any]], str]] = {
    "beyond the outputs": (
        lambda x, y: (x, put(y, 23, 3)),
        "up to 3, the first in example 23 of train_data",
    ),
    "below 0": (lambda x, y: (x, put(y, 41, -1)), "the first in example 41 of train_data"),
    "not finite": (lambda x, y: (put(x, 17, np.nan), y), "the first in example 17"),
    "another shape": (
        lambda x, y: (x[:, :5], y),
        r"have shape \(5,\), and those of test_",
    ),
}


def put(array: Any, place: int, value: float) -> Any:
    changed = array.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize("server_share", [0.0, 0.9])
@pytest.mark.parametrize("kind", LOST)
def test_bad_data_is_told_by_its_number_in_the_data_set(
    kind: str, server_share: float, made: Callable[..., Scenario]
) -> None:
    change, message = LOST[kind]
    own = replace(task(), train_data=lambda: Examples(*change(INPUTS, TARGETS)))
    with pytest.raises(TaskError, match=message):
        made(own, server_share=server_share, single_class="allow").check()


def test_labels_that_are_no_shares_are_told_by_their_number(made: Callable[..., Scenario]) -> None:
    targets = put(np.eye(3, dtype=np.float32)[TARGETS], 37, 2)
    own = task(targets=targets, loss=losses.BCEWithLogits(), metric=metrics.RocAuc())
    with pytest.raises(TaskError, match=r"of test_data: .* the first in example 37"):
        made(own).check()


def test_a_class_of_the_test_that_training_data_lack_is_refused(
    made: Callable[..., Scenario],
) -> None:
    known = TARGETS != 2
    own = replace(task(), train_data=lambda: Examples(INPUTS[known], TARGETS[known]))
    first = int(np.flatnonzero(~known)[0])
    with pytest.raises(DataError, match=f"no example of class 2, .*the first in example {first}:"):
        made(own)
    allowed = made(own, single_class="allow")
    allowed.check()
    assert any(text.startswith("no device holds") for text in allowed.warnings)
    made(replace(own, loss=losses.CrossEntropy(ignore_index=2))).check()


def test_a_data_function_must_return_examples(made: Callable[..., Scenario]) -> None:
    own = replace(task(), test_data=lambda: (INPUTS, TARGETS))  # type: ignore[arg-type, return-value]
    with pytest.raises(TaskError, match="test_data of task 'own' returned a tuple"):
        made(own)


def test_one_example_per_device_with_a_norm_is_refused(made: Callable[..., Scenario]) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    for engine in ("torch", "sparse"):
        own = made(task(lambda: model), devices=60, single_class="allow", engine=engine)
        with pytest.raises(
            TaskError, match=r"a device holds 1 example: .* norm layers need at least 2"
        ):
            own.check()


# Modules of users


BROKEN = {
    "syntax": ("def (", "SyntaxError: invalid syntax .*own_syntax.py, line 1"),
    "error": ("import numpy\n\n1 / 0", "ZeroDivisionError: division by zero at .*, line 3"),
    "import": ("import no_such_module", "cannot be imported .*No module named 'no_such_module'"),
    "exit": ("import sys\nsys.exit()", "SystemExit at .*, line 2"),
    "kind": ("TASK = 3", "leads to a int; 'TASK' must be a fedkit.tasks.task.Task"),
    "attribute": ("", "leads to nothing"),
    "instance": (
        "from torch import nn\nfrom fedkit.tasks.task import Task\n"
        "TASK = Task('own', nn.Linear(1, 1), dict, dict)",
        "it must be a function that makes a fresh one",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_module_is_told_with_its_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, message = BROKEN[kind]
    (tmp_path / f"own_{kind}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TaskError, match=message) as caught:
        load_task(f"own_{kind}:TASK")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["", ":", "a:", ":b", "..:x", "a\0b:c", "no such:x", "\ud800:x", "os:x:y"]
)
def test_a_path_that_leads_nowhere_is_refused(path: str) -> None:
    with pytest.raises(TaskError):
        load_task(path)


# Metrics


def test_a_metric_is_called_by_its_name() -> None:
    assert task().measure is ACCURACY
    assert task(metric=mean_square).measure.name == "mean square"
    assert task(metric=lambda o, t: 0.0).measure.name == "metric"
    error = Metric(mean_square, "mean squared error", higher_is_better=False, form=".3f")
    own = task(metric=error)
    assert own.measure is error and own.measure.text(-13.4) == "-13.400"
    assert own.measure.key == "mean_squared_error"
    assert own.measure(np.ones((2, 1)), np.zeros(2)) == 1.0


def test_a_metric_is_remembered_by_what_is_written_of_it() -> None:
    error = Metric(mean_square, "error", higher_is_better=False, form=".3f")
    read = Metric.of(error.about)
    assert (read.name, read.higher_is_better, read.form) == ("error", False, ".3f")
    assert Metric.of(None) is ACCURACY
    with pytest.raises(TaskError, match="does not describe a metric"):
        Metric.of({"name": "error"})


@pytest.mark.parametrize("values", [{"name": ""}, {"form": "d"}, {"form": "%s"}, {"measure": 3}])
def test_a_metric_that_cannot_be_shown_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="metric"):
        Metric(**{"measure": accuracy, "name": "x", **values})
