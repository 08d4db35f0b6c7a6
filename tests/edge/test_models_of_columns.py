"""Models of series: their artifacts take .csv files, and tell the class of each window."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import edge
from fedkit.core.errors import ConfigError, DataError
from fedkit.preprocess.columns import CsvColumns
from fedkit.preprocess.records import of_record
from tests.command_line import fedkit

RAW = CsvColumns(("y", "x"), 5, 2, (1.0, -2.0), (0.5, 4.0), ("still", "moving", "falling"))


def write(path: Path, lines: np.ndarray[Any, Any]) -> Path:
    """CsvColumns in another order than the model's, and one that it does not take."""
    rows = [f"{x!r},{number},{y!r}" for number, (y, x) in enumerate(lines.tolist())]
    path.write_text("x,time, y\n" + "\n".join(rows) + "\n")
    return path


def naive(lines: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    found = []
    for start in range(0, len(lines) - RAW.steps + 1, RAW.hop):
        window = lines[start : start + RAW.steps]
        columns = [
            [(value - RAW.mean[c]) / RAW.deviation[c] for value in window[:, c]] for c in range(2)
        ]
        found.append(np.array(columns, np.float32))
    return found


@given(st.integers(5, 40), st.integers(0, 2**32 - 1))
def test_windows_are_those_of_a_slow_definition(count: int, seed: int) -> None:
    lines = np.random.default_rng(seed).normal(0, 5, (count, 2)).astype(np.float32)
    np.testing.assert_allclose(RAW.inputs(lines), naive(lines), rtol=1e-5, atol=1e-5)


def test_a_file_gives_the_inputs_of_its_numbers(tmp_path: Path) -> None:
    lines = np.random.default_rng(0).normal(0, 5, (14, 2)).astype(np.float32)
    found = RAW.read(write(tmp_path / "a.csv", lines))
    assert found.shape == (5, *RAW.shape) and found.dtype == np.float32
    assert np.array_equal(found, RAW.inputs(lines))


def test_eval_tells_the_class_of_each_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)).eval()
    lines = np.random.default_rng(0).normal(0, 5, (60, 2)).astype(np.float32)
    inputs = RAW.inputs(lines)
    saved = edge.export_model(net, inputs, tmp_path / "m.tflite", raw_input=RAW)
    one, other = (write(tmp_path / f"{n}.csv", lines[n:]) for n in (0, 51))
    words = f"eval {saved.path} --input {one} --input {other}"
    assert fedkit(f"{words} --json", monkeypatch) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    outputs = np.asarray(edge.open_artifact(saved.path).predict(inputs))
    assert [row["class"] for row in rows[:28]] == [RAW.name(int(o.argmax())) for o in outputs]
    assert [(row["file"], row["part"]) for row in rows[28:]] == [
        (str(other), "1 to 5"),
        (str(other), "3 to 7"),
        (str(other), "5 to 9"),
    ]
    assert fedkit(words, monkeypatch) == 0
    assert "55 to 59" in capsys.readouterr().out


GOOD = "x,y\n" + "1,2\n" * 9


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", r"has 0 columns 'y' in its first line"),
        (b"x,z\n1,2\n", r"has 0 columns 'y' in its first line, which is \['x', 'z'\]"),
        (b"y,x,y\n1,2,3\n", r"has 2 columns 'y'"),
        (GOOD[:12].encode(), "has 2 lines of numbers; a window takes 5"),
        (b"x,y\n", "has 0 lines of numbers"),
        ((GOOD + "1,red\n").encode(), "line 11: y is 'red', no finite number"),
        ((GOOD + "nan,1\n").encode(), "line 11: x is 'nan', no finite number"),
        ((GOOD + "1e99,1\n").encode(), "line 11: x is '1e99', no finite number"),
        ((GOOD + "inf,1\n").encode(), "no finite number"),
        ((GOOD + ",1\n").encode(), "line 11: x is '', no finite number"),
        ((GOOD + "1\n").encode(), "line 11 has 1 values, and the first line names 2"),
        ((GOOD + "1,2,3\n").encode(), "line 11 has 3 values"),
        ((GOOD + '"1,2\n').encode(), "is no .csv file in UTF-8"),
        (b"x,y\n\xff\xfe,1\n", "is no .csv file in UTF-8"),
        (b"x,y\n" + b"1" * 200_000 + b",2\n", "is no .csv file in UTF-8"),
    ],
)
def test_a_bad_file_is_named(content: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=text) as told:
        RAW.read(path)
    assert str(told.value).startswith(str(path)) and len(str(told.value)) < 500


@pytest.mark.parametrize("content", ["\ufeff" + GOOD, GOOD.replace("\n", "\r\n"), GOOD + "\n\n"])
def test_files_of_other_programs_are_read(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(content.encode())
    assert RAW.read(tmp_path / "x.csv").shape == (3, 2, 5)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(DataError, match="cannot be read"):
            RAW.read(path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"columns": ()}, "give names"),
        ({"columns": ("x", "x")}, "no two alike"),
        ({"columns": ("x", "")}, "a column is called ''"),
        ({"steps": 0}, "steps is 0"),
        ({"hop": 1.5}, "hop is 1.5"),
        ({"mean": (1.0,)}, "give a float for each of 2 columns"),
        ({"mean": (1.0, float("inf"))}, "give a float for each"),
        ({"deviation": (1.0, 0.0)}, "each must be above 0"),
        ({"classes": ("a\x1b",)}, "a class is called"),
    ],
)
def test_what_is_no_raw_input_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        replace(RAW, **changes)


def test_records_give_back_what_they_are_of() -> None:
    record = json.loads(json.dumps(RAW.to_json()))
    assert of_record(record) == RAW
    for spoilt in ({**record, "more": 1}, {**record, "mean": "ab"}, {**record, "hop": None}):
        with pytest.raises(ConfigError, match="not a raw input known here"):
            of_record(spoilt)
    del record["steps"]
    with pytest.raises(ConfigError, match="not a raw input known here"):
        of_record(record)
