"""Arrays whose rows are read when they are needed, for data that memory cannot hold.

A `LazyArray` has the shape and dtype of an array and gives rows as one does, `array[indices]` and
`array[start:stop]`. Nothing of what was read is kept, so memory is bounded by what is asked for at
once: a batch, in training. `numpy.asarray` reads all of it.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fedkit.core.errors import DataError
from fedkit.core.lookup import theirs

Indices = NDArray[np.int64]

_PIECE = 1 << 20
"""Values that are read at once where all rows are wanted in turn."""

_LONGEST = 1 << 48
"""No axis is as long; numpy would end in errors of its own."""

_NPY: Any = np.lib.format  # Public, but untyped in numpy 1.


class LazyArray(ABC):
    """Rows of numbers that are read when they are asked for.

    Attributes:
        shape: (n, ...), as of an array.
        dtype: Of the rows.
        name: What the rows are, to begin an error with.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    name: str

    @abstractmethod
    def read(self, rows: Indices) -> NDArray[Any]:
        """Return rows in the order asked for, a new array [m, ...].

        Args:
            rows: int64 [m], each in 0 .. n - 1.

        Raises:
            DataError: A row cannot be read, or is not what it was said to be; names it.
        """

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Return what an array gives for the key; rows that the key leaves out are not read."""
        first, *rest = key if isinstance(key, tuple) else (key,)
        rows = _positions(first, len(self))
        found = self.read(rows.reshape(-1)).reshape(*rows.shape, *self.shape[1:])
        return found[(*[slice(None)] * rows.ndim, *rest)] if rest else found

    def min(self) -> Any:
        """Return the smallest value."""
        return min(part.min() for _, part in pieces(as_array(self)))

    def max(self) -> Any:
        """Return the largest value."""
        return max(part.max() for _, part in pieces(as_array(self)))

    def __array__(self, dtype: DTypeLike = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def take(self, rows: Indices) -> LazyArray:
        """Return some rows (int64 [m]), in that order; nothing is read."""
        return _Taken(self, rows)

    def map(self, function: Callable[[NDArray[Any]], ArrayLike]) -> LazyArray:
        """Return what a function makes of the rows, whenever they are read.

        Args:
            function: Takes rows [m, ...] and returns [m, ...]: a row of the result for each, of
                the same shape and dtype for all, which the first row shows.

        Raises:
            DataError: It fails for the first row, or returns something else.
        """
        return _Mapped(self, function)


class _Taken(LazyArray):
    def __init__(self, source: LazyArray, rows: Indices) -> None:
        self._source: LazyArray = source
        self._rows = _positions(rows, len(source))
        self.shape, self.dtype = (len(self._rows), *source.shape[1:]), source.dtype
        self.name = source.name

    def read(self, rows: Indices) -> NDArray[Any]:
        return self._source.read(self._rows[rows])

    def take(self, rows: Indices) -> LazyArray:
        """See `LazyArray.take`; what was taken before is not taken again."""
        return _Taken(self._source, self._rows[rows])


class _Held(LazyArray):
    """An array in memory."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array, self.shape, self.dtype = array, array.shape, array.dtype
        self.name = "an array"

    def read(self, rows: Indices) -> NDArray[Any]:
        return np.asarray(self._array[rows])


class _Mapped(LazyArray):
    def __init__(self, source: LazyArray, function: Callable[[NDArray[Any]], ArrayLike]) -> None:
        self._source, self._function, self.name = source, function, source.name
        if len(source) == 0:
            raise DataError(
                f"{source.name} has no rows, so there is nothing to apply a function to"
            )
        first = self._made(np.zeros(1, np.int64))
        self.shape, self.dtype = (len(source), *first.shape[1:]), first.dtype

    def read(self, rows: Indices) -> NDArray[Any]:
        if len(rows) == 0:
            return np.empty((0, *self.shape[1:]), self.dtype)
        made = self._made(rows)
        if made.shape[1:] != self.shape[1:] or made.dtype != self.dtype:
            raise DataError(
                f"{self.name}: what is made of rows {_some(rows)} is {made.dtype} "
                f"{made.shape[1:]}, and of the first row {self.dtype} {self.shape[1:]}; all must "
                "be alike"
            )
        return made

    def _made(self, rows: Indices) -> NDArray[Any]:
        with theirs(f"the function over {self.name}, given rows {_some(rows)},", DataError):
            made = np.asarray(self._function(self._source.read(rows)))
        if made.shape[:1] != rows.shape:
            raise DataError(
                f"{self.name}: the function made {made.shape} of {len(rows)} rows; it must keep "
                "the first axis"
            )
        return made


class Items(LazyArray):
    """Rows that are made one by one: of files, or of a data set that is indexed by number."""

    def __init__(
        self,
        count: int,
        item: Callable[[int], ArrayLike],
        name: str,
        title: Callable[[int], str] = "item {}".format,
    ) -> None:
        """Take what makes a row.

        Args:
            count: Number of rows, one or more.
            item: Returns the row of an index, the same at each call; all have the shape and dtype
                of row 0.
            name: What the rows are, for errors.
            title: What the row of an index is called in errors, such as its file.

        Raises:
            DataError: There is no row, or the first cannot be made.
        """
        self.name, self._item, self._title = name, item, title
        self._alone = threading.Lock()
        if count < 1:
            raise DataError(f"{name} holds no items; at least one is needed")
        first = self._row(0)
        self.shape, self.dtype = (count, *first.shape), first.dtype

    def read(self, rows: Indices) -> NDArray[Any]:
        """See `LazyArray.read`."""
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for place, index in enumerate(rows.tolist()):
            row = self._row(index)
            if row.shape != self.shape[1:] or row.dtype != self.dtype:
                raise DataError(
                    f"{self.name}: {self._title(index)} is {row.dtype} {row.shape}, and "
                    f"{self._title(0)} is {self.dtype} {self.shape[1:]}; all must be alike: "
                    "resize, cut or pad them"
                )
            found[place] = row
        return found

    def _row(self, index: int) -> NDArray[Any]:
        # A data set of somebody else's may not stand being read by several threads at once.
        with self._alone, theirs(f"{self.name}: reading {self._title(index)}", DataError):
            return np.asarray(self._item(index))


class StoredArray(LazyArray):
    """The rows of an .npy file, which `numpy.save` and `numpy.lib.format.open_memmap` write.

    Rows are read from the file, not mapped: a page that was looked at once takes no memory, and a
    file that was cut is an error and no signal.
    """

    def __init__(self, path: Path | str) -> None:
        """Open a file.

        Args:
            path: The file; rows first, in C order, of numbers.

        Raises:
            DataError: It cannot be read, is not an .npy file, or is shorter than it says.
        """
        self._path, self.name = Path(path), str(path)
        self._open()
        self.shape, self.dtype, self._start = self._header()
        self._row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        claimed, held = self.shape[0] * self._row_bytes, self._path.stat().st_size - self._start
        if claimed != held:
            raise DataError(
                f"{path} says it holds {self.shape} of {self.dtype}, {claimed:,} bytes, and holds "
                f"{max(held, 0):,}; write it again"
            )

    def read(self, rows: Indices) -> NDArray[Any]:
        """See `LazyArray.read`."""
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if found.size == 0:
            return found
        whole = found.reshape(len(rows), -1).view(np.uint8)
        # Rows that follow each other in the file are one read.
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            self._fill(whole[start:stop].reshape(-1), int(rows[start]))
        return found

    def _fill(self, place: NDArray[np.uint8], row: int) -> None:
        view, offset = memoryview(place.data), self._start + row * self._row_bytes
        while view:
            count = os.preadv(self._file, [view], offset)
            if count == 0:
                raise DataError(
                    f"{self._path} ends before row {row}; it was made shorter while it was in "
                    "use: write it again"
                )
            view, offset = view[count:], offset + count

    def _open(self) -> None:
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise DataError(f"{str(self._path)!r} cannot be opened ({error})") from error
        weakref.finalize(self, os.close, self._file)

    def _header(self) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        try:
            with open(self._file, "rb", buffering=0, closefd=False) as file:
                version = _NPY.read_magic(file)
                read = {(1, 0): _NPY.read_array_header_1_0, (2, 0): _NPY.read_array_header_2_0}
                shape, fortran, dtype = read[version](file)
                start = file.tell()
        except Exception as error:  # numpy evaluates headers, which fails in many ways
            raise DataError(
                f"{self._path} is not an .npy file that can be read ({type(error).__name__}: "
                f"{str(error)[:100]}); write it with numpy.save"
            ) from error
        if fortran and len(shape) > 1:
            raise DataError(
                f"{self._path} is stored column by column; write it with "
                "numpy.save(path, numpy.ascontiguousarray(array))"
            )
        sizes = all(0 <= size < _LONGEST for size in shape)
        if not shape or not sizes or dtype.kind not in "fiub":
            raise DataError(
                f"{self._path} holds {dtype} of shape {shape}; it must hold rows of numbers"
            )
        return shape, dtype, start

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def as_array(lazy: LazyArray) -> NDArray[Any]:
    """Return a lazy array for a type checker that asks for an array: it does what is asked of one.

    A union of both in every signature between a task and the kernels would say less.
    """
    return cast("NDArray[Any]", lazy)


def pieces(array: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield all rows in turn, a few at a time, each with the number of its first row."""
    rows = max(1, _PIECE // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), rows):
        yield start, array[start : start + rows]


def is_lazy(array: object) -> bool:
    """Whether rows of an array are read when they are asked for."""
    return isinstance(array, LazyArray)


def loaded(array: NDArray[Any], rows: Indices) -> tuple[NDArray[Any], Indices]:
    """Return an array in memory and where in it the rows (int64 [m]) of another are.

    That is the array itself, or of a lazy one those rows alone.
    """
    if isinstance(array, LazyArray):
        return array[rows], np.arange(len(rows), dtype=np.int64)
    return array, rows


def taken(array: NDArray[Any], rows: Indices) -> NDArray[Any]:
    """Return some rows (int64 [m]) of an array, in that order; of a lazy one, nothing is read."""
    return as_array(array.take(rows)) if isinstance(array, LazyArray) else array[rows]


def view(array: NDArray[Any], rows: Indices) -> NDArray[Any]:
    """Return some rows (int64 [m]) of an array, in that order, as a lazy one: nothing is copied."""
    source = array if isinstance(array, LazyArray) else _Held(array)
    return as_array(source.take(rows))


def _positions(key: Any, count: int) -> Indices:
    """Return which of `count` rows an index along the first axis picks, each from 0."""
    if isinstance(key, slice):
        return np.arange(*key.indices(count), dtype=np.int64)
    rows = np.asarray(key)
    if rows.dtype.kind not in "iu":  # truth values, None
        return np.asarray(np.arange(count, dtype=np.int64)[key])
    if rows.size and (rows.min() < -count or rows.max() >= count):
        raise IndexError(f"rows {rows.min()} to {rows.max()} are asked of {count}")
    return np.where(rows < 0, rows + count, rows).astype(np.int64)


def _some(rows: Indices) -> str:
    few = ", ".join(map(str, rows[:3]))
    return few if len(rows) <= 3 else f"{few}, ..."
