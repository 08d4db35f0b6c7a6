"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file under a temporary name, flush it to disk and rename it into place.

    Args:
        path: Where the file is to be; one that is there is replaced.
        data: All of it.
        mode: Who may read and write it, less the umask; 0o600 keeps it to its owner.

    Raises:
        OSError: It cannot be written; nothing new is left behind, and an old file stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb"
        ) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_halves(folder: Path) -> None:
    """Remove what `write_whole` left in a folder, and below, when its process was killed.

    Args:
        folder: One that no process writes into now.
    """
    for path in folder.rglob(".*.tmp"):
        if path.is_file():
            path.unlink(missing_ok=True)
