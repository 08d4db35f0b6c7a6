"""What a model of sound takes: samples, and how they become its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import ConfigError, DataError
from fedkit.preprocess.log_mel import LogMel
from fedkit.preprocess.raw_input import RawInput, check_names
from fedkit.preprocess.wav import read_wav

SCALE = 32.0
"""Levels that are 1.0 of a model's input."""

_MOST_FRAMES = 10_000


@dataclass(frozen=True)
class Audio(RawInput):
    """The raw input of a model that listens: int16 samples, one channel.

    The model's input is the levels of some frames in a row divided by `SCALE`, the oldest first:
    float32 [1, frames, channels], an image of one channel, or as a series [channels, frames].

    Attributes:
        front_end: Makes levels of samples.
        frames: That the model takes at a time.
        classes: What its outputs are called, in their order; () where they have no names.
        is_series: Whether the channels of the front end are those of the input.

    Raises:
        ConfigError: Frames are not 1 to 10,000, or names are empty, too long or of several lines.
    """

    front_end: LogMel
    frames: int
    classes: tuple[str, ...] = ()
    is_series: bool = False

    def __post_init__(self) -> None:
        if type(self.frames) is not int or not 1 <= self.frames <= _MOST_FRAMES:
            raise ConfigError(f"frames is {self.frames!r}; it must be 1 to {_MOST_FRAMES:,}")
        check_names(self.classes)

    @property
    def samples(self) -> int:
        """How many samples one input is made of."""
        return self.front_end.length(self.frames)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        channels = self.front_end.channels
        return (channels, self.frames) if self.is_series else (1, self.frames, channels)

    def levels(self, sound: NDArray[np.int16]) -> NDArray[np.int8]:
        """Return int8 [frames, channels] of a sound [n], cut off or filled up with silence."""
        whole = np.zeros(self.samples, sound.dtype)
        heard = sound[: self.samples]
        whole[: len(heard)] = heard
        return self.front_end.levels(whole)

    def inputs(self, levels: NDArray[np.int8]) -> NDArray[np.float32]:
        """Return a model's inputs, float32 [n, ...], of levels int8 [n, frames, channels]."""
        ordered = levels.transpose(0, 2, 1) if self.is_series else levels[:, None]
        return np.ascontiguousarray(ordered, np.float32) / np.float32(SCALE)

    def read(self, path: Path | str) -> NDArray[np.float32]:
        """Return the input that a .wav file is, float32 [1, ...].

        Raises:
            DataError: It cannot be read, is empty, or of another rate or kind; names the file.
        """
        sound = read_wav(path, self.front_end.rate, self.samples)
        return self.inputs(self.levels(sound)[None])

    # Records

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {
            "kind": "audio",
            "front_end": {"name": "log-mel", **self.front_end.to_json()},
            "frames": self.frames,
            "classes": list(self.classes),
            "is_series": self.is_series,
            "scale": SCALE,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Audio:
        """Return the raw input of a record.

        Raises:
            ConfigError: It describes none that is known here.
        """
        try:
            front_end = dict(record["front_end"])
            kind = record["kind"], front_end.pop("name"), record["scale"]
            is_known = type(record["is_series"]) is bool and type(record["classes"]) is list
            if kind != ("audio", "log-mel", SCALE) or not is_known:
                raise ConfigError(f"it is of kind {kind!r:.100}")
            made = LogMel.from_json(front_end)
            return cls(made, record["frames"], tuple(record["classes"]), record["is_series"])
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise ConfigError(f"{record!r:.100} is not a raw input known here ({error})") from error


def samples_of(floats: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return the int16 samples that `fedkit.tasks.sources.wav_folder` gives as floats.

    Raises:
        DataError: They are not such samples.
    """
    codes = np.asarray(floats, np.float32) * np.float32(2**15)
    if not (np.isfinite(codes).all() and (codes == np.rint(codes)).all()):
        raise DataError("samples are not multiples of 2^-15; give them as sources.wav_folder does")
    if codes.size and not -(2**15) <= codes.min() <= codes.max() < 2**15:
        raise DataError(f"samples reach {np.abs(floats).max():.3g}; they must be -1 to below 1")
    return codes.astype(np.int16)
