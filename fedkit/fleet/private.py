"""Files of a fleet are its owner's alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedkit.core.errors import FleetError

OTHERS = 0o077
"""What other accounts may not do with anything of a fleet."""


@contextmanager
def private_files() -> Iterator[None]:
    """Give what this process makes in the block to its owner alone, whatever code writes it."""
    before = os.umask(OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def make_private(folder: Path) -> None:
    """Take a folder, and what is in it, away from other accounts; links are left as they are.

    Raises:
        FleetError: Something there is another account's.
    """
    try:
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink() and (mode := path.stat().st_mode) & OTHERS:
                path.chmod(mode & ~OTHERS & 0o7777)
    except OSError as error:
        raise FleetError(
            f"{error.filename or folder} cannot be made private ({error.strerror}); its folder "
            "must belong to this account with all that is in it"
        ) from error
