"""Sound from .wav files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import DataError

if TYPE_CHECKING:  # imported where there is a file: devices with other data hold what they import
    import wave


def check_wav(path: Path | str, rate: int) -> int:
    """Look at the header of a file; return how many samples it has.

    Raises:
        DataError: It cannot be read, is empty, or is not PCM of 16 bits, one channel and that rate.
    """
    with _opened(path) as sound:
        found = sound.getframerate(), sound.getsampwidth() * 8, sound.getnchannels()
        count = int(sound.getnframes())
    if found != (rate, 16, 1):
        raise DataError(
            f"{path} has {found[0]} samples a second of {found[1]} bits in {found[2]} channel(s); "
            f"all must have {rate} of 16 bits in 1: convert it, or leave it out"
        )
    if count <= 0:
        raise DataError(f"{path} holds no samples; record it again, or leave it out")
    return count


def read_wav(path: Path | str, rate: int, most: int) -> NDArray[np.int16]:
    """Return the first samples of a file, at most `most` of them, int16 [n].

    Raises:
        DataError: As of `check_wav`; or the file is shorter than it says.
    """
    wanted = min(check_wav(path, rate), most)
    with _opened(path) as sound:
        found = sound.readframes(wanted)
    if len(found) != 2 * wanted:
        raise DataError(f"{path} ends after {len(found) // 2} of {wanted} samples; record it again")
    return np.frombuffer(found, "<i2").astype(np.int16)


def write_wav(path: Path | str, samples: NDArray[np.int16], rate: int) -> None:
    """Write int16 [n] as a file of one channel."""
    import wave

    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(samples.astype("<i2").tobytes())


@contextmanager
def _opened(path: Path | str) -> Iterator[wave.Wave_read]:
    import wave

    try:
        with wave.open(str(path), "rb") as sound:
            yield sound
    except (OSError, EOFError, wave.Error, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it ends too early"
        raise DataError(
            f"{path} cannot be read as a .wav file of PCM: {reason}; convert it, or leave it out"
        ) from error
