"""Files that are there whole or not at all, and reading of what may be anything."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def write_atomic(path: Path, data: bytes, mode: int = 0o666) -> None:
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


MOST_BYTES = 1 << 31
"""Bytes of a model at most: the formats of models count no further."""


def read_whole(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a regular file that a person named; a pipe, a device or a giant ends in an error.

    Args:
        path: The file.
        most: Bytes it may hold at most.

    Raises:
        OSError: It is missing, cannot be read, is not a regular file, or holds more.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "the name holds a NUL character")
    # Without O_NONBLOCK a pipe that nobody writes to would wait for ever.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if found.st_size > most:
            raise OSError(
                errno.EFBIG, f"it holds {found.st_size:,} bytes, and the limit is {most:,}"
            )
        return file.read(most + 1)


def remove_partial(folder: Path) -> None:
    """Remove what `write_atomic` left in a folder, and below, when its process was killed.

    Args:
        folder: One that no process writes into now.
    """
    for path in folder.rglob(".*.tmp"):
        if path.is_file():
            path.unlink(missing_ok=True)
