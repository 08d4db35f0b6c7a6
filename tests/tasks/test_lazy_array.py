"""Arrays that are read row by row give what numpy's arrays give, or say what is wrong."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.core.errors import DataError, TaskError
from fedkit.core.side_by_side import side_by_side
from fedkit.tasks.lazy_array import Items, LazyArray, StoredArray, as_array, pieces, taken, view
from fedkit.tasks.task import Examples

VALUES = np.random.default_rng(0).integers(-99, 99, (37, 3, 2)) / 8
_SHIFTED = np.arange(37) - 1


def stored(folder: Path, values: NDArray[Any] = VALUES) -> StoredArray:
    np.save(folder / "x.npy", values)
    return StoredArray(folder / "x.npy")


KINDS: dict[str, Callable[[Path], LazyArray]] = {
    "stored": stored,
    "items": lambda _: Items(len(VALUES), lambda index: VALUES[index], "values"),
    "mapped": lambda folder: stored(folder, VALUES - 1).map(lambda rows: rows + 1),
    "taken": lambda folder: stored(folder, VALUES[::-1]).take(np.arange(37)[::-1]),
    "taken twice": lambda folder: stored(folder).take(np.arange(37) - 1).take(np.arange(37) - 36),
    "view": lambda _: cast(LazyArray, view(VALUES[::-1], np.arange(37)[::-1])),
    "view of a view": lambda _: cast(LazyArray, view(view(VALUES, _SHIFTED), np.arange(37) - 36)),
}

KEYS: list[Any] = [
    slice(None), slice(3, 9), slice(None, None, -2), slice(40, 50), slice(-3, None),
    np.array([5, 5, 0, -1]), np.array([], np.int64), [3, 4, 5, 6, 1], np.array([[1, 2], [30, 4]]),
    VALUES[:, 0, 0] > 0, 7, np.int64(-2),
    (slice(2, 5), 1), (slice(None), slice(None), 0), (slice(None), None), (np.array([2, 0]), 2, 1),
    (4, 1),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_rows_are_those_of_the_array(kind: str, key: Any, tmp_path: Path) -> None:
    lazy = KINDS[kind](tmp_path)
    if kind == "mapped" and np.size(VALUES[key]) == 0:
        key = slice(0, 0)
    np.testing.assert_array_equal(lazy[key], VALUES[key])
    assert lazy[key].shape == VALUES[key].shape


@pytest.mark.parametrize("kind", KINDS)
def test_a_lazy_array_looks_like_its_array(kind: str, tmp_path: Path) -> None:
    lazy = KINDS[kind](tmp_path)
    assert (len(lazy), lazy.shape, lazy.ndim, lazy.size) == (37, (37, 3, 2), 3, VALUES.size)
    assert lazy.dtype == VALUES.dtype
    np.testing.assert_array_equal(np.asarray(lazy), VALUES)
    np.testing.assert_array_equal([lazy.min(), lazy.max()], [VALUES.min(), VALUES.max()])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-37, 36)), st.lists(st.integers(-37, 36), min_size=1))
def test_rows_of_rows(tmp_path_factory: Any, first: list[int], second: list[int]) -> None:
    lazy = stored(tmp_path_factory.mktemp("rows")).take(np.array(second))
    picked = [index for index in first if -len(second) <= index < len(second)]
    rows = np.array(picked, np.int64)
    np.testing.assert_array_equal(lazy.take(rows)[:], VALUES[second][rows])


@pytest.mark.parametrize("row", [37, -38, 10**12])
def test_rows_beyond_the_end_are_refused(row: int, tmp_path: Path) -> None:
    for lazy in (stored(tmp_path), stored(tmp_path).take(np.arange(37))):
        with pytest.raises(IndexError, match="37"):
            lazy[np.array([row])]
        with pytest.raises(IndexError, match="37"):
            lazy.take(np.array([row]))


@pytest.mark.parametrize("dtype", ["u1", "i2", "<f2", ">f4", "f8", "?", "i8"])
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 0, 3), (0, 4), (3, 1, 1, 1)])
def test_files_of_all_kinds_of_numbers(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    lazy = stored(tmp_path, values)
    assert lazy.dtype == values.dtype
    np.testing.assert_array_equal(lazy[:], values)
    np.testing.assert_array_equal(lazy[::-1], values[::-1])


def test_large_headers_and_pickling(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, VALUES, version=(2, 0))
    lazy = pickle.loads(pickle.dumps(StoredArray(path).take(np.array([3]))))
    np.testing.assert_array_equal(lazy[:], VALUES[[3]])


def damaged(path: Path, how: str) -> None:
    whole = path.read_bytes()
    changed = {
        "cut": whole[:-1],
        "longer": whole + b"\0",
        "empty": b"",
        "other": b"PK" + whole[2:],
        "hostile": whole.replace(b"(37, 3, 2)", b"(open(1),)"),
        "huge": whole.replace(b"(37, 3, 2)", b"(9**9**9,)"),
        "negative": whole.replace(b"(37, 3, 2)", b"(-7, 3, 2)"),
        "objects": whole.replace(b"'<f8'", b"'|O8'"),
        "text": whole.replace(b"'<f8'", b"'<U2'"),
    }[how]
    path.write_bytes(changed)


@pytest.mark.parametrize(
    "how",
    ["cut", "longer", "empty", "other", "hostile", "huge", "negative", "objects", "text"],
)
def test_damaged_files_are_refused(how: str, tmp_path: Path) -> None:
    stored(tmp_path)
    damaged(tmp_path / "x.npy", how)
    with pytest.raises(DataError, match=r"x\.npy"):
        StoredArray(tmp_path / "x.npy")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "columns.npy", np.asfortranarray(np.ones((3, 4))))
    np.save(tmp_path / "number.npy", np.float32(3))
    for name, message in [
        ("columns.npy", "column by column"),
        ("number.npy", "rows of numbers"),
        ("missing.npy", "cannot be opened"),
        ("nul\0.npy", "cannot be opened"),
        (".", "not an .npy|cannot be opened"),
    ]:
        with pytest.raises(DataError, match=message):
            StoredArray(tmp_path / name)


def test_a_file_that_is_cut_while_in_use_is_an_error(tmp_path: Path) -> None:
    lazy = stored(tmp_path)
    with (tmp_path / "x.npy").open("r+b") as file:
        file.truncate(300)
    lazy[:2]
    with pytest.raises(DataError, match="ends before row"):
        lazy[30:]


def test_functions_that_do_not_keep_rows_are_refused(tmp_path: Path) -> None:
    lazy = stored(tmp_path)
    for function, message in [
        (lambda rows: rows.sum(), "first axis"),
        (lambda rows: rows.nothing, "AttributeError"),
    ]:
        with pytest.raises(DataError, match=message):
            lazy.map(function)
    with pytest.raises(DataError, match="no rows"):
        lazy.take(np.array([], np.int64)).map(lambda rows: rows)
    uneven = lazy.map(lambda rows: rows if len(rows) == 1 else rows[:, 0])
    with pytest.raises(DataError, match="must be alike"):
        uneven[:2]


def test_items_unlike_the_first_are_named() -> None:
    rows: list[Any] = [np.zeros(3), np.zeros(3), np.zeros(4), np.zeros(3, np.float32)]
    lazy = Items(4, rows.__getitem__, "rows", "file {}".format)
    assert lazy[:2].shape == (2, 3)
    for index in (2, 3):
        with pytest.raises(DataError, match=f"file {index} is"):
            lazy[[0, index]]
    rows.pop()
    with pytest.raises(DataError, match=r"reading file 3 failed with IndexError"):
        lazy[[3]]
    with pytest.raises(DataError, match="no items"):
        Items(0, rows.__getitem__, "rows")


def test_items_are_made_one_at_a_time() -> None:
    """Whatever threads read them: a data set of somebody else's may keep a place in a file."""
    busy: list[int] = []

    def item(index: int) -> NDArray[Any]:
        assert not busy
        busy.append(index)
        time.sleep(0.001)
        busy.remove(index)
        return np.full(2, index)

    lazy = Items(40, item, "items")
    shares = [lazy.take(np.arange(start, 40, 4)) for start in range(4)]
    found = side_by_side([lambda share: share[:]] * 4, shares)
    np.testing.assert_array_equal(np.sort(np.concatenate(found)[:, 0]), np.arange(40))


def test_pieces_are_all_rows_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedkit.tasks.lazy_array._PIECE", 13)
    found = list(pieces(VALUES))
    assert [start for start, _ in found] == list(range(0, 37, 2))
    np.testing.assert_array_equal(np.concatenate([part for _, part in found]), VALUES)
    assert list(pieces(VALUES[:0])) == []


# Examples


@pytest.mark.parametrize("dtype", ["u1", "i4", "<f8", ">f4", "?"])
def test_examples_convert_as_in_memory(dtype: str, tmp_path: Path) -> None:
    values = (VALUES * 9).astype(dtype)
    targets = np.arange(37) % 3
    whole, lazy = Examples(values, targets), Examples(as_array(stored(tmp_path, values)), targets)
    rows = np.array([3, 36, 0])
    for ours, theirs in ((lazy, whole), (lazy.take(rows), whole.take(rows))):
        assert ours.inputs.dtype == theirs.inputs.dtype
        np.testing.assert_array_equal(ours.inputs[:], theirs.inputs)
        np.testing.assert_array_equal(ours.targets, theirs.targets)
        assert len(ours) == len(theirs)


def test_a_row_that_is_no_number_is_named_when_it_is_read(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[20, 1, 1] = np.nan
    examples = Examples(as_array(stored(tmp_path, values)), np.arange(37))
    examples.inputs[:20]
    for rows in (np.array([20]), np.array([1, 20, 3])):
        with pytest.raises(TaskError, match=r"x\.npy hold NaN.* example 20"):
            examples.inputs[rows]
    with pytest.raises(TaskError, match="example 20"):
        Examples(values.astype(np.float32), np.arange(37))


def test_examples_of_another_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="37 inputs, 36 targets"):
        Examples(as_array(stored(tmp_path)), np.arange(36))


def test_taken_reads_nothing() -> None:
    def item(index: int) -> NDArray[Any]:
        if index:
            raise AssertionError(f"item {index} was read")
        return np.zeros(2)

    examples = Examples(as_array(Items(9, item, "items")), np.arange(9))
    assert len(examples.take(np.array([3, 4])).take(np.array([1]))) == 1
    assert taken(examples.inputs, np.array([8])).shape == (1, 2)


def test_a_view_is_what_is_taken_and_copies_nothing_before() -> None:
    given = Examples(np.zeros((9, 2), np.float32), np.arange(9), columns={"when": np.arange(9)})
    chosen = np.array([4, 3])
    seen, copied = given.view(chosen), given.take(chosen)
    given.inputs[:] = np.arange(18).reshape(9, 2)
    np.testing.assert_array_equal(seen.inputs[:], given.inputs[chosen])
    assert not copied.inputs.any()
    np.testing.assert_array_equal(seen.targets, copied.targets)
    np.testing.assert_array_equal(seen.columns["when"], copied.columns["when"])
