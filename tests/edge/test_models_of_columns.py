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
from edge.artifact import Artifact
from edge.check import graph_of
from edge.define.interpret_int8 import evaluate_int8
from fedkit.core.errors import ConfigError, DataError
from fedkit.preprocess.columns import CsvColumns
from fedkit.preprocess.records import of_record
from tests.command_line import fedkit
from tests.edge.targets.c99.library import need_gcc
from tests.edge.told_by_c import FLAGS, built, defined, refused, told
from tests.sets import slow_but

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


def made(path: Path, raw: CsvColumns) -> Artifact:
    torch.manual_seed(0)
    lines = np.random.default_rng(0).normal(0, 5, (60, 2)).astype(np.float32)
    layers = nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * (raw.steps - 2), 3)
    return edge.export_model(nn.Sequential(*layers).eval(), raw.inputs(lines), path, raw_input=raw)


RAWS = {
    "scaled": RAW,
    "as it is": CsvColumns(("y", "x"), 5, 3),
    "apart": replace(RAW, hop=7, deviation=(1e-30, 3e38)),
}


def of_all_floats() -> np.ndarray[Any, Any]:
    """Numbers of any size, those between two integers of an input, and their neighbours."""
    draws = np.random.default_rng(1)
    any_size = draws.integers(0, 2**32, 400, np.uint32).view(np.float32)
    any_size = any_size[np.isfinite(any_size) & (np.abs(any_size) < 2.9e38)]
    halves = np.arange(-300, 300, 2, np.float32) / 2 + 1
    near = [np.nextafter(halves, np.float32(sign * np.inf)) for sign in (-1, 1)]
    ends = np.array([0.0, -0.0, 1e-45, -1e-45, 2.9e38, -2.9e38], np.float32)
    found = np.concatenate([any_size, halves, *near, ends, draws.normal(0, 9, 300)])
    found = found.astype(np.float32)
    return np.stack([found, draws.permutation(found)], axis=1)


@pytest.mark.parametrize("flags", slow_but(["plain"], FLAGS))
@pytest.mark.parametrize("kind", slow_but(["scaled", "apart"], RAWS))
def test_the_c_program_says_of_files_what_eval_says(kind: str, flags: str, tmp_path: Path) -> None:
    need_gcc()
    raw = RAWS[kind]
    saved = made(tmp_path / "series-c99", raw)
    program = built(saved, "series", FLAGS[flags])
    lines = of_all_floats()
    few, many = write(tmp_path / "few.csv", lines[:5]), write(tmp_path / "many.csv", lines)
    inputs = [raw.read(file) for file in (few, many)]
    wanted = defined(saved, np.concatenate(inputs))
    heard, outputs = told(program, [few, many])
    np.testing.assert_array_equal(outputs, wanted)
    places = [(few, 0), *((many, number) for number in range(len(inputs[1])))]
    assert heard == [
        [str(file), raw.part(number), raw.name(int(each.argmax()))]
        for (file, number), each in zip(places, outputs, strict=True)
    ]


def test_integers_between_two_are_rounded_as_the_definition_does(tmp_path: Path) -> None:
    """With a scale of a power of two, halves are hit exactly."""
    need_gcc()
    raw = CsvColumns(("y", "x"), 5, 1)
    saved = made(tmp_path / "series-c99", raw)
    tables = saved.path / "model_series_tables.h"
    scale = next(line for line in tables.read_text().splitlines() if "_SCALE " in line)
    tables.write_text(tables.read_text().replace(scale, f"{scale.rsplit(' ', 1)[0]} 0.5f"))
    program = built(saved, "series")
    port = replace(saved.inputs[0], scale=0.5)
    lines = of_all_floats()
    codes = port.quantize(raw.inputs(lines).transpose(0, 2, 1)[:, None])
    wanted = np.concatenate(
        [evaluate_int8(graph_of(saved), each[None], "half_up") for each in codes]
    )
    np.testing.assert_array_equal(told(program, [write(tmp_path / "a.csv", lines)])[1], wanted)


def test_the_c_program_takes_files_of_other_programs_and_names_bad_ones(tmp_path: Path) -> None:
    need_gcc()
    program = built(made(tmp_path / "series-c99", RAW), "series")
    path = tmp_path / "x.csv"
    for content in (*OTHERS, QUOTED):
        path.write_bytes(content.encode())
        assert RAW.read(path).shape[0] == len(told(program, [path])[0]) == 3
    for spoilt, text in BAD_FOR_C:
        path.write_bytes(spoilt)
        assert text in refused(program, path)
    assert "cannot be opened" in refused(program, tmp_path / "none.csv")


GOOD = "x,y\n" + "1,2\n" * 9
BAD_FOR_C: list[tuple[bytes, str]] = [
    (b"", "has 0 columns 'y' in its first line"),
    (b"\xef\xbb", "has 0 columns 'y' in its first line"),
    (b"y,x,y\n1,2,3\n", "has 2 columns 'y'"),
    (b"y" * 600 + b",x\n", "has 0 columns 'y'"),
    (GOOD[:12].encode(), "has 2 lines of numbers; a window takes 5"),
    ((GOOD + "1,red\n").encode(), ", line 11: y is no finite number"),
    ((GOOD + "nan,1\n").encode(), ", line 11: x is no finite number"),
    ((GOOD + "1e99,1\n").encode(), ", line 11: x is no finite number"),
    ((GOOD + "0x1,1\n").encode(), ", line 11: x is no finite number"),
    ((GOOD + "1_0,1\n").encode(), ", line 11: x is no finite number"),
    ((GOOD + ",1\n").encode(), ", line 11: x is no finite number"),
    ((GOOD + "-,1\n").encode(), ", line 11: x is no finite number"),
    ((GOOD + "1" * 600 + ",1\n").encode(), ", line 11: x is no finite number"),
    ((GOOD + "1\n").encode(), ", line 11 has 1 values, and the first line names 2"),
    ((GOOD + "1,2,3\n").encode(), ", line 11 has 3 values"),
    ((GOOD + '"1,2\n').encode(), ", line 11 is none of a .csv file"),
    ((GOOD + '"1"2,2\n').encode(), ", line 11 is none of a .csv file"),
    (b'x,y,"z\n1,2,3\n', "is no .csv file"),
]


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


OTHERS = ("\ufeff" + GOOD, GOOD.replace("\n", "\r\n"), GOOD + "\n\n", GOOD.replace("\n", "\r"))
QUOTED = '"x", y ,"a ""b"", c"\n' + '"1", 2e0 ,"\n"\n' * 9


@pytest.mark.parametrize("content", [*OTHERS, QUOTED])
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
        ({"mean": (1.0, 1e39)}, "give a float for each"),
        ({"deviation": (1.0, 1e-60)}, "each must be above 0"),
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
