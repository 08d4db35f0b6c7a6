from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden import regenerate


def test_golden_vectors_are_what_the_code_gives() -> None:
    assert regenerate.outdated() == []


def test_an_altered_and_a_stray_file_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regenerate, "FOLDER", tmp_path)
    assert regenerate.outdated() == ["numerics.json"]
    assert regenerate.main() == 0
    assert regenerate.outdated() == []
    (tmp_path / "numerics.json").write_text("[]\n")
    (tmp_path / "stray.json").write_text("[]\n")
    monkeypatch.setattr("sys.argv", ["regenerate", "--check"])
    assert regenerate.main() == 1
    assert regenerate.outdated() == ["numerics.json", "stray.json"]
