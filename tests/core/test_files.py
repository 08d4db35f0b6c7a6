from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedkit.core.files import remove_partial, write_atomic


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_a_secret_is_its_owners_from_the_first_byte(tmp_path: Path) -> None:
    write_atomic(tmp_path / "key", b"k", mode=0o600)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def _full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_halves_of_killed_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / ".folder.1.tmp").mkdir()
    halves = [tmp_path / ".a.json.1.tmp", tmp_path / "below" / ".b.2.tmp"]
    for path in (*halves, tmp_path / "a.json", tmp_path / "c.tmp", tmp_path / ".hidden"):
        path.write_text("x")
    remove_partial(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"below", ".folder.1.tmp", "a.json", "c.tmp", ".hidden"}
