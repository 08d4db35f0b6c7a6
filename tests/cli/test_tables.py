"""Tables of 80 columns: paths break behind slashes, lines of bars follow their values."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from fedkit.cli import summary
from fedkit.cli.fitting import broken
from fedkit.cli.tables import compare_table, rows_table, run_table, spark
from fedkit.cli.terminal import Terminal
from tests.report.run_folders import make_run, step

BARS = "▁▂▃▄▅▆▇█"
names = st.text("ab-.", min_size=1, max_size=30)


@given(st.lists(names, min_size=1, max_size=12), st.booleans())
def test_a_path_breaks_behind_slashes_alone(parts: list[str], absolute: bool) -> None:
    path = "/" * absolute + "/".join(parts)
    lines = broken(path, 36).split("\n")
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


RESULTS = sorted((Path(__file__).parents[2] / "results").glob("*.json"))
WORDS = re.compile(r"[^\s│┃┏┓┗┛┌┐└┘├┤┬┴┼━─┡┩╇╵╷,]+")


def is_whole(word: str, text: str) -> bool:
    """Whether a word stands in a text, or in parts that end in a slash."""
    return word in text or all(part in text for part in re.split("(?<=/)", word))


def is_fitting(text: str, cells: list[str]) -> bool:
    words = {word for cell in cells for word in WORDS.findall(cell) if len(word) <= 50}
    return max(map(len, text.splitlines())) <= 80 and all(is_whole(w, text) for w in words)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_published_rows_fit_80_columns_and_no_word_is_cut(path: Path) -> None:
    result = json.loads(path.read_text())
    if not isinstance(result.get("rows"), list):
        pytest.skip("it has no rows")
    if path.stem.startswith("compare"):
        table = compare_table(result)
    else:
        table = rows_table({"benchmark": path.stem, **result})
    cells = [str(cell) for column in table.columns for cell in (column.header, *column.cells)]
    assert is_fitting(shown(table), cells)


cells = st.text("ab -/,0", max_size=30).map(str.strip)


@given(
    st.integers(1, 9).flatmap(
        lambda columns: st.lists(
            st.lists(cells, min_size=columns, max_size=columns), min_size=1, max_size=5
        )
    ),
    st.booleans(),
)
def test_any_table_fits(rows: list[list[str]], with_footer: bool) -> None:
    table = Table(*(f"head{n} of_it" for n in range(len(rows[0]))), show_footer=with_footer)
    for row in rows:
        table.add_row(*row)
    text = shown(table)
    assert is_fitting(text, [cell for row in rows for cell in row])


def test_rows_of_different_keys_stay_in_their_columns() -> None:
    rows = [{"a": 1, "b": None}, {"b": "x", "c": {"some_key": 0.25}}]
    text = shown(rows_table({"benchmark": "t", "rows": rows}))
    assert [line.split() for line in text.splitlines() if "│" in line] == [
        ["│", "1", "│", "│", "│"],
        ["│", "│", "x", "│", "some", "key", "0.25", "│"],
    ]


def test_a_title_that_is_longer_than_its_table_stands_above_it_whole() -> None:
    title = "/srv/data/somebody/projects/fleet/runs/20261129-170000-digits/model-int8.tflite"
    table = Table("a", title=title)
    table.add_row("1")
    assert shown(table).splitlines()[0].strip() == title


def test_a_long_text_of_others_is_wrapped_and_harmless() -> None:
    table = Table("name", "reason")
    table.add_row("x" * 200, "\x1b[2J" + "long " * 100_000)
    text = shown(table)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("x") >= 200 and text.count("long") == 100_000 and "\x1b" not in text
