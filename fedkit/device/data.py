"""The data of one real device: read from a file or a function, and checked before any training."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from fedkit.core.errors import ConfigError, DataError, TaskError
from fedkit.core.lookup import find
from fedkit.engine.plan.structure import stored_shape
from fedkit.tasks import sources
from fedkit.tasks.lazy_array import pieces
from fedkit.tasks.losses import Loss
from fedkit.tasks.task import Examples

_NPY: Any = np.lib.format  # Public, but untyped in numpy 1.
_DENSEST = 1032  # Deflate packs no more bytes than that into one.

ARRAYS = ("inputs", "targets")
"""Names of the arrays that a data file holds."""


def load_examples(source: str) -> Examples:
    """Read a device's examples.

    Args:
        source: Path of an .npz file with `inputs` [n, ...] and `targets` [n, ...] of the kinds
            that `Examples` holds; of a folder with `inputs.npy` and `targets.npy`, whose inputs
            are read when a batch needs them, for data that memory cannot hold; or
            `module:function`, where the function takes nothing and returns `Examples`.

    Raises:
        DataError: Nothing is found there, or it does not hold such examples.
    """
    if source.endswith(".npz"):
        return _checked(source, _converted(source, *_read_file(Path(source))))
    if Path(source).is_dir():
        found = sources.stored(source)
        return _checked(source, _converted(source, found.inputs, found.targets))
    if ":" in source:
        return _checked(source, _call(source))
    raise DataError(
        f"device data {source!r} is neither a path to an .npz, nor a folder with inputs.npy and "
        "targets.npy, nor module:function"
    )


@dataclass(frozen=True)
class Expected:
    """What the devices of a run hold, as its server knows it from the data it measures on.

    Attributes:
        task: Name of the run's task.
        shape: Of one input.
        scale: Root mean square of all inputs.
        plan: SHA-256 of the plan of the run's model; "" where devices need none.
    """

    task: str
    shape: tuple[int, ...]
    scale: float
    plan: str = ""

    @classmethod
    def of(cls, task: str, test: Examples, plan: str = "") -> Expected:
        """Return what devices must hold, given what the server measures on."""
        shape = tuple(map(int, test.inputs.shape[1:]))
        return cls(task, shape, float(f"{_scale(test.inputs):.4g}"), plan)

    def text(self) -> str:
        """Write it as JSON, for a run's configuration."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Expected:
        """Invert `text`.

        Raises:
            ConfigError: It is not such a text.
        """
        try:
            values = json.loads(text)
            shape = tuple(map(int, values.pop("shape")))
            scale = float(values.pop("scale"))
            return cls(str(values.pop("task")), shape, scale, str(values.pop("plan")))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ConfigError(
                f"expected of the run config is {text[:80]!r}; fedkit fleet run writes it, and it "
                "was altered or comes from another version"
            ) from error

    def check(self, examples: Examples) -> None:
        """Refuse data that is not like the run's task.

        Raises:
            DataError: Says what differs.
        """
        found, scale = examples.inputs.shape[1:], _scale(examples.inputs)
        if math.prod(found) != math.prod(self.shape) or _squeezed(found) != _squeezed(self.shape):
            raise DataError(
                f"this device's inputs have shape {found}, those of task {self.task} have "
                f"{self.shape}; bring data of that task, or run the fleet on the task of this data"
            )
        if self.scale > 0 and not self.scale / _APART <= scale <= self.scale * _APART:
            raise DataError(
                f"this device's inputs have a root mean square of {scale:.3g}, those of task "
                f"{self.task} of {self.scale:.3g}; more than {_APART} times apart they are not in "
                "one unit: scale them as the task does"
            )

    def check_plan(self, digest: str) -> None:
        """Refuse a plan that is not that of the run's model.

        Raises:
            DataError: It is another.
        """
        if self.plan and digest != self.plan:
            raise DataError(
                f"this device's plan has SHA-256 {digest[:16]}..., that of the run's model has "
                f"{self.plan[:16]}...; copy the server's model.plan into the device's folder"
            )


_APART = 10.0
"""How many times larger or smaller than the task's a device's inputs may be: odd devices are less,
another unit (0 .. 255 for 0 .. 1) is more."""


def _scale(inputs: NDArray[Any]) -> float:
    total = sum(float(np.square(part, dtype=np.float64).sum()) for _, part in pieces(inputs))
    return math.sqrt(total / max(1, inputs.size))


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without ones at its end: a line of numbers is a plane of 1 x 1."""
    whole = tuple(shape)
    while whole[1:] and whole[-1] == 1:
        whole = whole[:-1]
    return whole


def _read_file(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, NpzFile):
                raise ValueError("it holds one array without a name")
            _check_claims(path)
            missing = [name for name in ARRAYS if name not in arrays]
            if missing:
                raise DataError(
                    f"device data {path} lacks {' and '.join(missing)}; it holds "
                    f"{sorted(arrays)}: save it with numpy.savez(path, inputs=..., targets=...)"
                )
            return arrays["inputs"], arrays["targets"]
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile evaluate headers, which fails in many ways
        raise DataError(
            f"device data {path} cannot be read ({error}); it must be an .npz on this device, "
            "without pickled objects, and a relative path starts where the SuperNode was started"
        ) from error


def _check_claims(path: Path) -> None:
    """Refuse arrays that claim more bytes than they hold; numpy would take memory for them first.

    Raises:
        ValueError: One does, or is of objects.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.removesuffix(".npy") not in ARRAYS:
                continue
            with archive.open(entry) as file:
                version = _NPY.read_magic(file)
                read = (
                    _NPY.read_array_header_1_0
                    if version == (1, 0)
                    else (_NPY.read_array_header_2_0)
                )
                shape, _, dtype = read(file)
                claimed, held = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
            if dtype.hasobject:
                raise ValueError(f"{entry.filename} holds pickled objects")
            if claimed != held:
                raise ValueError(
                    f"{entry.filename} claims {shape} of {dtype}, {claimed} bytes, and holds {held}"
                )
            if held > _DENSEST * path.stat().st_size:
                raise ValueError(f"{entry.filename} claims {held} bytes, which no such file holds")


def _call(source: str) -> Examples:
    try:
        function = find(source)
    except ImportError as error:
        raise DataError(
            f"device data {source!r}: the module cannot be imported ({error}); start the SuperNode "
            "in the folder that holds it, or install it"
        ) from error
    if not callable(function):
        raise DataError(f"device data {source!r} is a {type(function).__name__}, no function")
    try:
        made = function()
    except Exception as error:
        raise DataError(
            f"device data {source!r} raised {type(error).__name__}: {error}; call it by itself on "
            "this device to see where"
        ) from error
    if not isinstance(made, Examples):
        raise DataError(
            f"device data {source!r} returned a {type(made).__name__}; it must return "
            "fedkit.tasks.task.Examples"
        )
    return made


def _converted(source: str, inputs: NDArray[Any], targets: NDArray[Any]) -> Examples:
    for name, array, others in (
        ("inputs", inputs, "float32 (or int64, for tokens)"),
        ("targets", targets, "int64 (or float32, where they are not classes)"),
    ):
        if array.dtype not in (np.float32, np.int64):
            raise DataError(
                f"device data {source}: {name} are {array.dtype}, they must be {others}; convert "
                "them with astype"
            )
    try:
        return Examples(inputs, targets)
    except TaskError as error:
        raise DataError(f"device data {source}: {error}") from error


def _checked(source: str, examples: Examples) -> Examples:
    inputs, targets = examples.inputs, examples.targets
    if inputs.ndim < 2 or targets.ndim < 1:
        raise DataError(
            f"device data {source}: inputs have shape {inputs.shape} and targets "
            f"{targets.shape}; they must be [n, ...] and [n] or more"
        )
    return examples


def check_trainable(
    examples: Examples,
    input_shape: Sequence[int],
    loss: Loss | None,
    outputs: tuple[int, ...],
    single_class: str,
) -> None:
    """Refuse examples that a model cannot be trained on.

    Args:
        examples: The device's data.
        input_shape: (channels, height, width) of one input that the model takes; where height and
            width are 1, inputs may be [n, channels] too, and where the height is, [n, channels,
            width].
        loss: What reads the targets; None for one of the user's own.
        outputs: Shape of the model's outputs for one example.
        single_class: "error" refuses a device that holds one class only; see `RunConfig`.

    Raises:
        DataError: Says what does not fit.
    """
    if stored_shape(examples.inputs.shape[1:]) != stored_shape(tuple(input_shape)):
        raise DataError(
            f"this device's inputs have shape {examples.inputs.shape[1:]}, the plan's model takes "
            f"{tuple(input_shape)}; bring data of that shape, or a plan made for this data"
        )
    if len(examples) < 2:
        raise DataError(
            f"this device holds {len(examples)} examples; norm layers need at least 2 to train on"
        )
    if loss is None:
        return
    if problem := loss.targets_problem(outputs, examples.targets):
        raise DataError(f"this device's {problem}; bring data that the run's model learns from")
    if loss.share(examples.targets) == 0:
        raise DataError(
            f"none of this device's {len(examples)} targets counts in loss {loss.kind}; bring data "
            "with targets that it does not ignore"
        )
    if loss.classifies and len(outputs) == 1 and single_class == "error":
        _check_classes(examples)


def _check_classes(examples: Examples) -> None:
    if len(classes := examples.classes) == 1:
        raise DataError(
            f"this device holds examples of class {classes[0]} only; it needs at least two "
            "classes, or set single_class to allow"
        )
