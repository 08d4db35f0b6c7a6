"""What a model of series takes: columns of numbers, which are cut into windows."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import ConfigError, DataError
from fedkit.core.files import read_whole
from fedkit.core.text import short
from fedkit.preprocess.raw_input import RawInput, check_names

_MOST_STEPS = 100_000
_LARGEST = float(np.finfo(np.float32).max)
_MOST_BYTES = 2**28
"""Of a file."""


@dataclass(frozen=True)
class CsvColumns(RawInput):
    """The raw input of a model of series: columns of a .csv file, cut into windows.

    The model's input is (value - mean) / deviation of each column, float32 [columns, steps].

    Attributes:
        columns: Their names in the first line of a file, in the model's order; a file may have
            more.
        steps: Lines of a window.
        hop: Lines from the beginning of a window to that of the next.
        mean: Of each column, or () for 0.
        deviation: Of each column, above 0, or () for 1.

    Raises:
        ConfigError: A name, a number of lines, a mean or a deviation is none.
    """

    columns: tuple[str, ...]
    steps: int
    hop: int
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.columns or len(set(self.columns)) != len(self.columns):
            raise ConfigError(f"columns is {short(self.columns)}; give names, no two alike")
        check_names(self.columns, "a column")
        for name, value in (("steps", self.steps), ("hop", self.hop)):
            if type(value) is not int or not 1 <= value <= _MOST_STEPS:
                raise ConfigError(f"{name} is {short(value)}; it must be 1 to {_MOST_STEPS:,}")
        for name, values in (("mean", self.mean), ("deviation", self.deviation)):
            self._check_numbers(name, values)
        if any(np.float32(each) <= 0 for each in self.deviation):
            raise ConfigError(f"deviation is {short(self.deviation)}; each must be above 0")
        check_names(self.classes)

    def _check_numbers(self, name: str, values: tuple[float, ...]) -> None:
        sound = all(isinstance(each, float) and abs(each) <= _LARGEST for each in values)
        if not sound or len(values) not in (0, len(self.columns)):
            raise ConfigError(
                f"{name} is {short(values)}; give a float for each of {len(self.columns)} columns, "
                "or ()"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return (len(self.columns), self.steps)

    def inputs(self, lines: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the windows of a series as a model's inputs, float32 [n, columns, steps].

        Args:
            lines: float32 [lines, columns].

        Raises:
            DataError: It is shorter than a window.
        """
        scaled = lines
        with np.errstate(over="ignore"):  # infinities are the largest integers of an artifact
            if self.mean:
                scaled = scaled - np.array(self.mean, np.float32)
            if self.deviation:
                scaled = scaled / np.array(self.deviation, np.float32)
        return windows(scaled.T[None], self.steps, self.hop)

    def read(self, path: Path | str) -> NDArray[np.float32]:
        """Return the windows of a .csv file, float32 [n, columns, steps].

        Raises:
            DataError: It cannot be read, lacks a column, is shorter than a window, or a value is no
                finite number; names the file and the line.
        """
        path = Path(path)
        lines = list(self._lines(path))
        if len(lines) < self.steps:
            raise DataError(
                f"{path} has {len(lines)} lines of numbers; a window takes {self.steps}"
            )
        return self.inputs(np.array(lines, np.float32))

    def part(self, number: int) -> str:
        """Name the lines of a window, counted without the first line of the file."""
        return f"{number * self.hop + 1} to {number * self.hop + self.steps}"

    def _lines(self, path: Path) -> Iterator[list[float]]:
        try:
            text = read_whole(path, _MOST_BYTES).decode("utf-8-sig")
            lines = csv.reader(io.StringIO(text, newline=""), strict=True)
            heads = [head.strip() for head in next(lines, [])]
            places = self._places(path, heads)
            for line in lines:
                if line:
                    yield self._numbers(f"{path}, line {lines.line_num}", line, places, len(heads))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; give a .csv file") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} is no .csv file in UTF-8 ({error})") from error

    def _places(self, path: Path, heads: list[str]) -> list[int]:
        for name in self.columns:
            if heads.count(name) != 1:
                raise DataError(
                    f"{path} has {heads.count(name)} columns {name!r} in its first line, which is "
                    f"{short(heads, 200)}; the model takes one of each of {', '.join(self.columns)}"
                )
        return [heads.index(name) for name in self.columns]

    def _numbers(self, where: str, line: list[str], places: list[int], count: int) -> list[float]:
        if len(line) != count:
            raise DataError(f"{where} has {len(line)} values, and the first line names {count}")
        found = []
        for place, name in zip(places, self.columns, strict=True):
            try:
                value = float(line[place])
            except ValueError:
                value = math.nan
            if not abs(value) < 3e38:  # of float32; NaN too
                raise DataError(f"{where}: {name} is {short(line[place])}, no finite number")
            found.append(value)
        return found

    # Records

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        lists = {key: list(getattr(self, key)) for key in _LISTS}
        return {"kind": "columns", "steps": self.steps, "hop": self.hop, **lists}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> CsvColumns:
        """Return the raw input of a record.

        Raises:
            ConfigError: It describes none that is known here.
        """
        fields = {key: value for key, value in record.items() if key != "kind"}
        try:
            if any(type(fields[key]) is not list for key in _LISTS):
                raise ConfigError("a list is none")
            return cls(**{**fields, **{key: tuple(fields[key]) for key in _LISTS}})
        except (KeyError, TypeError, ConfigError) as error:
            raise ConfigError(f"{record!r:.100} is not a raw input known here ({error})") from error


_LISTS = ("columns", "mean", "deviation", "classes")


def windows(series: NDArray[np.float32], steps: int, hop: int) -> NDArray[np.float32]:
    """Cut series into windows.

    Args:
        series: float32 [n, signals, length].
        steps: Of a window, 1 to the length.
        hop: Steps from the beginning of a window to that of the next.

    Returns:
        float32 [n * windows, signals, steps], those of a series in a row; what is left behind the
        last whole window is left out.

    Raises:
        DataError: There is no window.
    """
    if not 1 <= steps <= series.shape[2] or hop < 1:
        raise DataError(
            f"steps is {steps} and hop {hop}; windows of series of {series.shape[2]} steps have 1 "
            "to as many, and begin at least 1 apart"
        )
    cut = np.lib.stride_tricks.sliding_window_view(series, steps, axis=2)[:, :, ::hop]
    return np.ascontiguousarray(cut.transpose(0, 2, 1, 3).reshape(-1, series.shape[1], steps))
