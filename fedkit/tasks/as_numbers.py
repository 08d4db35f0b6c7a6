"""What a user gives as inputs or targets, made into numbers that everything here computes with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import TaskError
from fedkit.core.lookup import reason
from fedkit.tasks.lazy_array import Indices, LazyArray, as_array, pieces


def numbers(name: str, given: object) -> NDArray[Any]:
    """Return a C-contiguous float32 or int64 [n, ...] array; `given` itself where it is one.

    Args:
        name: "inputs" or "targets"; truth values are classes, but no inputs of an embedding.
        given: Whatever numpy reads as an array of numbers; rows of a `LazyArray` become such
            numbers when they are read.

    Raises:
        TaskError: It holds no numbers, or some that are NaN or infinite as float32.
    """
    if isinstance(given, LazyArray):
        return as_array(given if isinstance(given, _Numbers) else _Numbers(name, given))
    array = array_of(name, given)
    return _converted(name, array, _dtype(name, array.dtype))


class _Numbers(LazyArray):
    """Rows of another array as `numbers` makes them."""

    def __init__(self, kind: str, source: LazyArray) -> None:
        self._kind, self._source, self.name = kind, source, source.name
        self.shape, self.dtype = source.shape, _dtype(kind, source.dtype)

    def read(self, rows: Indices) -> NDArray[Any]:
        return _converted(self._kind, self._source.read(rows), self.dtype, self.name, rows)


def _dtype(name: str, given: np.dtype[Any]) -> np.dtype[Any]:
    """Return what numbers of a dtype become: int64 of whole ones, float32 of others."""
    if given.kind not in "fiub":
        raise TaskError(f"{name} are {given}, {_HOW_TO_NUMBER.get(given.kind, _NO_NUMBERS)}")
    whole = given.kind in ("iub" if name == "targets" else "iu")
    return np.dtype(np.int64 if whole else np.float32)


def _converted(
    name: str,
    array: NDArray[Any],
    dtype: np.dtype[Any],
    source: str = "examples",
    rows: Indices | None = None,
) -> NDArray[Any]:
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise TaskError(f"{name} hold {array.max()}, which int64 cannot; make them float32")
    with np.errstate(over="ignore"):
        made = np.ascontiguousarray(array, dtype)
    for start, part in pieces(made) if dtype.kind == "f" else ():
        finite = np.isfinite(part)
        if not finite.all():
            place = start + int((~finite).reshape(len(part), -1).any(1).argmax())
            raise TaskError(
                f"{source} hold NaN or infinite {name}, or values that float32 cannot hold, the "
                f"first in example {place if rows is None else rows[place]}; clean the data set "
                "first"
            )
    return made


_NO_NUMBERS = "they must be real numbers"
_HOW_TO_NUMBER = {
    "O": "Python objects of different kinds or lengths; they must be one array of numbers",
    **dict.fromkeys("US", "which is text; number it, as numpy.unique(x, return_inverse=True) does"),
}
"""What to say of arrays that hold no numbers, by numpy's kind of their dtype."""


def _is_masked(given: object) -> bool:
    """Whether what is given is masked in places. numpy 2 imports `np.ma` once it is named."""
    return isinstance(given, np.ma.MaskedArray) and bool(np.any(given.mask))


def array_of(name: str, given: object) -> NDArray[Any]:
    """Return what is given as an array [n, ...] of the plain numpy class."""
    try:
        array = np.asarray(given)
    except Exception as error:  # numpy's own, and those of whatever else can be an array
        raise TaskError(f"{name} cannot be read as a numpy array ({reason(error)})") from error
    if array.ndim == 0:
        raise TaskError(
            f"{name} are a {type(given).__name__}; they must be an array with one row per example"
        )
    if type(given) is not np.ndarray and _is_masked(given):
        raise TaskError(f"{name} are masked in places; fill or leave out what is missing first")
    return array
