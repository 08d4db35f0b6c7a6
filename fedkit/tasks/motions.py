"""BasicMotions: what a smart watch measures of four activities, from the wheel of a package.

The data set (of the UEA archive) holds 40 training and 40 test recordings of ten seconds: three
axes of an accelerometer and three of a gyroscope, ten times a second, of people who stand, walk,
run or play badminton. It does not say who they were, so devices cannot be people here; a folder in
the form of UCI-HAR, which does, is read by `fedkit.tasks.har`.

The data is looked for in this order, and nothing of a package is imported:

1. `$FEDKIT_DATA/BasicMotions`, or `data/BasicMotions` where the variable is not set;
2. the installed packages aeon and sktime, whose wheels hold it. `pip install --no-deps aeon` puts
   it there without the packages that these depend on.

A recording is cut into windows of five seconds, one second apart. Inputs are the numbers as they
were measured; the model begins with a norm, whose scales devices find together, so that what is
exported takes raw numbers.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import DataError
from fedkit.preprocess.columns import CsvColumns
from fedkit.preprocess.columns import windows as windows
from fedkit.tasks.data_folder import data_folder
from fedkit.tasks.task import Examples, Task

if TYPE_CHECKING:
    from torch import nn

STEPS, HOP = 50, 10
"""Of a window, and from one to the next."""

ACTIVITIES = ("Badminton", "Running", "Standing", "Walking")
"""Classes, in order."""

_NAME = "BasicMotions"
_PACKAGES = ("aeon", "sktime")
_INSTALL = "pip install --no-deps aeon"
SIGNALS = tuple(f"{what}_{axis}" for what in ("acceleration", "rotation") for axis in "xyz")
"""CsvColumns of a .csv file that an artifact takes, in the order of the data set."""

_SIGNALS = len(SIGNALS)


def train_data() -> Examples:
    """Return the windows of the training recordings, float32 [240, 6, 50]."""
    return _load("TRAIN")


def test_data() -> Examples:
    """Return those of the test recordings."""
    return _load("TEST")


def model() -> nn.Module:
    """Return `har-cnn` behind a norm of the signals."""
    return _normed("har-cnn")


def recurrent_model() -> nn.Module:
    """Return `har-gru` behind such a norm."""
    return _normed("har-gru")


def _normed(name: str) -> nn.Module:
    from torch import nn

    from fedkit.nn.zoo import build_model

    shape = (_SIGNALS, STEPS)
    return nn.Sequential(nn.BatchNorm1d(_SIGNALS), build_model(name, shape, len(ACTIVITIES)))


@functools.cache
def _load(split: Literal["TRAIN", "TEST"]) -> Examples:
    path = _folder() / f"{_NAME}_{split}.ts"
    series, names = read_ts(path)
    if series.shape[1] != _SIGNALS or series.shape[2] < STEPS or set(names) - set(ACTIVITIES):
        raise DataError(
            f"{path} holds series of {series.shape[1]} signals and {series.shape[2]} steps of "
            f"{', '.join(sorted(set(names)))[:200]}; {_NAME} has {_SIGNALS} signals of "
            f"{', '.join(ACTIVITIES)}: install it again, {_INSTALL}"
        )
    cut = windows(series, STEPS, HOP)
    labels = np.array([ACTIVITIES.index(name) for name in names])
    recordings = np.repeat(np.arange(len(series)), len(cut) // len(series))
    return Examples(cut, labels[recordings], columns={"recording": recordings})


def read_ts(path: Path) -> tuple[NDArray[np.float32], list[str]]:
    """Read a file of the UEA archive: lines that begin with @ or #, then a series per line.

    Returns:
        float32 [n, signals, length], and the class of each.

    Raises:
        DataError: It cannot be read, or its series are not numbers, or not of one length.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); {_INSTALL}") from error
    rows = [(n, line.split(":")) for n, line in enumerate(lines, 1) if line and line[0] not in "@#"]
    shape: tuple[int, ...] = ()
    series, names = [], []
    for number, (*signals, name) in rows:
        try:
            found = np.array([signal.split(",") for signal in signals], np.float32)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}; its signals must be numbers, all of "
                            "one length") from error  # fmt: skip
        shape = shape or found.shape
        if found.shape != shape or found.ndim != 2 or not np.isfinite(found).all():
            raise DataError(
                f"{path}, line {number} has signals of {found.shape}, the first line of {shape}; "
                "all must be alike, and finite"
            )
        series.append(found)
        names.append(name.strip())
    if not series:
        raise DataError(f"{path} holds no series; {_INSTALL}")
    return np.stack(series), names


def _folder() -> Path:
    own = data_folder(_NAME)
    if own.is_dir():
        return own
    for package in _PACKAGES:
        found = find_spec(package)
        for place in (found.submodule_search_locations or ()) if found else ():
            folder = Path(place) / "datasets" / "data" / _NAME
            if folder.is_dir():
                return folder
    raise DataError(
        f"{_NAME} is neither in {own} nor in the packages {' and '.join(_PACKAGES)}; get it with: "
        f"{_INSTALL}"
    )


RAW = CsvColumns(SIGNALS, STEPS, HOP, classes=ACTIVITIES)
"""What an artifact takes; numbers go in as they were measured."""

TASK = Task("motions", model, train_data, test_data, raw_input=RAW)
"""The task `motions`."""

GRU = Task("motions-gru", recurrent_model, train_data, test_data, raw_input=RAW)
"""The task `motions-gru`: the same windows for a recurrent network."""
