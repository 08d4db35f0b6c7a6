"""Tables of 80 columns: paths break behind slashes, lines of bars follow their values."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkit.cli import summary
from fedkit.cli.tables import broken, run_table, spark
from fedkit.cli.terminal import Terminal
from tests.report.run_folders import make_run, step

BARS = "▁▂▃▄▅▆▇█"
names = st.text("ab-.", min_size=1, max_size=30)


@given(st.lists(names, min_size=1, max_size=12), st.booleans())
def test_a_path_breaks_behind_slashes_alone(parts: list[str], absolute: bool) -> None:
    path = "/" * absolute + "/".join(parts)
    lines = broken(path).split("\n")
    assert "".join(lines) == path
    assert all(line.endswith("/") for line in lines[:-1])
    assert all(len(line) <= 36 for line in lines)


def shown(table: Any) -> str:
    out = io.StringIO()
    Terminal(file=out, width=80).print(table)
    return out.getvalue()


def test_no_name_of_an_artifacts_path_is_cut(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [step(1)]).path
    path = "/srv/data/somebody/projects/fleet/runs/20261129-170000-digits/model-int8.tflite"
    found = {**summary.figures(make_run(tmp_path / "other", [step(1)])), "finished": True,
             "artifact": path, "artifact_bytes": 123_456, "test_examples": 9}  # fmt: skip
    text = shown(run_table(found))
    assert max(map(len, text.splitlines())) <= 80
    assert all(name in text for name in path.split("/"))
    assert folder.is_dir()


@given(st.lists(st.floats(-1e6, 1e6) | st.none() | st.just(math.nan), max_size=200))
def test_bars_rise_with_their_values(values: list[float | None]) -> None:
    line = spark(values)
    numbers = [each for each in values if each is not None and not math.isnan(each)]
    if not numbers:
        assert line == ""
        return
    assert len(line) == min(30, len(values)) and set(line) <= {*BARS, " "}
    if len(values) <= 30:
        drawn = [(value, bar) for value, bar in zip(values, line, strict=True) if bar != " "]
        assert [value for value, _ in drawn] == numbers
        order = np.argsort(numbers, kind="stable")
        heights = [BARS.index(drawn[each][1]) for each in order]
        assert heights == sorted(heights) and heights[0] == 0
        assert len(set(numbers)) == 1 or heights[-1] == 7


@pytest.mark.parametrize("values", [[math.inf, 1.0, 2.0], [-math.inf, 1.0, 2.0]])
def test_what_is_infinite_is_a_gap(values: list[float]) -> None:
    assert spark(values) == " ▁█"


def test_show_draws_the_steps_of_a_run(tmp_path: Path) -> None:
    steps = [step(n, accuracy=n / 8, loss=None if n else math.nan) for n in range(8)]
    path = make_run(tmp_path / "run", steps).path
    text = shown(summary.table_of(path)(summary.show(path)))
    assert BARS in text and "accuracy over rounds" in text
    assert "loss over rounds" not in text
    assert max(map(len, text.splitlines())) <= 80
