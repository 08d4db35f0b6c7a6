"""The page of a comparison: its numbers are those of the result, finished or not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fedkit.cli.report import report as write_report
from fedkit.core.errors import CheckpointError, ConfigError
from fedkit.report import plotly_library
from fedkit.report.comparison import means
from fedkit.report.comparison_page import comparison_report
from fedkit.report.comparison_reading import PLAN, digest, is_comparison, read_comparison
from tests.report.comparisons import METHODS, of_values, result_of, row, some
from tests.report.parsed import Page
from tests.report.run_folders import EVIL, make_run, step

PUBLISHED = Path(__file__).resolve().parents[2] / "results"


@pytest.fixture(autouse=True)
def small_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave 2 MB of JavaScript out of pages that are only parsed."""
    monkeypatch.setattr(plotly_library, "packed", lambda: "")


def written(folder: Path, result: dict[str, Any]) -> Path:
    path = folder / "compare-some.json"
    path.write_text(json.dumps(result))
    return path


def page_of(folder: Path, result: dict[str, Any]) -> Page:
    return Page(comparison_report(written(folder, result)))


def test_lines_are_means_and_bands_go_from_the_least_to_the_largest(tmp_path: Path) -> None:
    result = some(METHODS[:3])
    page = page_of(tmp_path, result)
    (traces, layout), *_ = page.figures
    assert layout["xaxis"]["type"] == "log"
    for mean in means(result):
        (line,) = [t for t in traces if t["name"] == mean["method"] and "text" in t]
        place = line["x"].index(mean["density"])
        assert line["y"][place] == mean["accuracy"]
        bands = [t for t in traces if t.get("legendgroup") == mean["method"] and t is not line]
        if mean["method"] == "dense":
            assert not bands
            up, down = line["error_y"]["array"][0], line["error_y"]["arrayminus"][0]
            ends = (mean["accuracy"] - down, mean["accuracy"] + up)
        else:
            (band,) = bands
            low, high = band["y"][:3], band["y"][:2:-1]
            ends = (low[place], high[place])
        assert ends == pytest.approx((mean["accuracy_least"], mean["accuracy_most"]))
    assert "Bands go from the least to the largest value over the seeds." in page.text


def test_differences_are_drawn_with_their_intervals_and_told(tmp_path: Path) -> None:
    result = of_values(good=[0.9, 0.91, 0.92], bad=[0.1, 0.15, 0.12], near=[0.9, 0.92, 0.91])
    page = page_of(tmp_path, result)
    ((trace,),) = [t for t, _ in page.figures if "error_x" in t[0]]
    assert trace["x"] == pytest.approx([0.0, 0.78667], abs=1e-4)
    assert all(half > 0 for half in trace["error_x"]["array"])
    told = {cells[0]: cells[-1] for cells in page.rows if " - " in cells[0]}
    assert told == {
        "best - other": "what it says",
        "good - bad": "they differ",
        "good - near": "no difference shown",
    }
    assert "so few seeds show large differences only" in page.text
    rows = page.file("differences")
    assert len(rows) == 3 and rows[-1]["one"] == "near" and rows[-1]["p_holm"] == ""


@pytest.mark.parametrize(("seeds", "words"), [(1, "With 1 seed nothing"), (2, "With 2 seeds n")])
def test_few_seeds_are_said_plainly(tmp_path: Path, seeds: int, words: str) -> None:
    assert words in page_of(tmp_path, some(METHODS[:3], seeds)).text


def test_one_method_alone_is_compared_with_nothing(tmp_path: Path) -> None:
    page = page_of(tmp_path, of_values(a=[0.5, 0.6, 0.7]))
    assert "Nothing ran beside another line at the same density." in page.text
    assert len(page.figures) == 2


def test_values_over_rounds_are_drawn_where_they_are_known(tmp_path: Path) -> None:
    result = some(METHODS[:2])
    for each in result["rows"]:
        each["accuracies"] = [each["accuracy"] * part for part in (0.25, 0.5, 1)]
    result["grid"]["run"]["measure_every"] = 2
    result["rows"] = [{**each, "rounds": 5} for each in result["rows"]]
    charts = [(t, y) for t, y in page_of(tmp_path, result).figures if "round" in str(y["xaxis"])]
    over = [t for t, y in charts if y["xaxis"]["title"]["text"] == "round"]
    assert len(over) == 3
    assert all(trace["x"][:3] == [2, 4, 5] for traces in over for trace in traces)
    assert {t["name"] for t in over[0]} == {"dense", *METHODS[:2]}
    result["grid"]["run"]["measure_every"] = 3  # which does not fit the values
    charts = [(t, y) for t, y in page_of(tmp_path, result).figures]
    assert all(y["xaxis"]["title"]["text"] != "round" for _, y in charts)


def test_files_hold_all_cells_and_means(tmp_path: Path) -> None:
    result = some(METHODS)
    page = page_of(tmp_path, result)
    cells = page.file("cells")
    assert [float(each["accuracy"]) for each in cells] == [r["accuracy"] for r in result["rows"]]
    found = {(m["method"], m["density"]): m["accuracy_sd"] for m in means(result)}
    told = {(m["method"], float(m["density"])): m["accuracy_sd"] for m in page.file("means")}
    assert {key: float(value) for key, value in told.items()} == pytest.approx(found)


def test_tasks_of_two_metrics_share_no_chart(tmp_path: Path) -> None:
    about = {"name": "error", "higher_is_better": False, "form": ".3g"}
    rows = [row(m, d, s, task="one") for m in "ab" for d in (0.1, 0.2) for s in range(3)]
    rows += [{**each, "task": "two", "metric": about} for each in rows]
    page = page_of(tmp_path, result_of(rows, "task", "method", "density", "seed"))
    names = [layout["yaxis"]["title"]["text"] for _, layout in page.figures]
    assert names.count("accuracy, mean") == names.count("error, mean") == 2
    assert "Error versus density, two (lower is better)" in page.text


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("compare-*.json")), ids=lambda p: p.stem)
def test_published_comparisons_have_a_page(path: Path) -> None:
    page = Page(comparison_report(path))
    assert page.unclosed == [] and len(page.figures) >= 2
    assert len(page.file("cells")) == len(json.loads(path.read_text())["rows"])
    assert "What is missing" not in page.text


# A grid that has not ended -----------------------------------------------------------------------


def grid_folder(folder: Path, rows: list[dict[str, Any]], planned: int) -> Path:
    folder.mkdir()
    cells = {}
    for number in range(planned):
        place = {"method": "a", "seed": number}
        cells[f"cell{number}.json"] = place
        if number < len(rows):
            cell = {"config": {}, "row": rows[number], "digest": digest(rows[number])}
            (folder / f"cell{number}.json").write_text(json.dumps(cell))
    plan = {"name": "some", "grid": {"run": {}, "axes": {"method": ["a"], "seed": [1]}},
            "command": "fedkit compare x", "cells": cells}  # fmt: skip
    (folder / PLAN).write_text(json.dumps(plan))
    return folder


def test_a_grid_that_has_not_ended_shows_its_cells_and_what_is_missing(tmp_path: Path) -> None:
    folder = grid_folder(tmp_path / "grid", [row("a", 0.1, seed) for seed in range(2)], 30)
    (folder / "cell1.json").write_text((folder / "cell1.json").read_text().replace("0.", "1.", 1))
    assert is_comparison(folder)
    page = Page(comparison_report(folder))
    assert ["cells", "1 of 30"] in page.rows
    assert "some: cell method=a seed=29: it has not run" not in page.text
    assert "some: cell method=a seed=1: its digest is another" in page.text
    assert "some: 19 more cells" in page.text


def test_a_grid_without_a_cell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no cell of .* can be shown yet"):
        read_comparison(grid_folder(tmp_path / "grid", [], 2))


def test_a_name_of_a_cell_leads_out_of_no_folder(tmp_path: Path) -> None:
    folder = grid_folder(tmp_path / "grid", [row("a", 0.1, 1)], 1)
    (folder / "cell0.json").rename(tmp_path / "cell0.json")
    plan = json.loads((folder / PLAN).read_text())
    plan["cells"] = {"../cell0.json": {}, str(tmp_path / "cell0.json"): {}}
    (folder / PLAN).write_text(json.dumps(plan))
    with pytest.raises(CheckpointError, match="it has not run"):
        read_comparison(folder)


# What others wrote -------------------------------------------------------------------------------

ODD: list[Any] = [math.nan, math.inf, None, "x", [], {}, -1, 2**70, 10**400, True, EVIL]


@pytest.mark.parametrize("value", ODD, ids=[repr(value)[:12] for value in ODD])
def test_rows_that_hold_anything_end_no_page(tmp_path: Path, value: Any) -> None:
    sound = some(METHODS[:2])
    keys = [*sound["rows"][0], "metric", "accuracies", "commit", "train_flops"]
    sound["rows"] += [{**row("a", 0.1, 1), key: value} for key in keys]
    sound["rows"].append(value)
    sound["grid"]["run"] = {"measure_every": value, "x": value}
    sound["processor"] = value
    page = page_of(tmp_path, sound)
    assert page.unclosed == [] and page.tags.count("script") == 3
    assert "What is missing" in page.text


def test_text_of_others_is_text(tmp_path: Path) -> None:
    rows = [row(EVIL, d, s, task=EVIL, model=EVIL, commit=EVIL, x=EVIL * (1 + s % 2))
            for d in (0.1, 0.2) for s in range(3)]  # fmt: skip
    result = {**result_of(rows, "x"), "name": EVIL, "command": EVIL}
    html = comparison_report(written(tmp_path, result))
    page = Page(html)
    assert page.unclosed == [] and page.tags.count("script") == 3 == html.count("<script")
    assert not set(page.tags) & {"img", "b"}
    for traces, _ in page.figures:
        assert not any("<" in t["name"] for t in traces)


DAMAGED = {
    "": "Expecting value",
    "[]": "not a JSON object",
    "{}": "no name and grid",
    '{"name": "a", "grid": {"axes": {}}}': "no rows of cells",
    '{"name": "a", "grid": {"axes": {}}, "benchmark": "ops", "rows": []}': "no rows of cells",
    '{"name": "a", "grid": {"axes": {}}, "benchmark": "compare", "rows": []}': "there is none",
    "[" * 100_000: "recursion",
}


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_what_is_not_a_result_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=DAMAGED[text]):
        comparison_report(path)


def test_a_page_is_written_beside_a_result_and_shows_one_comparison_alone(tmp_path: Path) -> None:
    path = written(tmp_path, some(METHODS[:2]))
    told = write_report([path], None)
    assert told["path"] == str(tmp_path / "compare-some.html")
    folder = grid_folder(tmp_path / "grid", [row("a", 0.1, 1)], 1)
    assert write_report([folder], None)["path"] == str(folder / "report.html")
    run = make_run(tmp_path / "run", [step(1)]).path
    for both in ([path, run], [run, folder], [path, folder]):
        with pytest.raises(ConfigError, match="a page shows one of them alone"):
            write_report(both, tmp_path / "x.html")


def test_a_run_folder_that_holds_a_file_of_that_name_is_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run.json", [step(1)]).path
    (run / PLAN).write_text("{}")
    assert not is_comparison(run) and not is_comparison(tmp_path)
    assert write_report([run], None)["path"] == str(run / "report.html")


def test_many_tasks_are_drawn_in_part(tmp_path: Path) -> None:
    rows = [row(m, 0.1, s, task=f"task{n}") for n in range(12) for m in "ab" for s in range(3)]
    page = page_of(tmp_path, result_of(rows, "task", "method", "seed"))
    assert "Of 12 tasks, the first 8 are drawn." in page.text
    assert len(page.figures) == 3 * 8 and len(page.file("cells")) == 72


def test_a_large_grid_is_drawn_in_part_and_is_whole_in_its_files(tmp_path: Path) -> None:
    rows = [row(f"m{n}", d, s) for n in range(80) for d in (0.01, 0.1) for s in range(5)]
    page = page_of(tmp_path, result_of(rows, "method", "density", "seed"))
    assert "Of 80 lines, 40 are drawn." in page.text
    assert len(page.file("cells")) == 800
    assert len(page.file("differences")) == 2 * math.comb(80, 2)
