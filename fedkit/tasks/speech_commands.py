"""Speech Commands from a folder of the user: a folder per word, in it a second of sound per file.

The data set (Warden, 2018) is not part of this project and is not downloaded. Its archive, and its
hub, hold `WORD/SPEAKER_nohash_N.wav`, 16,000 samples a second, and `testing_list.txt` and
`validation_list.txt`, which name the files that are not for training. Recordings of one's own can
be put into the same form.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import DataError
from fedkit.preprocess.audio import Audio
from fedkit.preprocess.log_mel import LogMel
from fedkit.preprocess.wav import check_wav, read_wav
from fedkit.tasks.keywords import WORDS
from fedkit.tasks.lazy_array import Items, as_array
from fedkit.tasks.task import Examples, Task

FRAMES = 49

_LISTS = {"test": "testing_list.txt", "validation": "validation_list.txt"}
_FORM = "a folder with a folder per word, and testing_list.txt beside them"

Split = Literal["train", "validation", "test"]


def task(
    folder: Path | str,
    words: Sequence[str] = WORDS,
    model: str = "ds-cnn",
    front_end: LogMel | None = None,
) -> Task:
    """Return the task of a folder, to be named as `--task my_module:TASK`.

    Owners are speakers, so that the partition `natural-id` gives each device one person.

    Args:
        folder: The folder; it is read when examples are asked for.
        words: Which of its folders are the classes, in their order.
        model: Name of a zoo model.
        front_end: By default windows of 30 ms, 20 ms apart, in 40 channels.
    """
    where = Path(folder)
    audio = Audio(front_end or LogMel(), FRAMES, tuple(words))
    return Task(
        "speech-commands",
        model,
        functools.partial(load, where, "train", audio),
        functools.partial(load, where, "test", audio),
        raw_input=audio,
    )


def load(folder: Path, split: Split, audio: Audio) -> Examples:
    """Return the examples of one part of a folder; sounds are read when a batch needs them.

    Args:
        folder: The folder.
        split: What no list names is for training.
        audio: How sounds become inputs; its classes are words.

    Raises:
        DataError: A word has no folder or no files, or a file cannot be read or is of another kind.
    """
    elsewhere = {part: _listed(folder, name) for part, name in _LISTS.items()}
    files, words = [], []
    for number, word in enumerate(audio.classes):
        found = sorted((folder / word).glob("*.wav"))
        if not found:
            raise DataError(f"{folder / word} holds no file *.wav; give {_FORM}")
        own = [path for path in found if _split(f"{word}/{path.name}", elsewhere) == split]
        files += own
        words += [number] * len(own)
    if not files:
        raise DataError(f"{folder} holds nothing for {split}; give {_FORM}")
    for path in files:
        check_wav(path, audio.front_end.rate)

    def item(index: int) -> NDArray[np.float32]:
        sound = read_wav(files[index], audio.front_end.rate, audio.samples)
        return np.asarray(audio.inputs(audio.levels(sound)[None])[0])

    rows = Items(len(files), item, str(folder), lambda index: str(files[index]))
    speakers = np.array([path.name.partition("_")[0] for path in files])
    return Examples(as_array(rows), np.array(words), speakers)


def _listed(folder: Path, name: str) -> frozenset[str]:
    path = folder / name
    try:
        return frozenset(path.read_text(encoding="utf-8").split())
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; give {_FORM}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); give {_FORM}") from error


def _split(name: str, elsewhere: dict[str, frozenset[str]]) -> str:
    return next((part for part, names in elsewhere.items() if name in names), "train")
