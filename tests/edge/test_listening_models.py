"""Models of sound: what their manifests say, and the same word from C, files and arrays."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edge
from edge import artifact
from edge.artifact import Artifact
from edge.raw import raw_input_of
from fedkit.core.errors import ConfigError, DataError, ExportError
from fedkit.preprocess.audio import Audio, samples_of
from fedkit.preprocess.log_mel import LogMel
from fedkit.preprocess.wav import read_wav, write_wav
from tests.command_line import fedkit
from tests.edge.targets.c99.library import need_gcc
from tests.edge.told_by_c import built, defined, told
from tests.sets import slow_but

FRONT_END = LogMel(8000, 128, 64, 128, 8, 100.0, 4000.0)
AUDIO = Audio(FRONT_END, 6, ("low", "high", "a noise"))
SERIES = replace(AUDIO, is_series=True)


def sound(kind: int, seed: int, length: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    draws, steps = np.random.default_rng(seed), np.arange(length)
    tone = np.sin(2 * np.pi * (0.03, 0.3, 0)[kind] * steps) * (8000, 8000, 0)[kind]
    return np.rint(tone + draws.normal(0, (200, 200, 4000)[kind], length)).astype(np.int16)


def model(audio: Audio) -> nn.Sequential:
    """A model of which each class wins somewhere."""
    torch.manual_seed(0)
    body = nn.Conv1d(8, 4, 3, padding=1) if audio.is_series else nn.Conv2d(1, 4, 3, padding=1)
    places = 6 if audio.is_series else 48
    layers = [body, nn.ReLU(), nn.Flatten(), nn.Linear(4 * places, 3)]
    return nn.Sequential(*layers).eval()


def saved(path: Path, audio: Audio = AUDIO, target: str = "") -> Artifact:
    sounds = [sound(n % 3, n, audio.samples) for n in range(60)]
    inputs = audio.inputs(np.stack([audio.levels(each) for each in sounds]))
    made = model(audio)
    logits = made(torch.from_numpy(inputs))
    bias = made[-1].bias
    assert isinstance(bias, torch.Tensor)
    bias.data -= logits.detach().median(dim=0).values
    return edge.export_model(made, inputs, path, target, raw_input=audio)


@pytest.mark.parametrize("audio", slow_but([SERIES], [AUDIO, SERIES]))
def test_the_c_program_says_of_files_what_eval_says(
    audio: Audio,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    need_gcc()
    made = saved(tmp_path / "listen-c99", audio)
    lengths = (audio.samples, audio.samples - 37, 1, 3 * audio.samples)
    files = [tmp_path / f"{n}.wav" for n in range(12)]
    for n, file in enumerate(files):
        write_wav(file, sound(n % 3, n, lengths[n % 4]), 8000)
    lines, outputs = told(built(made, "wav"), files)
    inputs = np.concatenate([audio.read(file) for file in files])
    np.testing.assert_array_equal(outputs, defined(made, inputs))
    words = dict(lines)
    given = " ".join(f"--input {file}" for file in files)
    assert fedkit(f"eval {made.path} {given} --runtime interpreter --json", monkeypatch) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert {row["file"]: row["class"] for row in rows} == words
    assert len(set(words.values())) > 1, "one answer for all says nothing"


def test_a_stream_has_a_line_for_each_frame(tmp_path: Path) -> None:
    need_gcc()
    made = saved(tmp_path / "listen-c99")
    parts = [sound(n % 3, n, AUDIO.samples) for n in range(4)]
    stream = np.concatenate(parts)
    write_wav(tmp_path / "a.wav", stream, 8000)
    subprocess.run(["make", "-s", "wav", "CFLAGS=-O0"], cwd=made.path, check=True)
    command = [str(made.path / "wav"), "-s", str(tmp_path / "a.wav")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    levels = FRONT_END.levels(stream)
    windows = np.stack([levels[end - 6 : end] for end in range(6, len(levels) + 1)])
    outputs = np.asarray(
        edge.open_artifact(made.path, "interpreter").predict(AUDIO.inputs(windows))
    )
    wanted = [
        f"{(6 + n) * 64 / 8000 + 64 / 8000:.2f} s\t{AUDIO.classes[int(each.argmax())]}"
        for n, each in enumerate(outputs)
    ]
    assert [line.split("\t", 1)[1] for line in lines] == wanted


@pytest.mark.parametrize("target", ["c99", "tflite", "graph"])
def test_a_manifest_says_what_the_raw_input_is(target: str, tmp_path: Path) -> None:
    made = saved(tmp_path / "listen", target=target)
    assert raw_input_of(artifact.load(made.path)) == AUDIO


def test_a_manifest_without_or_of_another_kind_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = saved(tmp_path / "listen.tflite")
    other = {**AUDIO.to_json(), "kind": "smells"}
    assert raw_input_of(replace(made, details={})) is None
    with pytest.raises(ExportError, match="not a raw input known here"):
        raw_input_of(replace(made, details={"raw_input": other}))
    inputs = np.random.default_rng(0).random((9, 1, 6, 8), np.float32)
    plain = edge.export_model(model(AUDIO), inputs, tmp_path / "p.tflite")
    assert fedkit(f"eval {plain.path} --input {tmp_path / 'a.wav'}", monkeypatch) == 2
    assert "does not say what its inputs are made of" in " ".join(capsys.readouterr().err.split())


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    for audio, text in (
        (replace(AUDIO, frames=7), r"takes \(1, 6, 8, 1\), and its raw input makes \(1, 7, 8, 1\)"),
        (replace(AUDIO, classes=("a", "b")), "2 classes have names, and the model has 3 outputs"),
        (SERIES, r"its raw input makes \(1, 1, 6, 8\)"),
    ):
        with pytest.raises(ExportError, match=text):
            inputs = np.random.default_rng(0).random((9, 1, 6, 8), np.float32)
            edge.export_model(model(AUDIO), inputs, tmp_path / "a-c99", raw_input=audio)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "it ends too early"),
        (b"RIFFnothing", "cannot be read as a .wav file"),
        (b"not a sound at all, but longer than a header", "does not start with RIFF"),
        (None, "No such file or directory"),
    ],
)
def test_what_is_no_sound_is_named(content: bytes | None, text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=text) as told:
        AUDIO.read(path)
    assert str(path) in str(told.value)


def test_a_wav_of_another_rate_or_without_samples_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    write_wav(path, np.zeros(0, np.int16), 8000)
    with pytest.raises(DataError, match=r"x\.wav holds no samples"):
        AUDIO.read(path)
    write_wav(path, np.zeros(9, np.int16), 44_100)
    with pytest.raises(DataError, match=r"x\.wav has 44100 samples a second"):
        AUDIO.read(path)


def test_a_sound_is_cut_or_filled_up_and_comes_back_from_floats(tmp_path: Path) -> None:
    codes = np.array([-(2**15), 2**15 - 1, 0, 5], np.int16)
    write_wav(tmp_path / "x.wav", codes, 8000)
    assert read_wav(tmp_path / "x.wav", 8000, 3).tolist() == codes[:3].tolist()
    np.testing.assert_array_equal(samples_of(codes.astype(np.float32) / 2**15), codes)
    assert AUDIO.levels(codes).shape == (6, 8) and AUDIO.levels(np.tile(codes, 999)).shape == (6, 8)
    for wrong in (0.3, np.nan, 1.0):
        with pytest.raises(DataError):
            samples_of(np.array([wrong], np.float32))


@pytest.mark.parametrize(
    "change", [{"frames": 0}, {"frames": True}, {"frames": 10_001}, {"classes": ("a", "b\nc", "")}]
)
def test_a_raw_input_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(AUDIO, **change)
    record = {**AUDIO.to_json(), **{k: list(v) if k == "classes" else v for k, v in change.items()}}
    with pytest.raises(ConfigError):
        Audio.from_json(record)
    assert Audio.from_json(json.loads(json.dumps(AUDIO.to_json()))) == AUDIO
