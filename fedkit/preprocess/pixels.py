"""What a model of pictures takes: pixels as files have them, and how they become its inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import ConfigError, DataError
from fedkit.preprocess.raw_input import RawInput, check_names

_MODES = {1: "L", 3: "RGB"}
"""Channels -> what PIL calls pictures of so many bytes a pixel."""

_FORMATS = ("PNG", "PPM")
"""Of files, as PIL calls them: .png, and .pgm and .ppm, which lose nothing."""

_MOST = 4096
"""Rows or columns."""


@dataclass(frozen=True)
class Pixels(RawInput):
    """The raw input of a model that sees: uint8 [height, width, channels].

    The model's input is (pixel - mean) / deviation as float32 [channels, height, width]. Where
    `mean` is a whole number, and all channels share mean and deviation, an artifact's int8 input is
    the pixel less 128: the normalisation is in the scale and zero point of the first layer, padding
    included, and costs nothing. Else it is the nearest integer, half a step from the pixel at most,
    and C has a table of 256 for each channel.

    Attributes:
        channels: 1, or 3 for red, green, blue.
        mean: The pixel that becomes 0, from 0 to 255; a number, or one for each channel.
        deviation: Pixels that become 1, above 0; 255 makes inputs of 0 to 1. A float, or one for
            each channel.

    Raises:
        ConfigError: A size, the mean, the deviation or a class's name is none.
    """

    height: int
    width: int
    channels: int = 1
    mean: float | tuple[float, ...] = 0
    deviation: float | tuple[float, ...] = 255.0
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = (self.height, self.width)
        if any(type(each) is not int or not 1 <= each <= _MOST for each in sizes):
            raise ConfigError(f"pictures are of {sizes!r:.60}; sizes are 1 to {_MOST}")
        if type(self.channels) is not int or self.channels not in _MODES:
            raise ConfigError(f"channels is {self.channels!r:.60}; pictures have 1 or 3")
        self._check("mean", _is_mean, "a number of 0 to 255, as pixels are")
        self._check("deviation", _is_deviation, "a float of 0.001 to 1,000,000")
        check_names(self.classes)

    def _check(self, name: str, is_one: Callable[[object], bool], what: str) -> None:
        given = getattr(self, name)
        each = given if isinstance(given, tuple) else (given,)
        if len(each) != (self.channels if isinstance(given, tuple) else 1) or not all(
            map(is_one, each)
        ):
            raise ConfigError(
                f"{name} is {given!r:.60}; it must be {what}, or a tuple of {self.channels} such, "
                "one for each channel"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return (self.channels, self.height, self.width)

    @property
    def span(self) -> tuple[float, float]:
        """What pixels of 0 and of 255 become."""
        means, deviations = (
            given if isinstance(given, tuple) else (given,) * self.channels
            for given in (self.mean, self.deviation)
        )
        lows, highs = (
            [(pixel - mean) / over for mean, over in zip(means, deviations, strict=True)]
            for pixel in (0, 255)
        )
        return min(lows), max(highs)

    def inputs(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return a model's inputs, float32 [n, c, h, w], of pixels uint8 [n, h, w, c]."""
        mean, deviation = (
            np.array(given, np.float32).reshape(-1, 1, 1) for given in (self.mean, self.deviation)
        )
        centred = pixels.transpose(0, 3, 1, 2).astype(np.float32) - mean
        return np.ascontiguousarray(centred / deviation)

    def read(self, path: Path | str) -> NDArray[np.float32]:
        """Return the input that a .png, .pgm or .ppm file is, float32 [1, c, h, w].

        Raises:
            DataError: It cannot be read, or is of another size, depth or number of channels; names
                the file.
        """
        return self.inputs(self._pixels(Path(path))[None])

    def _pixels(self, path: Path) -> NDArray[np.uint8]:
        from PIL import Image

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # of a picture so large that it may be an attack
                with path.open("rb") as file, Image.open(file, formats=_FORMATS) as picture:
                    self._check_kind(path, picture.size, picture.mode)
                    found = np.array(picture, np.uint8)
        except DataError:
            raise
        except OSError as error:
            reason = error.strerror or str(error).partition("<")[0].strip() or "it is damaged"
            raise DataError(
                f"{path} cannot be read as a picture ({reason}); give a .png, .pgm or .ppm file"
            ) from error
        except Exception as error:  # PIL raises many kinds on what is damaged
            raise DataError(
                f"{path} cannot be read as a picture ({type(error).__name__}: {error}); give a "
                ".png, .pgm or .ppm file"
            ) from error
        return found.reshape(self.height, self.width, self.channels)

    def _check_kind(self, path: Path, size: tuple[int, int], mode: str) -> None:
        if size != (self.width, self.height):
            raise DataError(
                f"{path} has {size[0]} x {size[1]} pixels, and the model takes {self.width} x "
                f"{self.height}; scale or crop it as the training data were"
            )
        if mode != _MODES[self.channels]:
            raise DataError(
                f"{path} has pixels of kind {mode!r}, and the model takes {_MODES[self.channels]!r}"
                f" ({self.channels} channel(s) of 8 bits); convert it"
            )

    # Records

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        sizes = {"height": self.height, "width": self.width, "channels": self.channels}
        how = {
            name: list(given) if isinstance(given, tuple) else given
            for name, given in (("mean", self.mean), ("deviation", self.deviation))
        }
        return {"kind": "pixels", **sizes, **how, "classes": list(self.classes)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Pixels:
        """Return the raw input of a record.

        Raises:
            ConfigError: It describes none that is known here.
        """
        fields: dict[str, Any] = {
            key: tuple(value) if type(value) is list else value
            for key, value in record.items()
            if key != "kind"
        }
        try:
            if type(fields["classes"]) is not tuple:
                raise ConfigError("classes is no list")
            return cls(**fields)
        except (KeyError, TypeError, ConfigError) as error:
            raise ConfigError(f"{record!r:.100} is not a raw input known here ({error})") from error


def _is_mean(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 255  # type: ignore[operator]  # NaN is not


def _is_deviation(value: object) -> bool:
    return type(value) is float and 1e-3 <= value <= 1e6
