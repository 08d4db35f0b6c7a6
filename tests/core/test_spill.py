"""A table larger than memory, against one that is not."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkit.core.side_by_side import side_by_side
from fedkit.core.spill import Packing, Spill

PACKING = Packing[bytes](len, lambda thing: b"packed" + thing, lambda data: data[6:])


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@settings(max_examples=50)
@given(st.integers(0, 60), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30))))
def test_what_was_put_last_is_there(most: int, puts: list[tuple[int, int]]) -> None:
    table, naive = Spill(PACKING, most), dict[int, bytes]()
    for place, (number, size) in enumerate(puts):
        thing = bytes([place % 256]) * size
        table.put(number, thing)
        naive[number] = thing
        assert table._bytes == sum(map(len, table._held.values()))
        assert table._bytes <= most or len(table._held) == 1
        assert [table.get(n) for n in range(6)] == [naive.get(n) for n in range(6)]


def test_files_are_made_when_memory_is_short_and_gone_with_the_table(temporary: Path) -> None:
    table = Spill(PACKING, 100)
    for number in range(4):
        table.put(number, bytes([number]) * 25)
    assert not list(temporary.iterdir())
    assert table.get(0) == bytes([0]) * 25  # The second is now the one that was not used longest.
    table.put(4, b"x" * 10)
    (folder,) = temporary.iterdir()
    assert [path.name for path in folder.iterdir()] == ["1"]
    assert (folder / "1").read_bytes() == b"packed" + bytes([1]) * 25
    del table
    assert not list(temporary.iterdir())


def test_threads_may_share_it() -> None:
    table, draws = Spill(PACKING, 50), random.Random(1)

    def work(number: int) -> bool:
        for count in range(20):
            table.put(number, bytes([number, count]) * 10)
            assert table.get(number) == bytes([number, count]) * 10
            assert len(table.get(draws.randrange(40)) or b"") in (0, 20)
        return True

    assert all(side_by_side([work] * 4, range(40)))
