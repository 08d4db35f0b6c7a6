"""Ten words in thirty synthetic voices, spoken by espeak-ng: a task of sound without a download.

Nobody spoke these words. The voices are those of a program, cleaner and more alike than people's,
so that figures on them say how a fleet learns and what an artifact computes, and not how well words
of people are told. For those see `fedkit.tasks.speech_commands`.

A voice is an accent of English and a variant of the speaker. It says each word at several speeds
and pitches, at a random place of a second, with noise. Owners are voices, so that with the
partition `natural-id` a device is a voice; six others are heard in the test alone. All of it
follows from a seed and from the version of espeak-ng, which is an apt package.

The features are made once and kept as `$FEDKIT_DATA/keywords/VERSION.npy` (or `data/keywords`).
"""

from __future__ import annotations

import functools
import io
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import DataError
from fedkit.core.files import write_atomic
from fedkit.preprocess.audio import Audio
from fedkit.preprocess.log_mel import LogMel
from fedkit.tasks.data_folder import data_folder
from fedkit.tasks.task import Examples, Task

WORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
AUDIO = Audio(LogMel(channels=20), 49, WORDS)
"""A second, as 49 windows of 30 ms, 20 ms apart, in 20 channels."""

TAKES = 8
"""How often a voice says each word."""

_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbcwmd")
_TRAINED = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "f1", "f2", "f3", "f4", "Denis", "Alicia"),
    *("Andrea", "Annie", "Lee", "Michael", "linda", "paul", "Diogo", "Mario", "ed", "steph"),
    *("rob", "belinda"),
)
_TESTED = ("m7", "f5", "john", "aunty", "david", "zac")
VOICES = tuple(
    f"{_ACCENTS[number % len(_ACCENTS)]}+{variant}"
    for number, variant in enumerate((*_TRAINED, *_TESTED))
)
"""All voices; the last six are those of the test."""

SERIES = replace(AUDIO, is_series=True)
"""The same, as a series whose steps are the windows."""

_SEED, _FORM = 0, 1
_SPEEDS, _PITCHES = (120, 190), (30, 70)  # words a minute; of 0 to 99
_NOISE = (5.0, 30.0)  # dB below the word
_LOUDNESS = (2000.0, 12_000.0)  # of the largest sample
_RATE = 22_050
_HEADER = 44  # bytes


@dataclass(frozen=True)
class Utterance:
    """One utterance.

    Attributes:
        word: One of `WORDS`.
        voice: One of `VOICES`.
        number: 0 up; another has another speed, pitch, place, loudness and noise.
    """

    word: str
    voice: str
    number: int


def train_data() -> Examples:
    """Return what the voices of devices say, float32 [n, 1, 49, 20]."""
    return _examples(VOICES[: len(_TRAINED)])


def test_data() -> Examples:
    """Return what six voices say that no device has."""
    return _examples(VOICES[len(_TRAINED) :])


def train_series() -> Examples:
    """Return what the voices of devices say, float32 [n, 20, 49]."""
    return _as_series(train_data())


def test_series() -> Examples:
    """Return what the six other voices say."""
    return _as_series(test_data())


def _as_series(examples: Examples) -> Examples:
    return replace(examples, inputs=np.ascontiguousarray(examples.inputs[:, 0].transpose(0, 2, 1)))


def spoken(take: Utterance) -> NDArray[np.int16]:
    """Return the sound of a take, int16 [samples] at 16,000 a second; the same at every call.

    Raises:
        DataError: espeak-ng is not installed, or fails.
    """
    at = WORDS.index(take.word), VOICES.index(take.voice), take.number
    draws = np.random.default_rng((_SEED, *at))
    speed, pitch = draws.integers(*_SPEEDS), draws.integers(*_PITCHES)
    word = _resampled(_said(take, int(speed), int(pitch)))[: AUDIO.samples]
    noise = _noise(draws) * 10 ** (-draws.uniform(*_NOISE) / 20)
    start = draws.integers(0, AUDIO.samples - len(word) + 1)
    sound = noise * np.sqrt(np.square(word).mean())
    sound[start : start + len(word)] += word
    loudness = draws.uniform(*_LOUDNESS) / np.abs(sound).max()
    return np.asarray(np.rint(sound * loudness), np.int16)


def _noise(draws: np.random.Generator) -> NDArray[np.float64]:
    """Return noise of mean square 1, between white and brown."""
    white = np.fft.rfft(draws.standard_normal(AUDIO.samples))
    slope = draws.uniform(0, 1)
    coloured = np.fft.irfft(white / np.arange(1, len(white) + 1) ** slope, AUDIO.samples)
    return np.asarray(coloured / np.sqrt(np.square(coloured).mean()))


def _said(take: Utterance, speed: int, pitch: int) -> NDArray[np.float64]:
    """Return what espeak-ng says, float64 [n] at `_RATE` a second, without silence around it."""
    options = ("-v", take.voice, "-s", str(speed), "-p", str(pitch), "--stdout")
    ended = subprocess.run([_program(), *options, take.word], capture_output=True)
    codes = np.frombuffer(ended.stdout[_HEADER : len(ended.stdout) // 2 * 2], "<i2")
    if ended.returncode or not codes.any() or not ended.stdout.startswith(b"RIFF"):
        raise DataError(
            f"espeak-ng cannot say {take.word!r} as {take.voice}: "
            f"{ended.stderr.decode(errors='replace').strip()[:200] or 'it is silent'}; install the "
            "whole package"
        )
    (heard,) = np.nonzero(np.abs(codes.astype(np.int32)) > 100)
    return codes[heard[0] : heard[-1] + 1].astype(np.float64)


def _resampled(sound: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a sound at the front end's rate, by its Fourier transform."""
    count = len(sound) * AUDIO.front_end.rate // _RATE
    spectrum = np.fft.rfft(sound)[: count // 2 + 1]
    return np.fft.irfft(spectrum, count) * (count / len(sound))


@functools.cache
def _program() -> str:
    found = shutil.which("espeak-ng")
    if found is None:
        raise DataError("espeak-ng, which speaks the words, is not installed; install the package "
                        "espeak-ng (apt-get install espeak-ng)")  # fmt: skip
    return found


@functools.cache
def _version() -> str:
    told = subprocess.run([_program(), "--version"], capture_output=True, text=True).stdout
    found = re.search(r"\d+(\.\d+)+", told)
    return found[0] if found else "unknown"


def _examples(voices: tuple[str, ...]) -> Examples:
    levels = _levels()
    places = [VOICES.index(voice) for voice in voices]
    chosen = levels[places].reshape(-1, *levels.shape[3:])
    words = np.tile(np.repeat(np.arange(len(WORDS)), TAKES), len(voices))
    owners = np.repeat(np.array(voices), len(WORDS) * TAKES)
    return Examples(AUDIO.inputs(chosen), words, owners)


@functools.cache
def _levels() -> NDArray[np.int8]:
    """Return all levels, int8 [voices, words, takes, frames, channels]; made at the first call."""
    path = data_folder("keywords") / f"espeak-ng-{_version()}-{_FORM}.npy"
    shape = (len(VOICES), len(WORDS), TAKES, AUDIO.frames, AUDIO.front_end.channels)
    if path.is_file():
        try:
            levels = np.asarray(np.load(path, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} cannot be read ({error}); remove it") from error
        if levels.shape != shape or levels.dtype != np.int8:
            raise DataError(f"{path} holds {levels.dtype} {levels.shape}, not {shape}; remove it")
        return levels
    made = _made().reshape(shape)
    content = io.BytesIO()
    np.save(content, made)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content.getvalue())
    return made


def _made() -> NDArray[np.int8]:
    takes = [Utterance(w, v, n) for v in VOICES for w in WORDS for n in range(TAKES)]
    with ThreadPoolExecutor(2) as pool:
        return np.stack(list(pool.map(lambda take: AUDIO.levels(spoken(take)), takes)))


TASK = Task("keywords", "ds-cnn", train_data, test_data, raw_input=AUDIO)
"""The task `keywords`."""

KWT = Task("keywords-kwt", "kwt-1", train_series, test_series, raw_input=SERIES)
"""The task `keywords-kwt`: the same words for a Transformer, which takes a series."""
