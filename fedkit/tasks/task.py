"""What a user brings: a model, data, a loss and a metric.

A task is one frozen object. The CLI finds it as `--task package.module:name` through
`fedkit.tasks.load_task`. Importing this module does not import torch: a device that trains without
torch reads its `Examples` from here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import TaskError
from fedkit.core.lookup import reason, theirs
from fedkit.preprocess.raw_input import RawInput
from fedkit.tasks import losses, metrics
from fedkit.tasks.as_numbers import array_of, numbers
from fedkit.tasks.lazy_array import taken, view
from fedkit.tasks.targets import describe

if TYPE_CHECKING:
    from torch import Tensor, nn


Augment = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]
"""(inputs [m, ...], where to draw from) -> other inputs of the same shape, for one batch."""


@dataclass(frozen=True)
class Examples:
    """Labelled examples: in memory, or read when a batch needs them.

    Whatever numpy reads as an array of numbers is taken: lists, tensors, data frames, memory maps.
    What has another width or layout is copied once. A `LazyArray`, as `fedkit.tasks.sources` makes
    of files and data sets, stays where it is: its rows are converted and checked as they are read.

    Attributes:
        inputs: float32 [n, ...], or int64 where whole numbers were given (tokens, for an
            `nn.Embedding`); images are [n, channels, height, width].
        targets: int64 or float32 [n, ...], as the task's loss takes them. For the default loss and
            metric they are class indices from 0, int64 [n]; of models that return a map, int64
            [n, height, width].
        owners: natural id of each example, [n] of str or int; only partitions read it.
        columns: More that is known of each example, by name, [n] each: a time, a place, a voice.
            Only partitions read them.
        augment: Changes the inputs of each batch that a device trains on, at random; the numbers
            it draws depend on the run's seed, the round and the device alone. Never applied to
            what is measured on.

    Raises:
        TaskError: Inputs or targets are not numbers, the lengths differ, or a number is NaN or
            infinite as float32.
    """

    # A lazy array is a duck: wherever an array is taken, it can stand.
    inputs: NDArray[np.float32]
    targets: NDArray[Any]
    owners: NDArray[np.generic] | None = None
    augment: Augment | None = None
    columns: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            object.__setattr__(self, name, numbers(name, getattr(self, name)))
        if self.owners is not None:
            object.__setattr__(self, "owners", array_of("owners", self.owners))
        if self.augment is not None and not callable(self.augment):
            raise TaskError(
                f"augment is a {type(self.augment).__name__}; it must be a function of (inputs, "
                "generator) that returns inputs"
            )
        named = {name: array_of(name, values) for name, values in self.columns.items()}
        object.__setattr__(self, "columns", named)
        arrays = (self.inputs, self.targets, self.owners, *named.values())
        if len({len(array) for array in arrays if array is not None}) != 1:
            raise TaskError(
                f"examples have {len(self.inputs)} inputs, {len(self.targets)} targets and "
                f"{'no' if self.owners is None else len(self.owners)} owners"
                f"{''.join(f', {len(each)} of {name!r}' for name, each in named.items())}; "
                "all must have the same length"
            )

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: NDArray[np.int64]) -> Examples:
        """Return the examples at `indices` (int64 [m]), in that order."""
        return self._some(indices, taken(self.inputs, indices))

    def view(self, indices: NDArray[np.int64]) -> Examples:
        """Return what `take` does, with inputs that are copied when some of them are asked for."""
        return self._some(indices, view(self.inputs, indices))

    def _some(self, indices: NDArray[np.int64], inputs: NDArray[np.float32]) -> Examples:
        owners = None if self.owners is None else self.owners[indices]
        columns = {name: values[indices] for name, values in self.columns.items()}
        return Examples(inputs, taken(self.targets, indices), owners, self.augment, columns)

    def augmented(
        self, indices: NDArray[np.int64], generator: np.random.Generator
    ) -> NDArray[np.float32]:
        """Return the inputs at `indices` (int64 [m]), changed by `augment`.

        Raises:
            TaskError: It fails, or returns what are no inputs of that shape.
        """
        given = self.inputs[indices]
        if self.augment is None:
            return given
        with theirs("augment of the examples", TaskError):
            made = np.asarray(self.augment(given.copy(), generator))
        if made.shape != given.shape or (made.dtype.kind == "f") != (given.dtype.kind == "f"):
            raise TaskError(
                f"augment of the examples made {made.dtype} {made.shape} of {given.dtype} "
                f"{given.shape}; it must keep the shape, and the kind of the numbers"
            )
        return numbers("inputs", made)

    @property
    def labelled(self) -> bool:
        """Whether each target is one whole number, as a class index is."""
        return self.targets.ndim == 1 and self.targets.dtype == np.int64

    @property
    def classes(self) -> NDArray[np.int64]:
        """Distinct targets, ascending, int64 [c]."""
        return np.asarray(np.unique(self.targets))


cross_entropy = losses.PLAIN
"""The loss of a task that names none: the mean of softmax cross-entropy, outputs [n, classes, ...],
targets int64 [n, ...]."""


accuracy = metrics.Accuracy()
"""The metric of a task that names none: the share of targets whose class has the largest output,
outputs [n, classes, ...], targets int64 [n, ...]."""


@dataclass(frozen=True)
class Metric:
    """How good outputs are: a function, and how its values are shown.

    Attributes:
        measure: (outputs, targets) -> number, numpy in. One of `fedkit.tasks.metrics` is given
            batches; another function all outputs at once.
        name: What the number is called, as in "accuracy" or "mean squared error".
        higher_is_better: Whether a larger number is a better model.
        form: Format specification of the number, such as ".2%" or ".4g".

    Raises:
        TaskError: The format does not fit a float, or a value is of the wrong kind.
    """

    measure: Callable[[NDArray[Any], NDArray[Any]], float]
    name: str
    higher_is_better: bool = True
    form: str = ".4g"

    def __post_init__(self) -> None:
        if not callable(self.measure) or not isinstance(self.name, str) or not self.name.strip():
            raise TaskError(
                f"a metric is {self.measure!r} with name {self.name!r}; it needs a function of "
                "(outputs, targets) and a name"
            )
        try:
            self.text(0.5)
        except (ValueError, TypeError) as error:
            raise TaskError(
                f"the format of metric {self.name!r} is {self.form!r}; it must be one for a float, "
                "such as .2% or .4g"
            ) from error

    def __call__(self, outputs: NDArray[Any], targets: NDArray[Any]) -> float:
        """Return the value for outputs and targets.

        Raises:
            TaskError: The function fails, or returns no real number.
        """
        with theirs(f"metric {self.name!r}", TaskError):
            return float(self.measure(outputs, targets))

    def start(self) -> metrics.Accumulator:
        """Return what takes the outputs batch by batch."""
        if isinstance(self.measure, metrics.Measure):
            return self.measure.start()
        return _AtOnce(self)

    def text(self, value: float) -> str:
        """Write a value as it is meant to be read."""
        return format(value, self.form)

    @property
    def key(self) -> str:
        """The name as it begins keys of a run's summary: words joined by `_`."""
        return "_".join(self.name.split())

    @property
    def about(self) -> dict[str, Any]:
        """What a record of values says about them; `Metric.of` reads it."""
        return {"name": self.name, "higher_is_better": self.higher_is_better, "form": self.form}

    @classmethod
    def of(cls, about: Mapping[str, Any] | None) -> Metric:
        """Return the metric that a record tells of, to show values with; accuracy for None.

        Raises:
            TaskError: It is not such a record.
        """
        if about is None:
            return ACCURACY
        try:
            return cls(accuracy, about["name"], bool(about["higher_is_better"]), about["form"])
        except (KeyError, TypeError) as error:
            raise TaskError(f"{about!r} does not describe a metric ({reason(error)})") from error


class _AtOnce(metrics.Accumulator):
    """Keeps all batches for a function that wants them at once."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._parts: list[tuple[NDArray[Any], NDArray[Any]]] = []

    def add(self, outputs: NDArray[Any], targets: NDArray[Any]) -> None:
        self._parts.append((outputs, targets))

    def value(self) -> float:
        if not self._parts:
            raise metrics.nothing_to_measure(self._metric.name)
        outputs, targets = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        return self._metric(outputs, targets)


ACCURACY = Metric(accuracy, "accuracy", form=".2%")
"""The metric of a task that names none."""


@dataclass(frozen=True)
class Task:
    """A learning problem for a fleet.

    Attributes:
        name: Short name, used in reports and run folders.
        model: A factory returning a fresh `nn.Module`, or a model name of `fedkit.nn.zoo`.
        train_data: Returns the training examples. A simulation splits them over its devices
            with a partitioner; on a board the function returns that board's own data.
        test_data: Returns the test examples the server measures on. Both must return the same at
            every call, since each process of a run makes its own.
        loss: One of `fedkit.tasks.losses`, torch's own of the same name, or a function (outputs,
            targets) -> scalar tensor, the mean over the batch, with which devices train on torch.
        metric: One of `fedkit.tasks.metrics`, or a function (outputs, targets) -> number; numpy
            in, so that the exported artifact is measured by the same. A plain function is shown
            under its own name, a `Metric` says how. What the loss ignores, accuracy does too.
        raw_input: What the inputs are made of, sound, pixels or series: artifacts say so and take
            files, and C makes them itself.

    Raises:
        TaskError: An attribute is of another kind.
    """

    name: str
    model: Callable[[], nn.Module] | str
    train_data: Callable[[], Examples]
    test_data: Callable[[], Examples]
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    metric: Callable[[NDArray[np.generic], NDArray[np.int64]], float] = accuracy
    raw_input: RawInput | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TaskError(f"the name of a task is {self.name!r}; it must be some text")
        made = hasattr(self.model, "state_dict") and not isinstance(self.model, type)
        if not isinstance(self.model, str) and (made or not callable(self.model)):
            raise TaskError(
                f"the model of task {self.name!r} is an object of class "
                f"{type(self.model).__name__}; it must be a function that makes a fresh one "
                "(model=lambda: ...), or a name of the zoo"
            )
        if self.raw_input is not None and not isinstance(self.raw_input, RawInput):
            raise TaskError(
                f"raw_input of task {self.name!r} is a {type(self.raw_input).__name__}; it must be "
                "a raw input of fedkit.preprocess, as pixels.Pixels or audio.Audio, or None"
            )
        for part in ("train_data", "test_data", "loss", "metric"):
            value = getattr(self, part)
            if not callable(value) or isinstance(value, type):
                kind = value if isinstance(value, type) else type(value)
                found = f"{'class' if kind is value else 'object of class'} {kind.__name__}"
                raise TaskError(
                    f"{part} of task {self.name!r} is the {found}; it must be a function or an "
                    "object that can be called like one"
                )

    @property
    def measure(self) -> Metric:
        """The metric with its name and format."""
        if isinstance(self.metric, Metric):
            return self.metric
        if self.metric is accuracy and self.ignored is not None:
            return _shown(metrics.Accuracy(self.ignored))
        if isinstance(self.metric, metrics.Measure):
            return ACCURACY if self.metric == accuracy else _shown(self.metric)
        name = getattr(self.metric, "__name__", "<lambda>").replace("_", " ").strip()
        return Metric(self.metric, "metric" if name == "<lambda>" else name or "metric")

    @property
    def known_loss(self) -> losses.Loss | None:
        """The loss as one that all engines have; None where it is the user's own."""
        return losses.known(self.loss)

    @property
    def ignored(self) -> int | None:
        """The class index that the loss leaves out, or else accuracy, if there is one."""
        for reader in (self.known_loss, self.metric):
            if isinstance(reader, (losses.CrossEntropy, metrics.Accuracy)):
                return reader.ignore_index
        return None

    @property
    def guarded_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss; what a user's own raises is a `TaskError`."""
        if (known := self.known_loss) is not None:
            return known

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            with theirs(f"the loss of task {self.name!r}", TaskError):
                return self.loss(outputs, targets)

        return loss

    @property
    def classifies(self) -> bool:
        """Whether loss or metric read the targets as class indices."""
        known = self.known_loss
        return (known is not None and known.classifies) or isinstance(
            self.measure.measure, metrics.Accuracy
        )

    def examples(self, which: Literal["train", "test"]) -> Examples:
        """Return the training or the test examples.

        Raises:
            TaskError: The task's function fails, or returns something else.
        """
        what = f"{which}_data of task {self.name!r}"
        with theirs(what, TaskError):
            made: object = self.train_data() if which == "train" else self.test_data()
        if not isinstance(made, Examples):
            raise TaskError(
                f"{what} returned a {type(made).__name__}; it must return fedkit.Examples"
            )
        return made

    def build_model(self, seed: int, override: str = "") -> nn.Module:
        """Build the model with weights drawn from `seed`; the global generator is untouched.

        Args:
            seed: Seed of torch's generator while the factory runs.
            override: Name of a zoo model to use instead of the task's own.

        Raises:
            TaskError: The factory fails, or returns no module; or a zoo model is asked for, and
                the task has no targets for what it returns.
        """
        from torch import nn

        from fedkit.nn.zoo import build_model, seeded

        model = override or self.model
        if isinstance(model, str):
            shape, outputs = self.examples("test").inputs.shape[1:], self._outputs(model)
            return seeded(lambda: build_model(model, shape, outputs), seed)
        with theirs(f"the model of task {self.name!r}", TaskError):
            made: object = seeded(model, seed)
        if not isinstance(made, nn.Module):
            raise TaskError(
                f"the model of task {self.name!r} returned a {type(made).__name__}; it must return "
                "a torch.nn.Module"
            )
        return made

    def _outputs(self, model: str) -> int:
        """Return how many classes a zoo model must tell apart, or how many inputs to return."""
        from fedkit.nn.zoo import MODELS

        test = self.examples("test")
        returns = MODELS[model].returns if model in MODELS else "logits"
        shape = self._output_shape(test.targets)
        fits, what = {
            "logits": (len(shape) == 1, "has an output per class"),
            "logits of pixels": (
                shape[1:] == test.inputs.shape[2:] != (),
                "has an output per class of each pixel",
            ),
            "logits of steps": (
                shape[1:] == test.inputs.shape[1:] != (),
                "has an output per class of each step",
            ),
            "its inputs": (shape == test.inputs.shape[1:], "returns its inputs"),
        }[returns]
        if not fits or len(test) == 0:
            raise TaskError(
                f"model {model!r} {what}, and the targets of task {self.name!r} are "
                f"{describe(test.targets)}; give the task a model of its own"
            )
        if model in MODELS and MODELS[model].takes == "tokens":  # some may never be a target
            every = (self.examples(part).inputs[:] for part in ("train", "test"))
            return max(shape[0], 1 + max(int(inputs.max(initial=0)) for inputs in every))
        return shape[0]

    def _output_shape(self, targets: NDArray[Any]) -> tuple[int, ...]:
        """Return the shape of an example's outputs that its targets ask for; () if none does.

        Where the loss is the user's own, whole numbers are taken for classes.
        """
        if (known := self.known_loss) is not None:
            return known.outputs_for(targets)
        is_whole = targets.dtype == np.int64
        return cross_entropy.outputs_for(targets) if is_whole else targets.shape[1:]


def _shown(measure: metrics.Measure) -> Metric:
    return Metric(measure, measure.name, measure.higher_is_better, measure.form)
