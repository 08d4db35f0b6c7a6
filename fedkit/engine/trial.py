"""Try a task before a run: what does not fit is told in a line, before any work is spent.

A task is made by a user, and torch's own words for a wrong shape or a wrong kind of number speak of
the layer that stumbled. Here the model meets a few of the inputs, the loss and the metric a few of
the outputs, and one step of training is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedkit.core.errors import FedkitError, TaskError
from fedkit.core.lookup import reason, theirs
from fedkit.engine.base import Engine, LocalTraining, even_batches
from fedkit.engine.torch import TorchEngine
from fedkit.sparse.state import ModelState
from fedkit.tasks.lazy_array import pieces
from fedkit.tasks.targets import describe, first_example
from fedkit.tasks.task import Examples, Task

_TRIED = 4
"""Examples that a trial takes, beside those with the smallest and largest numbers."""

_MEASURED = 256
"""Outputs that a metric is given at once."""

_TOLERANCE = 1e-3
"""Of the largest output; another batch takes other kernels, which sum in another order."""

_REPEATS = 8
"""Passes in which a model that tosses a coin shows it."""


def try_task(
    task: Task,
    engine: Engine,
    parts: Sequence[Examples],
    how: LocalTraining,
    whole: Examples | None = None,
) -> None:
    """Try model, loss, metric and one step of training.

    Args:
        task: The task.
        engine: What will compute with its model.
        parts: The examples that the run sees: those of the test first, then each device's.
        how: How a device trains.
        whole: The training data that server and devices have shares of, where it is here: so that
            a wrong target is told by its number in there.

    Raises:
        TaskError: Something does not fit; says what, and what to do.
    """
    few = [_few(part) for part in parts]
    state = engine.initial_state()
    with theirs(f"the model of task {task.name!r}", TaskError):
        outputs = [_outputs(task, engine, state, part, few[0]) for part in few]
    named = {"test": parts[0], **({} if whole is None else {"train": whole})}
    for which, examples in named.items():
        check_targets(task, outputs[0].shape[1:], examples.targets, f" of {which}_data")
    for part, some in zip(parts[1:], outputs[1:], strict=True):
        check_targets(task, some.shape[1:], part.targets)
    for part, some in zip(few, outputs, strict=True):
        if task.known_loss is None:
            _try_loss(task, some, part.targets)
    _try_metric(task, outputs[0], parts[0].targets)
    _try_step(task, engine, min(parts[1:] or parts, key=lambda part: _smallest(part, how)), how)


def _outputs(
    task: Task, engine: Engine, state: ModelState, part: Examples, test: Examples
) -> NDArray[np.float32]:
    try:
        return engine.outputs(state, part.inputs)
    except FedkitError as error:
        shape, wanted = part.inputs.shape[1:], test.inputs.shape[1:]
        if shape == wanted:
            raise
        raise TaskError(
            f"inputs of train_data of task {task.name!r} have shape {shape}, and those of "
            f"test_data {wanted}; make them alike ({error})"
        ) from error


def _smallest(share: Examples, how: LocalTraining) -> int:
    """Return how many examples the smallest batch has in which a device trains on its share."""
    return len(even_batches(np.arange(len(share)), how.batch_size)[-1])


def _try_step(task: Task, engine: Engine, share: Examples, how: LocalTraining) -> None:
    what = f"a step of training with the model of task {task.name!r}"
    alone = _smallest(share, how) == 1
    try:
        with theirs(what, TaskError):
            tried = share.take(np.array([len(share) - 1])) if alone else _few(share)
            engine.train(engine.initial_state(), tried, how, seed=0)
    except FedkitError as error:
        if not alone:
            raise
        if len(share) == 1:
            reason = "a device holds 1 example: use fewer devices, or bring more data"
        else:
            reason = (
                f"batches of {how.batch_size} leave 1 of a device's {len(share)} examples alone: "
                "use --batch-size 3 or more"
            )
        raise TaskError(f"{error}; {reason}, as norm layers need at least 2") from error


def try_inputs(task: Task, engine: TorchEngine, examples: Examples) -> None:
    """Let the task's model see a few inputs, together and one by one.

    Raises:
        TaskError: It does not take them; says what to change, where that can be seen. Or what it
            gives for one depends on the others of its batch.
    """
    if len(examples) == 0:
        return
    few, state = _few(examples).inputs, engine.initial_state()
    try:
        outputs = engine.outputs(state, few)
    except Exception as error:  # whatever torch or the model's own code raises
        hint = _hint(engine.module(state), examples.inputs)
        raise TaskError(
            f"the model of task {task.name!r} does not take its inputs of shape "
            f"{examples.inputs.shape[1:]}: {hint or reason(error)}"
        ) from error
    if outputs.ndim == 0 or len(outputs) != len(few):
        raise TaskError(
            f"the model of task {task.name!r} makes outputs of shape {outputs.shape} of "
            f"{len(few)} inputs; they must be [n, ...]"
        )
    _try_one_by_one(task, engine, few, outputs)


def _try_one_by_one(
    task: Task, engine: TorchEngine, inputs: NDArray[Any], together: NDArray[np.float32]
) -> None:
    """Refuse a model that mixes the examples of a batch in evaluation.

    Else a test's figures would depend on what else is in a batch, and a device that is given one
    example at a time would compute something else. A model that draws at random is let pass.
    """
    what = f"the model of task {task.name!r}"
    for index in range(len(inputs)):
        example = inputs[index : index + 1]
        try:
            alone = engine.outputs(engine.initial_state(), example)
        except Exception as error:  # whatever torch or the model's own code raises
            raise TaskError(
                f"{what} takes {len(inputs)} inputs, but not one alone, of shape {example.shape}: "
                f"{reason(error)}; its forward must keep the first axis, as flatten(1) does and "
                "squeeze() does not"
            ) from error
        if _close(alone, together[index : index + 1]):
            continue
        if _repeats(engine, example, alone) and _repeats(engine, inputs, together):
            raise TaskError(
                f"{what} mixes the examples of a batch: in evaluation its outputs for one input, "
                f"of shape {alone.shape}, are others than those for the same input among "
                f"{len(inputs)}; its forward must compute each row by itself: write x.flatten(1), "
                "not x.view(1, -1), and take no mean, softmax or sort over axis 0"
            )


def _repeats(engine: TorchEngine, inputs: NDArray[Any], outputs: NDArray[np.float32]) -> bool:
    """Whether inputs give the same outputs each time."""
    again = (engine.outputs(engine.initial_state(), inputs) for _ in range(_REPEATS))
    return all(_close(found, outputs) for found in again)


def _close(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> bool:
    """Whether outputs are the same but for the order in which float32 sums were taken."""
    if found.shape != wanted.shape:
        return False
    size = np.abs(wanted, where=np.isfinite(wanted), out=np.zeros_like(wanted)).max(initial=0)
    return np.allclose(found, wanted, rtol=0, atol=_TOLERANCE * float(size), equal_nan=True)


def _few(examples: Examples) -> Examples:
    """Return some examples: the first, and those that hold the extremes of inputs and targets."""
    chosen = set(range(min(_TRIED, len(examples))))
    for array in (examples.inputs, examples.targets):
        if array.size and (array is examples.targets or array.dtype == np.int64):
            chosen |= _rows_of_extremes(array)
    return examples.take(np.array(sorted(chosen), np.int64))


def _rows_of_extremes(array: NDArray[Any]) -> set[int]:
    """Return the first rows that hold the smallest and the largest number."""
    width = math.prod(array.shape[1:])
    lowest, highest = list[tuple[Any, int]](), list[tuple[Any, int]]()
    for start, part in pieces(array):
        lowest.append((part.min(), start + int(part.argmin()) // width))
        highest.append((part.max(), start + int(part.argmax()) // width))
    return {
        min(lowest, key=lambda found: found[0])[1],
        max(highest, key=lambda found: found[0])[1],
    }


# Targets -------------------------------------------------------------------------------------


def check_targets(task: Task, shape: tuple[int, ...], targets: NDArray[Any], of: str = "") -> None:
    """Refuse targets that the task's loss, one of ours, or its metric cannot read.

    Args:
        task: The task.
        shape: Of the model's outputs for one example.
        targets: [n, ...].
        of: Which they are, to end a sentence.

    Raises:
        TaskError: Says what they are and what the loss or metric takes.
    """
    if task.classifies:
        _check_classes(task, shape, targets, of)
    if (loss := task.known_loss) is None:
        return
    if problem := loss.outputs_problem(shape) or loss.targets_problem(shape, targets):
        raise TaskError(f"task {task.name!r}{of and ','}{of}: {problem}")
    if len(targets) and loss.share(targets) == 0:
        raise TaskError(
            f"task {task.name!r}: none of {len(targets)} examples has a target that counts in "
            f"loss {loss.kind}; bring others, or use fewer devices"
        )


def _check_classes(task: Task, shape: tuple[int, ...], targets: NDArray[Any], of: str) -> None:
    """Refuse targets that are not class indices of the model, int64 [n, ...]."""
    loss = task.known_loss
    is_loss = loss is not None and loss.classifies
    reader = "loss cross_entropy" if is_loss else "metric accuracy"
    own = f"or give the task a {'loss and a metric' if is_loss else 'metric'} of its own"
    own += f" (fedkit.tasks.{'losses and metrics' if is_loss else 'metrics'} have some)"
    if not shape or targets.shape[1:] != shape[1:] or targets.dtype.kind != "i":
        raise TaskError(
            f"the targets of task {task.name!r} are {describe(targets)}, and its model's outputs "
            f"have shape {('n', *shape)}; the {reader} compares outputs [n, classes] with class "
            f"indices, int64 [n], or maps [n, classes, ...] with int64 [n, ...]: "
            f"{_as_classes(targets, shape)} {own}"
        )
    counts = targets != task.ignored if is_loss else np.ones(targets.shape, np.bool_)
    if not counts.any():
        return
    lowest, highest = int(targets[counts].min()), int(targets[counts].max())
    if highest >= shape[0]:
        raise TaskError(
            f"the model of task {task.name!r} has {shape[0]} outputs, but there are targets up to "
            f"{highest}, {first_example(counts & (targets >= shape[0]))}{of}; give it at least "
            f"{highest + 1} outputs, {own}"
        )
    if lowest < 0:
        raise TaskError(
            f"the targets of task {task.name!r} are {describe(targets[counts])}; the {reader} "
            f"takes class indices from 0, and not {lowest}, {first_example(counts & (targets < 0))}"
            f"{of}: leave out examples without a class, ignore them with "
            f"losses.CrossEntropy(ignore_index={lowest}), {own}"
        )


def _as_classes(targets: NDArray[np.generic], shape: tuple[int, ...]) -> str:
    if targets.ndim == 2 and targets.shape[1] == 1:
        return "flatten them with targets.reshape(-1),"
    if targets.ndim == 2 and targets.shape[1:] == shape:
        return "make one-hot rows indices with targets.argmax(axis=1),"
    if targets.ndim == 1 and np.array_equal(targets, np.round(targets.astype(np.float64))):
        return "convert them with targets.astype(numpy.int64),"
    return "bring such targets,"


# Loss and metric -----------------------------------------------------------------------------


def _try_loss(task: Task, outputs: NDArray[np.float32], targets: NDArray[np.generic]) -> None:
    leaf = torch.tensor(outputs, requires_grad=True)
    what = f"the loss of task {task.name!r}"
    with theirs(f"{what}, given outputs {outputs.shape} and targets {targets.shape},", TaskError):
        loss: object = task.loss(leaf, torch.tensor(targets))
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {_kind(loss)}"
        raise TaskError(f"{what} gives {found}; it must give a scalar tensor, the batch's mean")
    if not loss.requires_grad:
        raise TaskError(
            f"{what} gives a number that does not depend on the outputs as far as torch can see; "
            "compute it with torch from the outputs, without detach, numpy or argmax"
        )


def _try_metric(task: Task, outputs: NDArray[np.float32], targets: NDArray[np.generic]) -> None:
    """Give the metric all test targets, with outputs of the right shape and any numbers."""
    seen, some = task.measure.start(), np.resize(outputs, (_MEASURED, *outputs.shape[1:]))
    for start in range(0, len(targets), _MEASURED):
        part = targets[start : start + _MEASURED]
        seen.add(some[: len(part)], part)
    seen.value()


def _kind(value: object) -> str:
    return type(value).__name__


# What to change in inputs --------------------------------------------------------------------


def _hint(model: nn.Module, inputs: NDArray[np.generic]) -> str:
    """Say how inputs and the first layer of a model that refused them can be brought together."""
    first = next((m for m in model.modules() if type(m) in _HINTS), None)
    if isinstance(first, nn.Embedding):
        return _embedding_hint(first, inputs)
    if first is not None and inputs.dtype == np.int64:
        return (
            f"they are whole numbers, and its {_kind(first)} takes float32: convert them with "
            "inputs.astype(numpy.float32)"
        )
    return "" if first is None else _HINTS[type(first)](first, inputs.shape[1:])


def _embedding_hint(layer: nn.Embedding, inputs: NDArray[np.generic]) -> str:
    if inputs.dtype != np.int64:
        return (
            f"they are {inputs.dtype}, and its Embedding takes whole numbers, the indices of "
            "tokens: convert them with inputs.astype(numpy.int64)"
        )
    lowest, highest = int(inputs.min()), int(inputs.max())
    if lowest < 0 or highest >= layer.num_embeddings:
        return (
            f"they are from {lowest} to {highest}, and its Embedding has {layer.num_embeddings} "
            f"rows, for 0 .. {layer.num_embeddings - 1}"
        )
    return ""


_AXES = {
    nn.Conv1d: ("channels", "length"),
    nn.Conv2d: ("channels", "height", "width"),
    nn.Conv3d: ("channels", "depth", "height", "width"),
}


def _conv_hint(layer: nn.Module, shape: tuple[int, ...]) -> str:
    axes = _AXES[type(layer)]  # type: ignore[index]
    channels = layer.in_channels
    wanted = f"its {_kind(layer)} takes ({', '.join(axes)}) with {channels} channels"
    if len(shape) == len(axes) and shape[-1] == channels != shape[0]:
        order = (0, len(axes), *range(1, len(axes)))
        return f"{wanted}, and here channels are last: inputs.transpose{order} puts them first"
    if len(shape) == len(axes) - 1 and channels == 1:
        return f"{wanted}: inputs[:, None] adds the channel"
    return wanted if len(shape) != len(axes) or shape[0] != channels else ""


def _linear_hint(layer: nn.Module, shape: tuple[int, ...]) -> str:
    features = layer.in_features
    if shape and shape[-1] == features:
        return ""
    wanted = f"its Linear takes {features} features"
    if math.prod(shape) == features:
        return f"{wanted}: begin the model with nn.Flatten()"
    return wanted


_HINTS: dict[type[nn.Module], Callable[[nn.Module, tuple[int, ...]], str]] = {
    nn.Embedding: lambda layer, shape: "",
    nn.Conv1d: _conv_hint,
    nn.Conv2d: _conv_hint,
    nn.Conv3d: _conv_hint,
    nn.Linear: _linear_hint,
}
