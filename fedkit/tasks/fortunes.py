"""Fortunes: short texts by topic, to tell the next character of; a device is a topic.

The texts are looked for in this order:

1. `$FEDKIT_DATA/fortunes`, or `data/fortunes` where the variable is not set: a text file a topic;
2. the folder of the Debian package fortunes.

The last tenth of each topic is the test set. Texts are of people, and some are rude.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from fedkit.core.errors import DataError
from fedkit.core.files import read_whole
from fedkit.tasks import losses, metrics
from fedkit.tasks.data_folder import data_folder
from fedkit.tasks.task import Examples, Task
from fedkit.tasks.text import TOKENS, windows

if TYPE_CHECKING:
    from torch import nn

LENGTH = 64
"""Characters of an example."""

DEBIAN_FOLDER = Path("/usr/share/games/fortunes")

_TEST_SHARE = 0.1
_NO_TEXT = {".dat", ".u8"}
"""Indices, and second names of what is there already."""

_MOST_BYTES = 2**24


def train_data() -> Examples:
    """Return the windows of the first nine tenths of each topic, int64 [n, 64]."""
    return windows(_texts(), LENGTH, _TEST_SHARE, test=False)


def test_data() -> Examples:
    """Return those of the last tenth."""
    return windows(_texts(), LENGTH, _TEST_SHARE, test=True)


def model() -> nn.Module:
    """Return `char-gpt` for all characters, whichever of them a test set has."""
    from fedkit.nn.zoo import build_model

    return build_model("char-gpt", (LENGTH,), TOKENS)


@functools.cache
def _texts() -> dict[str, str]:
    own = data_folder("fortunes")
    for folder in (own, DEBIAN_FOLDER):
        if folder.is_dir():
            return read_topics(folder)
    raise DataError(
        f"there is no {own} and no {DEBIAN_FOLDER}; put text files, one a topic, into the first "
        "(FEDKIT_DATA sets its parent), or install the Debian package fortunes"
    )


def read_topics(folder: Path) -> dict[str, str]:
    """Read the text files of a folder.

    Returns:
        Name of a topic -> its text, in the order of the names.

    Raises:
        DataError: There is no file, or one cannot be read, is no text in UTF-8 or above 16 MiB.
    """
    found = sorted(
        path for path in folder.iterdir() if path.is_file() and path.suffix not in _NO_TEXT
    )
    if not found:
        raise DataError(f"{folder} holds no text files; there must be one for each topic")
    return {path.stem: _read(path) for path in found}


def _read(path: Path) -> str:
    try:
        return read_whole(path, _MOST_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as text in UTF-8: {error}") from error


TASK = Task("fortunes", model, train_data, test_data, losses.CrossEntropy(), metrics.Perplexity())
"""The task `fortunes`; its metric is the perplexity of a character."""
