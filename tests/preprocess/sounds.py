"""Sounds that a front end must take: quiet, loud, hostile, and of odd lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedkit.preprocess.log_mel import LogMel

Sound = NDArray[np.int16]

FRONT_ENDS = {
    "default": LogMel(),
    "tiny": LogMel(8000, 5, 3, 8, 1, 0.0, 4000.0),
    "every sample": LogMel(8000, 64, 1, 64, 8, 0.0, 4000.0),
    "no overlap": LogMel(16_000, 256, 256, 256, 13, 60.0, 8000.0),
    "largest": LogMel(48_000, 4096, 4096, 4096, 80, 20.0, 24_000.0),
}


def sounds(front_end: LogMel, frames: int = 3) -> dict[str, Sound]:
    """Return sounds of about so many frames."""
    length, draws = front_end.length(frames), np.random.default_rng(0)
    impulse = np.zeros(length, np.int16)
    impulse[length // 2] = -(2**15)
    steps = np.arange(length)
    ends = np.array([-(2**15), 2**15 - 1], np.int16)
    found = {
        "silence": np.zeros(length, np.int16),
        "lowest": np.full(length, -(2**15), np.int16),
        "highest": np.full(length, 2**15 - 1, np.int16),
        "impulse": impulse,
        "noise": draws.integers(-(2**15), 2**15, length).astype(np.int16),
        "quiet noise": draws.integers(-3, 4, length).astype(np.int16),
        "signs": ends[draws.integers(0, 2, length)],
        "fastest square": ends[steps % 2],
        "slow square": ends[steps // 7 % 2],
        "sine": np.rint(32767 * np.sin(2 * np.pi * 0.0813 * steps)).astype(np.int16),
        "odd length": draws.integers(-999, 999, length + 1).astype(np.int16),
        "a sample less": draws.integers(-999, 999, length - 1).astype(np.int16),
    }
    return found
