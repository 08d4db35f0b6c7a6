"""Human activity recognition from a folder of the user, in the format of UCI-HAR.

The data set (Anguita et al., 2013) is not part of this project and is not downloaded. Its archive
holds a folder `UCI HAR Dataset`, whose `train` and `test` hold `y_train.txt` (a class from 1 on per
line), `subject_train.txt` (who wore the phone) and `Inertial Signals`: a file per signal, a line
per window of 128 steps. Recordings of one's own can be put into the same form, with other signals,
lengths and activities.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import DataError
from fedkit.tasks.task import Examples, Task

SIGNALS = "Inertial Signals"
"""Folder of the files of signals, each named `SIGNAL_SPLIT.txt`; in order of names, channels."""

_FORM = "a folder like `UCI HAR Dataset`, with train and test in it"


def task(folder: Path | str, model: str = "har-cnn") -> Task:
    """Return the task of a folder, to be named as `--task my_module:TASK`.

    Inputs are float32 [n, signals, steps] as they are recorded, targets the classes less 1, owners
    the persons, so that the partition `natural-id` gives each device one person.

    Args:
        folder: The folder; it is read when examples are asked for.
        model: Name of a zoo model.
    """
    where = Path(folder)
    return Task(
        "har",
        model,
        functools.partial(load, where, "train"),
        functools.partial(load, where, "test"),
    )


def load(folder: Path, split: Literal["train", "test"]) -> Examples:
    """Read the examples of one part of a folder.

    Raises:
        DataError: A file is missing, holds no numbers, or fits the others in no way.
    """
    of_split = folder / split
    signals = sorted((of_split / SIGNALS).glob(f"*_{split}.txt"))
    if not signals:
        raise DataError(f"{of_split / SIGNALS} holds no file *_{split}.txt; give {_FORM}")
    series = [_numbers(path) for path in signals]
    for path, found in zip(signals, series, strict=True):
        if found.shape != series[0].shape:
            raise DataError(
                f"{path} holds {found.shape[0]} lines of {found.shape[1]} steps, "
                f"{signals[0].name} {series[0].shape[0]} of {series[0].shape[1]}; every signal "
                "must have as many"
            )
    windows = len(series[0])
    labels = of_split / f"y_{split}.txt"
    activities = _whole(labels, windows)
    if activities.min() < 1:
        raise DataError(f"{labels} holds the class {activities.min()}; classes count from 1")
    persons = _whole(of_split / f"subject_{split}.txt", windows)
    inputs = np.stack(series, axis=1).astype(np.float32)
    return Examples(inputs, activities - 1, persons)


def _numbers(path: Path) -> NDArray[np.float64]:
    """Return the numbers of a file, [lines, numbers of each]."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about an empty file, which is told below
            found: NDArray[Any] = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read: {reason}; give {_FORM}") from error
    if not found.size:
        raise DataError(f"{path} is empty; give {_FORM}")
    return found


def _whole(path: Path, lines: int) -> NDArray[np.int64]:
    """Return the whole numbers of a file, one per window."""
    found = _numbers(path)
    if found.shape != (lines, 1) or not (found == np.round(found)).all():
        raise DataError(
            f"{path} holds {found.shape[0]} lines of {found.shape[1]} numbers; there must be one "
            f"whole number for each of {lines} windows"
        )
    return found[:, 0].astype(np.int64)
