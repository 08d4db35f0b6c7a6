"""Log-mel features of sound in integers: the definition that C on a device equals to the last bit.

The form is that of TFLite Micro's audio front end (windows of 30 ms, a mel filter bank, a
logarithm), its arithmetic is another. For each window, with >> as floor(x / 2^n):

  x[k]         int16 samples, Hann window h[k] = round(2^15 sin^2(pi (k + 1/2) / window))
  y[k]         x[k] * h[k]; 0 behind the window                              |y| <= 2^30
  z            y, in the order of reversed bits. Stages 1, 2, .., log2(fft); at each, of all pairs
               a, b of complex numbers and the twiddle w = round(2^14 exp(-2 pi i j / fft)):
                 a' = (2^14 a + w b + 2^14) >> 15,  b' = (2^14 a - w b + 2^14) >> 15
               part by part. Each stage halves, so that z becomes the spectrum of y / fft.
  p[j]         (re z[j])^2 + (im z[j])^2 >> 12, j = 0 .. fft / 2
  e[c]         the sum of p[j] * t[c, j], of triangles t[c, j] = round(2^12 ..) over the mel scale
  q[c]         log2(e[c] + 1) in 8 bits behind the point: the bits of the logarithm by squaring a
               mantissa of 32 bits, cut off after each product
  level[c]     clamp(((q[c] + 16) >> 5) - 336, -128, 127)

So a level is an eighth of an octave of energy, 0.38 dB, and -128 .. 127 are 96 dB.

No sample overflows anything. |w| <= 2^14 (1 + 2^-14.5) as its parts are rounded, so a stage lets
the largest |z| grow by 1 + 2^-15.5 and a rounding of 1 at most: |z| < 1.01 * 2^30 after the 12
stages of the largest fft, which int32 holds, and what is shifted stays below 2^46, p below 2^49.
A halved spectrum has no more energy than its signal's mean, 2^60, but for the same roundings: the
p[j] sum up to less than 1.01 * 2^48, and e[c], with weights of at most 2^12, is below 2^61.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import ConfigError, DataError

Ints = NDArray[np.int64]

TWIDDLE_BITS, ENERGY_BITS, LOG_BITS, LEVEL_BITS = 14, 12, 8, 5
MIDDLE = 336
"""Level 0 as log2 of energy, in eighths."""

_WINDOW_BITS = 15
_LEAST_FFT, _MOST_FFT = 8, 4096


@dataclass(frozen=True)
class LogMel:
    """A front end.

    Attributes:
        rate: Samples per second, 1,000 to 192,000.
        window: Samples of a window, at least 2.
        hop: Samples from a window to the next.
        fft: A power of two, not less than the window, 8 to 4096.
        channels: Of the filter bank.
        low: Where its first triangle begins, in Hz.
        high: Where its last one ends; at most half the rate.

    Raises:
        ConfigError: A value is out of range, or a triangle lies between the lines of the spectrum.
    """

    rate: int = 16_000
    window: int = 480
    hop: int = 320
    fft: int = 512
    channels: int = 40
    low: float = 125.0
    high: float = 7500.0

    def __post_init__(self) -> None:
        sizes = self.rate, self.window, self.hop, self.fft, self.channels
        whole = all(type(each) is int for each in sizes)
        if not whole or not all(math.isfinite(each) for each in (self.low, self.high)):
            raise ConfigError(f"{self} has sizes that are not whole numbers, or no frequencies")
        rules = {
            f"rate is {self.rate}; it must be 1,000 to 192,000": 1000 <= self.rate <= 192_000,
            f"fft is {self.fft}; it must be a power of two, {_LEAST_FFT} to {_MOST_FFT}": (
                _LEAST_FFT <= self.fft <= _MOST_FFT and self.fft & (self.fft - 1) == 0
            ),
            f"window is {self.window}; it must be 2 to {self.fft} (fft)": (
                2 <= self.window <= self.fft
            ),
            f"hop is {self.hop}; it must be 1 to {self.window} (window)": (
                1 <= self.hop <= self.window
            ),
            f"channels is {self.channels}; it must be 1 to {self.fft // 2} (half the fft)": (
                1 <= self.channels <= self.fft // 2
            ),
            f"low is {self.low} and high {self.high}; they must rise from 0 to {self.rate / 2} "
            "(half the rate)": 0 <= self.low < self.high <= self.rate / 2,
        }
        if wrong := [text for text, is_kept in rules.items() if not is_kept]:
            raise ConfigError("; ".join(wrong))
        if empty := np.flatnonzero(self.weights.max(axis=1) == 0).tolist():
            raise ConfigError(
                f"channel {empty[0]} of {self.channels} lies between the lines of a spectrum of "
                f"{self.fft} samples; take fewer channels, a larger fft or a larger low"
            )

    # Tables

    @functools.cached_property
    def window_table(self) -> Ints:
        """h, int64 [window], 0 .. 2^15."""
        angles = np.pi * (np.arange(self.window) + 0.5) / self.window
        return _rounded(np.square(np.sin(angles)) * 2**_WINDOW_BITS)

    @functools.cached_property
    def twiddles(self) -> tuple[Ints, Ints]:
        """Real and imaginary parts of w for j = 0 .. fft / 2 - 1, int64 [fft / 2], +-2^14."""
        angles = 2 * np.pi * np.arange(self.fft // 2) / self.fft
        scale = 2**TWIDDLE_BITS
        return _rounded(np.cos(angles) * scale), _rounded(-np.sin(angles) * scale)

    @functools.cached_property
    def weights(self) -> Ints:
        """t, int64 [channels, fft / 2 + 1], 0 .. 2^12."""
        lines = _mel(np.arange(self.fft // 2 + 1) * (self.rate / self.fft))
        low, high = _mel(np.array([self.low, self.high]))
        corners = np.linspace(low, high, self.channels + 2)
        first, middle, last = corners[:-2, None], corners[1:-1, None], corners[2:, None]
        triangles = np.minimum((lines - first) / (middle - first), (last - lines) / (last - middle))
        return _rounded(np.maximum(triangles, 0) * 2**ENERGY_BITS)

    # What it computes

    def frames(self, samples: int) -> int:
        """Return how many whole windows there are in so many samples."""
        return max(0, 1 + (samples - self.window) // self.hop)

    def length(self, frames: int) -> int:
        """Return how many samples so many windows take."""
        return self.window + (frames - 1) * self.hop if frames else 0

    def levels(self, samples: NDArray[np.int16]) -> NDArray[np.int8]:
        """Return the features of a sound.

        Args:
            samples: int16 [n]; what is left behind the last whole window is not heard.

        Returns:
            int8 [frames, channels].

        Raises:
            DataError: They are of another type, or of several channels.
        """
        if samples.dtype != np.int16 or samples.ndim != 1:
            raise DataError(
                f"samples are {samples.dtype} {samples.shape}; a front end takes int16 [n]"
            )
        count = self.frames(len(samples))
        starts = self.hop * np.arange(count)[:, None]
        windows = samples[starts + np.arange(self.window)] if count else np.zeros((0, self.window))
        return _levels(self.energies(windows.astype(np.int64)))

    def energies(self, windows: Ints) -> Ints:
        """Return e of each window, int64 [n, channels], of samples int64 [n, window]."""
        real, imaginary = self.spectrum(windows * self.window_table)
        power = (real * real + imaginary * imaginary) >> ENERGY_BITS
        return np.asarray(power @ self.weights.T)

    def spectrum(self, windowed: Ints) -> tuple[Ints, Ints]:
        """Return the parts of the halved spectrum of y, int64 [n, fft / 2 + 1] each."""
        count, size = len(windowed), self.fft
        order = _reversed_bits(size)
        real, imaginary = np.zeros((2, count, size), np.int64)
        real[:, : self.window] = windowed
        real = real[:, order]
        half = 1
        while half < size:
            wr, wi = (part[:: size // (2 * half)] for part in self.twiddles)
            real, imaginary = _stage(real, imaginary, wr, wi)
            half *= 2
        return real[:, : size // 2 + 1], imaginary[:, : size // 2 + 1]

    # Records

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> LogMel:
        """Return the front end of a record.

        Raises:
            ConfigError: It is not one.
        """
        try:
            return cls(**fields)
        except TypeError as error:
            raise ConfigError(f"{dict(fields)!r:.200} describes no front end ({error})") from error


def _stage(real: Ints, imaginary: Ints, wr: Ints, wi: Ints) -> tuple[Ints, Ints]:
    """Combine the spectra that lie side by side in [n, fft], as long as w, two by two."""
    shape = (len(real), real.shape[1] // (2 * len(wr)), 2, len(wr))
    (ar, br), (ai, bi) = (np.moveaxis(z.reshape(shape), 2, 0) for z in (real, imaginary))
    products = br * wr - bi * wi, br * wi + bi * wr
    one = 1 << TWIDDLE_BITS
    parts = [
        np.stack([a * one + product + one, a * one - product + one], axis=2) >> (TWIDDLE_BITS + 1)
        for a, product in zip((ar, ai), products, strict=True)
    ]
    return parts[0].reshape(real.shape), parts[1].reshape(real.shape)


def _reversed_bits(size: int) -> Ints:
    """Return 0 .. size - 1 with the order of their bits reversed."""
    order = np.zeros(1, np.int64)
    while len(order) < size:
        order = np.concatenate([2 * order, 2 * order + 1])
    return order


def _levels(energies: Ints) -> NDArray[np.int8]:
    eighths = (log2(energies + 1) + (1 << (LEVEL_BITS - 1))) >> LEVEL_BITS
    return np.clip(eighths - MIDDLE, -128, 127).astype(np.int8)


def log2(numbers: Ints) -> Ints:
    """Return log2 of integers 1 .. 2^62 in `LOG_BITS` bits behind the point, a little below it."""
    mantissa = numbers.astype(np.uint64)
    found = np.full(numbers.shape, 63, np.int64)
    for bits in (32, 16, 8, 4, 2, 1):
        is_small = mantissa < np.uint64(1 << (64 - bits))
        mantissa = np.where(is_small, mantissa << np.uint64(bits), mantissa)
        found -= bits * is_small
    mantissa >>= np.uint64(32)
    for _ in range(LOG_BITS):
        mantissa = (mantissa * mantissa) >> np.uint64(31)
        carry = mantissa >> np.uint64(32)
        mantissa >>= carry
        found = 2 * found + carry.astype(np.int64)
    return found


def _mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log1p(hertz / 700))


def _rounded(values: NDArray[np.float64]) -> Ints:
    return np.rint(values).astype(np.int64)
