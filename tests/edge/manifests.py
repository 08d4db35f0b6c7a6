"""Manifests that others could have written: altered, and signed again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from edge import artifact


def sign(path: Path, fields: dict[str, Any]) -> None:
    """Write a manifest whose own digest is right, whatever it says."""
    fields = {name: value for name, value in fields.items() if name != artifact._OWN_DIGEST}
    path.write_text(json.dumps({**fields, artifact._OWN_DIGEST: artifact._digest(fields)}))


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def sign_folder(folder: Path, **changes: Any) -> None:
    """Make the manifest of a folder describe it as it is now."""
    path = artifact.manifest_path(folder)
    fields = {**read(path), **changes}
    files = {name: (folder / name).read_bytes() for name in fields["files"]}
    digest = hashlib.sha256(artifact._joined(files)).hexdigest()
    sign(path, {**fields, "sha256": digest, "size": sum(map(len, files.values()))})
