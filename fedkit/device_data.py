"""The data of one real device: read from a file or a function, and checked before any training."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from fedkit.errors import DataError, TaskError
from fedkit.lookup import find
from fedkit.task import Examples, describe

ARRAYS = ("inputs", "targets")
"""Names of the arrays that a data file holds."""


def load_examples(source: str) -> Examples:
    """Read a device's examples.

    Args:
        source: Path of an .npz file with `inputs` [n, ...] and `targets` [n, ...] of the kinds
            that `Examples` holds, or `module:function`, where the function takes nothing and
            returns `Examples`.

    Raises:
        DataError: Nothing is found there, or it does not hold such examples.
    """
    if source.endswith(".npz"):
        return _checked(source, *_read_file(Path(source)))
    if ":" in source:
        made = _call(source)
        return _checked(source, made.inputs, made.targets)
    raise DataError(f"device data {source!r} is neither a path to an .npz nor module:function")


def _read_file(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, NpzFile):
                raise ValueError("it holds one array without a name")
            missing = [name for name in ARRAYS if name not in arrays]
            if missing:
                raise DataError(
                    f"device data {path} lacks {' and '.join(missing)}; it holds "
                    f"{sorted(arrays)}: save it with numpy.savez(path, inputs=..., targets=...)"
                )
            return arrays["inputs"], arrays["targets"]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"device data {path} cannot be read ({error}); it must be an .npz on this device, "
            "without pickled objects, and a relative path starts where the SuperNode was started"
        ) from error


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
    made = function()
    if not isinstance(made, Examples):
        raise DataError(
            f"device data {source!r} returned a {type(made).__name__}; it must return "
            "fedkit.task.Examples"
        )
    return made


def _checked(source: str, inputs: NDArray[Any], targets: NDArray[Any]) -> Examples:
    for name, array, others in (
        ("inputs", inputs, "float32 (or int64, for tokens)"),
        ("targets", targets, "int64 (or float32, where they are no classes)"),
    ):
        if array.dtype not in (np.float32, np.int64):
            raise DataError(
                f"device data {source}: {name} are {array.dtype}, they must be {others}; convert "
                "them with astype"
            )
    if inputs.ndim < 2 or targets.ndim < 1:
        raise DataError(
            f"device data {source}: inputs have shape {inputs.shape} and targets "
            f"{targets.shape}; they must be [n, ...] and [n] or more"
        )
    try:
        return Examples(inputs, targets)
    except TaskError as error:
        raise DataError(f"device data {source}: {error}") from error


def check_trainable(
    examples: Examples, input_shape: Sequence[int], classes: int | None, single_class: str
) -> None:
    """Refuse examples that a model cannot be trained on.

    Args:
        examples: The device's data.
        input_shape: (channels, height, width) of one input that the model takes; where height and
            width are 1, inputs may be [n, channels] too.
        classes: Number of the model's outputs; None where targets are no classes.
        single_class: "error" refuses a device that holds one class only; see `RunConfig`.

    Raises:
        DataError: Says what does not fit.
    """
    flat = (input_shape[0],) if tuple(input_shape[1:]) == (1, 1) else tuple(input_shape)
    if examples.inputs.shape[1:] not in (tuple(input_shape), flat):
        raise DataError(
            f"this device's inputs have shape {examples.inputs.shape[1:]}, the plan's model takes "
            f"{tuple(input_shape)}; bring data of that shape, or a plan made for this data"
        )
    if len(examples) < 2:
        raise DataError(
            f"this device holds {len(examples)} examples; norm layers need at least 2 to train on"
        )
    if classes is not None:
        _check_classes(examples, classes, single_class)


def _check_classes(examples: Examples, classes: int, single_class: str) -> None:
    if not examples.labelled:
        raise DataError(
            f"this device's targets are {describe(examples.targets)}, and the run learns classes; "
            "they must be int64 [n], a class index each"
        )
    lowest, highest = int(examples.targets.min()), int(examples.targets.max())
    if lowest < 0 or highest >= classes:
        raise DataError(
            f"this device's targets go from {lowest} to {highest}, but the plan's model has "
            f"{classes} outputs; targets must be in 0 .. {classes - 1}"
        )
    if single_class == "error" and lowest == highest:
        raise DataError(
            f"this device holds examples of class {lowest} only; it needs at least two classes, "
            "or set single_class to allow"
        )
