"""Log-mel levels by Python's integers, number by number, as the definition's text says them."""

from __future__ import annotations

import math
from collections.abc import Sequence

MIDDLE = 336


def levels(
    samples: Sequence[int], rate: int, fft: int, channels: int, low: float, high: float
) -> list[int]:
    """Return the levels of one window of samples."""
    window = len(samples)
    hann = [round(2**15 * math.sin(math.pi * (k + 0.5) / window) ** 2) for k in range(window)]
    y = [x * h for x, h in zip(samples, hann, strict=True)] + [0] * (fft - window)
    assert max(map(abs, y)) <= 2**30
    spectrum = halved([(each, 0) for each in y], fft)
    assert all(abs(part) < 2**31 for number in spectrum for part in number)
    power = [(re * re + im * im) >> 12 for re, im in spectrum[: fft // 2 + 1]]
    ends = [math.log1p(hertz / 700) for hertz in (low, high)]
    step = (ends[1] - ends[0]) / (channels + 1)
    found = []
    for channel in range(channels):
        peak = ends[0] + (channel + 1) * step
        energy = 0
        for line, p in enumerate(power):
            mel = math.log1p(line * rate / fft / 700)
            energy += p * round(2**12 * max(0.0, 1 - abs(mel - peak) / step))
        assert energy < 2**61
        eighths = (log2(energy + 1) + 16) >> 5
        found.append(min(127, max(-128, eighths - MIDDLE)))
    return found


def halved(numbers: list[tuple[int, int]], fft: int) -> list[tuple[int, int]]:
    """Return the spectrum divided by its length, by halves of even and odd places."""
    count = len(numbers)
    if count == 1:
        return numbers
    even, odd = halved(numbers[::2], fft), halved(numbers[1::2], fft)
    first, second = [], []
    for j, ((ar, ai), (br, bi)) in enumerate(zip(even, odd, strict=True)):
        angle = 2 * math.pi * j / count
        wr, wi = round(2**14 * math.cos(angle)), round(-(2**14) * math.sin(angle))
        tr, ti = br * wr - bi * wi, br * wi + bi * wr
        first.append(((2**14 * ar + tr + 2**14) >> 15, (2**14 * ai + ti + 2**14) >> 15))
        second.append(((2**14 * ar - tr + 2**14) >> 15, (2**14 * ai - ti + 2**14) >> 15))
    return first + second


def log2(number: int) -> int:
    """Return 256 log2 of a number: a bit for each time that its square is 2 or more."""
    whole = number.bit_length() - 1
    mantissa = number << 63 - whole >> 32
    for _ in range(8):
        mantissa = mantissa * mantissa >> 31
        whole *= 2
        if mantissa >= 2**32:
            whole, mantissa = whole + 1, mantissa >> 1
    return whole
