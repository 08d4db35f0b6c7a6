"""Words of synthetic voices, and the loader of Speech Commands on a folder of the same form."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedkit.core.errors import DataError
from fedkit.preprocess.wav import write_wav
from fedkit.tasks import keywords, speech_commands
from fedkit.tasks.keywords import Utterance


@pytest.fixture
def need_speech() -> None:
    if shutil.which("espeak-ng") is None:
        pytest.skip("there is no espeak-ng; apt-get install espeak-ng")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, need_speech: None) -> Iterator[Path]:
    """A data set of three voices and two takes, in a folder of its own."""
    monkeypatch.setenv("FEDKIT_DATA", str(tmp_path))
    monkeypatch.setattr(keywords, "VOICES", ("en-us+m1", "en-gb+f2", "en-gb+m7"))
    monkeypatch.setattr(keywords, "_TRAINED", ("m1", "f2"))
    monkeypatch.setattr(keywords, "TAKES", 2)
    keywords._levels.cache_clear()
    yield tmp_path
    keywords._levels.cache_clear()


def test_voices_are_thirty_and_those_of_the_test_are_others() -> None:
    assert len(set(keywords.VOICES)) == 30
    variants = [voice.partition("+")[2] for voice in keywords.VOICES]
    assert not set(variants[:24]) & set(variants[24:])


@pytest.mark.usefixtures("need_speech")
def test_a_take_is_the_same_at_every_call_and_unlike_others() -> None:
    sounds = [keywords.spoken(Utterance("yes", "en-us+m1", number)) for number in (0, 0, 1)]
    np.testing.assert_array_equal(sounds[0], sounds[1])
    assert not np.array_equal(sounds[0], sounds[2])
    for sound in sounds:
        assert sound.shape == (15_840,) and 2000 <= np.abs(sound.astype(int)).max() <= 12_000


def test_examples_are_the_levels_of_takes_and_are_kept(few: Path) -> None:
    train, test = keywords.train_data(), keywords.test_data()
    assert train.inputs.shape == (40, 1, 49, 20) and test.inputs.shape == (20, 1, 49, 20)
    assert train.owners is not None and test.owners is not None
    assert set(train.owners) == {"en-us+m1", "en-gb+f2"} and set(test.owners) == {"en-gb+m7"}
    sound = keywords.spoken(Utterance(keywords.WORDS[train.targets[23]], str(train.owners[23]), 1))
    wanted = keywords.AUDIO.inputs(keywords.AUDIO.levels(sound)[None])
    np.testing.assert_array_equal(train.inputs[23:24], wanted)
    series = keywords.train_series()
    np.testing.assert_array_equal(series.inputs, train.inputs[:, 0].swapaxes(1, 2))
    assert series.owners is not None and series.owners.tolist() == train.owners.tolist()
    np.testing.assert_array_equal(keywords.SERIES.inputs(keywords.AUDIO.levels(sound)[None]),
                                  series.inputs[23:24])  # fmt: skip
    (kept,) = (few / "keywords").iterdir()
    keywords._levels.cache_clear()
    np.testing.assert_array_equal(keywords.train_data().inputs, train.inputs)
    kept.write_bytes(kept.read_bytes()[:100])
    keywords._levels.cache_clear()
    with pytest.raises(DataError, match="cannot be read"):
        keywords.train_data()


def test_without_the_program_it_is_named(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(few))
    keywords._program.cache_clear()
    with pytest.raises(DataError, match="install the package espeak-ng"):
        keywords.spoken(Utterance("yes", "en-us+m1", 0))
    keywords._program.cache_clear()


@pytest.mark.usefixtures("need_speech")
def test_a_voice_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keywords, "VOICES", ("nowhere",))
    with pytest.raises(DataError, match="cannot say 'yes' as nowhere"):
        keywords.spoken(Utterance("yes", "nowhere", 0))


# Speech Commands


def commands(folder: Path) -> Path:
    """Write a small folder of the form of the data set."""
    draws = np.random.default_rng(0)
    for word in ("yes", "no", "_background_noise_"):
        (folder / word).mkdir()
        for speaker in ("0a1", "b2c", "d3e"):
            sound = draws.integers(-3000, 3000, 16_000).astype(np.int16)
            write_wav(folder / word / f"{speaker}_nohash_0.wav", sound, 16_000)
    (folder / "testing_list.txt").write_text("yes/b2c_nohash_0.wav\nno/b2c_nohash_0.wav\n")
    (folder / "validation_list.txt").write_text("no/d3e_nohash_0.wav\n")
    return folder


def test_speech_commands_are_read_from_their_folders(tmp_path: Path) -> None:
    task = speech_commands.task(commands(tmp_path), ("yes", "no"))
    train, test = task.examples("train"), task.examples("test")
    assert train.targets.tolist() == [0, 0, 1] and test.targets.tolist() == [0, 1]
    assert train.owners is not None and train.owners.tolist() == ["0a1", "d3e", "0a1"]
    assert task.raw_input is not None and task.raw_input.classes == ("yes", "no")
    wanted = task.raw_input.read(tmp_path / "no" / "0a1_nohash_0.wav")
    np.testing.assert_array_equal(train.inputs[2:3], wanted)
    assert train.inputs.shape == (3, 1, 49, 40)


def test_a_folder_that_is_no_speech_commands_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"testing_list\.txt is missing"):
        speech_commands.task(tmp_path).examples("train")
    commands(tmp_path)
    with pytest.raises(DataError, match="down holds no file"):
        speech_commands.task(tmp_path).examples("train")
    (tmp_path / "yes" / "0a1_nohash_0.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"0a1_nohash_0\.wav cannot be read"):
        speech_commands.task(tmp_path, ("yes", "no")).examples("train")


def test_the_program_is_the_one_of_the_path(need_speech: None) -> None:
    told = subprocess.run([keywords._program(), "--version"], capture_output=True, text=True)
    assert keywords._version() in told.stdout
