"""An artifact is written whole, never overwritten, and checked when it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge import artifact
from edge.artifact import Artifact, Port
from fedkit.core.errors import ExportError

PORT = Port("x", "int8", (1, 2), 0.5, -3)


def save(path: Path, content: bytes = b"weights", **provenance: object) -> Artifact:
    return artifact.save(
        content,
        path,
        target="test",
        inputs=[PORT],
        outputs=[PORT],
        provenance=provenance,
        details={"rounding": {}},
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = save(tmp_path / "new" / "model.bin", seed=3, rounds=[1, 2])
    assert artifact.load(saved.path) == saved
    assert (saved.size, saved.provenance["seed"], saved.inputs) == (7, 3, (PORT,))
    assert "numpy" in saved.versions
    assert {p.name for p in saved.path.parent.iterdir()} == {"model.bin", "model.bin.json"}


@pytest.mark.parametrize("taken", ["model.bin", "model.bin.json"])
def test_nothing_is_overwritten(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_bytes(b"precious")
    with pytest.raises(ExportError, match=rf"{taken} exists already.*choose another path"):
        save(tmp_path / "model.bin")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"precious"]


@pytest.mark.parametrize("content", [b"weight", b"weightz", b""])
def test_a_changed_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = save(tmp_path / "model.bin").path
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"not the file its manifest describes.*7 bytes"):
        artifact.load(path)


@pytest.mark.parametrize("lost", ["model.bin", "model.bin.json"])
def test_a_missing_half_is_named(tmp_path: Path, lost: str) -> None:
    path = save(tmp_path / "model.bin").path
    (tmp_path / lost).unlink()
    with pytest.raises(
        ExportError, match=rf"cannot read the (artifact|manifest) .*{lost}: No such"
    ):
        artifact.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"target": 1}', "\xff"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    path = save(tmp_path / "model.bin").path
    artifact.manifest_path(path).write_bytes(text.encode("latin-1"))
    with pytest.raises(ExportError, match="is damaged"):
        artifact.load(path)


def test_provenance_that_is_not_json_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be written as JSON"):
        save(tmp_path / "model.bin", model=object())
    assert list(tmp_path.iterdir()) == []
