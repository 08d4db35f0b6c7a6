"""The front end of sound: its definition by Python's integers, its ranges, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.core.errors import ConfigError, DataError
from fedkit.preprocess.log_mel import LogMel, log2
from tests.naive import log_mel as naive
from tests.preprocess.sounds import FRONT_ENDS, sounds
from tests.sets import slow_but

EVERY = slow_but(["tiny", "default"], FRONT_ENDS)


@pytest.mark.parametrize("name", EVERY)
def test_levels_are_those_of_pythons_integers(name: str) -> None:
    front_end = FRONT_ENDS[name]
    how = front_end.rate, front_end.fft, front_end.channels, front_end.low, front_end.high
    for kind, sound in sounds(front_end, frames=1).items():
        found = front_end.levels(sound)
        starts = range(0, len(sound) - front_end.window + 1, front_end.hop)
        windows = [sound[start : start + front_end.window].tolist() for start in starts]
        assert found.tolist() == [naive.levels(each, *how) for each in windows], kind


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_what_is_hostile_stays_within_the_ranges_that_are_proved(name: str) -> None:
    front_end = FRONT_ENDS[name]
    rows = [each[: front_end.window] for each in sounds(front_end, frames=2).values()]
    windows = np.stack(rows).astype(np.int64)
    for part in front_end.spectrum(windows * front_end.window_table):
        assert np.abs(part).max() < 1.01 * 2**30
    assert front_end.energies(windows).min() >= 0 and front_end.energies(windows).max() < 2**61


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_the_spectrum_is_a_fourier_transform(name: str) -> None:
    front_end = FRONT_ENDS[name]
    windows = np.random.default_rng(1).integers(-(2**15), 2**15, (20, front_end.window))
    windowed = windows * front_end.window_table
    wanted = np.fft.rfft(windowed, front_end.fft) / front_end.fft
    real, imaginary = front_end.spectrum(windowed)
    error = np.abs(real + 1j * imaginary - wanted).max()
    assert error < 2**-12 * np.abs(wanted).max()


@given(st.integers(1, 2**62))
def test_a_logarithm_is_a_little_below(number: int) -> None:
    found = int(log2(np.array([number]))[0])
    assert found == naive.log2(number)
    assert 0 <= 256 * math.log2(number) - found < 1.01


def test_a_level_is_an_eighth_of_an_octave_of_energy() -> None:
    steps = 2 * np.pi * 1000 / 16_000 * np.arange(16_000)
    loud, quiet = (np.rint(a * np.sin(steps)).astype(np.int16) for a in (16_384, 4096))
    front_end = LogMel()
    found = front_end.levels(loud).astype(int).max(1) - front_end.levels(quiet).max(1)
    assert set(found.tolist()) <= {31, 32, 33}  # two octaves of amplitude, four of energy


def test_no_table_of_the_default_hangs_on_a_last_bit() -> None:
    front_end = LogMel()
    angles = 2 * np.pi * np.arange(256) / 512
    for values, table in (
        (2**14 * np.cos(angles), front_end.twiddles[0]),
        (-(2**14) * np.sin(angles), front_end.twiddles[1]),
        (2**15 * np.sin(np.pi * (np.arange(480) + 0.5) / 480) ** 2, front_end.window_table),
    ):
        assert np.abs(np.abs(values - table) - 0.5).min() > 1e-6


def test_frames_are_whole_windows() -> None:
    front_end = LogMel()
    for samples, frames in ((0, 0), (479, 0), (480, 1), (799, 1), (800, 2), (16_000, 49)):
        assert front_end.frames(samples) == frames
        assert front_end.levels(np.zeros(samples, np.int16)).shape == (frames, 40)
    assert (front_end.length(49), front_end.length(0)) == (15_840, 0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"rate": 0}, "rate is 0"),
        ({"fft": 500}, "fft is 500; it must be a power of two"),
        ({"fft": 8192}, "fft is 8192"),
        ({"window": 513}, "window is 513; it must be 2 to 512"),
        ({"hop": 0}, "hop is 0"),
        ({"hop": 481}, "hop is 481"),
        ({"channels": 0}, "channels is 0"),
        ({"channels": 256}, "lies between the lines"),
        ({"low": 7600.0}, "low is 7600.0 and high 7500.0"),
        ({"high": 8000.5}, "high 8000.5"),
        ({"high": float("nan")}, "no frequencies"),
        ({"window": 480.0}, "not whole numbers"),
    ],
)
def test_a_front_end_that_cannot_be_is_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        LogMel(**change)


def test_samples_of_another_kind_are_refused() -> None:
    others: list[NDArray[Any]] = [np.zeros(480, np.float32), np.zeros((480, 2), np.int16)]
    for wrong in others:
        with pytest.raises(DataError, match="a front end takes int16"):
            LogMel().levels(wrong)


def test_a_record_gives_the_same_front_end_and_another_is_refused() -> None:
    for front_end in FRONT_ENDS.values():
        assert LogMel.from_json(front_end.to_json()) == front_end
    for wrong in ({"more": 1}, {**LogMel().to_json(), "low": "x"}, {"fft": [1]}):
        with pytest.raises(ConfigError):
            LogMel.from_json(wrong)
