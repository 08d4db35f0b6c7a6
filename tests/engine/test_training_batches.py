"""Data that is read batch by batch, and data that is changed at random, train as they should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedkit.core.errors import TaskError
from fedkit.engine.base import Engine, LocalTraining, TrainingBatches
from fedkit.engine.choose import make_engine
from fedkit.engine.integer.engine import input_codes, quantize_inputs
from fedkit.tasks import digits
from fedkit.tasks.lazy_array import Items, StoredArray, as_array
from fedkit.tasks.task import Examples
from tests.engine.same_bits import same_bits

HOW = LocalTraining(epochs=2, batch_size=16, lr=0.05, momentum=0.9, weight_decay=0.0)
FEW = digits.train_data().take(np.arange(60))


def engine(kind: str) -> Engine:
    wish, precision = ("auto", kind) if kind.startswith("int") else (kind, "fp32")
    return make_engine(digits.TASK, "resnet8", 0, wish, precision)[0]  # type: ignore[arg-type]


def on_disk(examples: Examples, folder: Path) -> Examples:
    np.save(folder / "inputs.npy", examples.inputs)
    return replace(examples, inputs=as_array(StoredArray(folder / "inputs.npy")))


def flipped(inputs: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    return np.where(generator.random((len(inputs), 1, 1, 1)) < 0.5, inputs[..., ::-1], inputs)


ENGINES = ["torch", "sparse", "int8"]


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("augment", [None, flipped])
def test_lazy_data_trains_to_the_same_bits(
    kind: str, augment: Callable[..., Any] | None, tmp_path: Path
) -> None:
    computes, whole = engine(kind), replace(FEW, augment=augment)
    lazy, start = on_disk(whole, tmp_path), computes.initial_state()
    ours, theirs = (computes.train(start, data, HOW, seed=3) for data in (lazy, whole))
    assert same_bits(ours[0], theirs[0]) and ours[1] == theirs[1]
    state = ours[0]
    assert computes.loss(state, lazy) == computes.loss(state, whole)
    for name, found in computes.gradients(state, lazy).items():
        np.testing.assert_array_equal(found, computes.gradients(state, whole)[name])
    np.testing.assert_array_equal(
        computes.outputs(state, lazy.inputs), computes.outputs(state, whole.inputs)
    )
    moments = [computes.norm_moments(state, data) for data in (lazy, whole)]
    for name, part in moments[0].items():
        np.testing.assert_array_equal(part.mean, moments[1][name].mean)


@pytest.mark.parametrize("kind", ENGINES)
def test_augmented_training_is_that_of_changed_batches(kind: str) -> None:
    """One epoch over data that was changed beforehand, with the same draws, is the same."""
    computes, seed, one = engine(kind), 5, replace(HOW, epochs=1)
    changed, draws = FEW.inputs.copy(), np.random.default_rng([seed, 1])
    order = np.random.default_rng(seed).permutation(len(FEW))
    for batch in np.array_split(order, 4):
        changed[batch] = flipped(FEW.inputs[batch], draws)
    assert not np.array_equal(changed, FEW.inputs)
    start = computes.initial_state()
    ours = computes.train(start, replace(FEW, augment=flipped), one, seed)
    theirs = computes.train(start, replace(FEW, inputs=changed), one, seed)
    weights = (found[0].weights for found in (ours, theirs))
    for first, second in zip(*(each.values() for each in weights), strict=True):
        np.testing.assert_array_equal(first, second)
    plain = computes.train(start, FEW, one, seed)
    assert any(
        not np.array_equal(found, plain[0].weights[name]) for name, found in ours[0].weights.items()
    )


def test_epochs_draw_anew_and_runs_draw_alike() -> None:
    data = replace(FEW, augment=lambda inputs, draws: inputs + draws.normal(size=inputs.shape))
    batches, again = TrainingBatches(data, HOW, 1), TrainingBatches(data, HOW, 1)
    epochs = [[batch.inputs for batch in batches.epoch()] for _ in range(2)]
    assert not np.array_equal(epochs[0][0], epochs[1][0])
    np.testing.assert_array_equal(epochs[0][0], next(again.epoch()).inputs)
    assert epochs[0][0].dtype == np.float32


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda inputs, _: inputs[:1], "it must keep the shape"),
        (lambda inputs, _: inputs.astype(int), "the kind of the numbers"),
        (lambda inputs, _: inputs * np.nan, "NaN"),
        (lambda inputs, _: inputs.nothing, "augment of the examples failed with AttributeError"),
        (lambda inputs: inputs, "TypeError"),
    ],
)
def test_augment_that_is_none_is_refused(augment: Any, message: str) -> None:
    data = replace(FEW, augment=augment)
    with pytest.raises(TaskError, match=message):
        engine("sparse").train(engine("sparse").initial_state(), data, HOW, 0)
    with pytest.raises(TaskError, match="must be a function"):
        replace(FEW, augment="flip")  # type: ignore[arg-type]


def test_augment_cannot_change_the_data_itself() -> None:
    def spoil(inputs: NDArray[np.float32], _: np.random.Generator) -> NDArray[np.float32]:
        inputs[:] = 0
        return inputs

    before = FEW.inputs.copy()
    list(TrainingBatches(replace(FEW, augment=spoil), HOW, 0).epoch())
    np.testing.assert_array_equal(FEW.inputs, before)


@pytest.mark.parametrize("largest", [0.0, 1e-38, 0.5, 1.0, 126.9, 127.0, 127.1, 3e38])
def test_codes_of_rows_are_those_of_the_whole(largest: float) -> None:
    inputs = (np.random.default_rng(0).uniform(-1, 1, (50, 3)) * largest).astype(np.float32)
    inputs[17, 1] = largest
    codes, scale = quantize_inputs(inputs)
    lazy, same = quantize_inputs(as_array(Items(50, inputs.__getitem__, "rows")))
    assert scale == same
    np.testing.assert_array_equal(lazy[:], codes)
    np.testing.assert_allclose(codes * scale, inputs, rtol=0, atol=scale / 2)
    np.testing.assert_array_equal(
        input_codes(inputs.astype(np.float64) * 4, scale)[17, 1], 127 if largest else 0
    )
