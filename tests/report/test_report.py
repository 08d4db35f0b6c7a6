from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from fedkit.bench.readme import outdated, render, rendered
from fedkit.cli.tables import compare_table
from fedkit.report import comparison
from fedkit.report import plots as plots_module
from fedkit.report.plots import bytes_plot, density_plot, plots
from tests.report.comparisons import METHODS, result_of, row, some

accuracies = st.lists(st.floats(0, 1), min_size=2, max_size=6)


@given(st.lists(accuracies, min_size=1, max_size=4))
def test_means_and_deviations_are_those_of_the_textbook(groups: list[list[float]]) -> None:
    rows = [
        row(f"m{number}", 0.1, seed, accuracy=accuracy)
        for number, group in enumerate(groups)
        for seed, accuracy in enumerate(group)
    ]
    found = {mean["method"]: mean for mean in comparison.means(result_of(rows))}
    assert len(found) == len(groups)
    for number, group in enumerate(groups):
        mean = sum(group) / len(group)
        squares = sum((accuracy - mean) ** 2 for accuracy in group)
        told = found[f"m{number}"]
        assert told["accuracy"] == pytest.approx(mean, abs=1e-12)
        assert told["accuracy_sd"] == pytest.approx(math.sqrt(squares / (len(group) - 1)), abs=1e-9)
        assert told["seeds"] == len(group)
        sent = sum(3e6 + 2 * round(5e6) + seed for seed in range(len(group))) / len(group)
        assert told["bytes"] == pytest.approx(sent)
        assert told["bytes_device_round"] == pytest.approx(sent / 5 / 4)


def test_one_seed_has_no_deviation() -> None:
    (mean,) = comparison.means(result_of([row("a", 0.1, 1)]))
    assert mean["accuracy_sd"] is None
    assert "±" not in str(comparison.table(result_of([row("a", 0.1, 1)])))


def test_cells_are_averaged_over_seeds_alone_whatever_the_axes_are() -> None:
    axes = itertools.product((0.1, 1.0), (1, 5), (1, 2))
    rows = [row("a", 0.1, seed, alpha=alpha, epochs=epochs) for alpha, epochs, seed in axes]
    result = result_of(rows, "alpha", "epochs", "seed")
    found = [(mean["alpha"], mean["epochs"], mean["seeds"]) for mean in comparison.means(result)]
    assert sorted(found) == [(0.1, 1, 2), (0.1, 5, 2), (1.0, 1, 2), (1.0, 5, 2)]
    head, lines = comparison.table(result)
    assert head == ["epochs", "alpha", "method", "density 0.1"]
    assert sorted(line[:3] for line in lines) == [
        ["1", "0.1", "a"],
        ["1", "1.0", "a"],
        ["5", "0.1", "a"],
        ["5", "1.0", "a"],
    ]


def test_a_table_has_a_line_per_method_and_a_column_per_density() -> None:
    rows = [row("dense", 1.0, s, accuracy=0.9) for s in (1, 2)]
    rows += [row("thin", 0.1, s, accuracy=a) for s, a in ((1, 0.7), (2, 0.8))]
    result = result_of(rows, "method", "density", "seed")
    head, lines = comparison.table(result)
    assert head == ["method", "density 0.1", "density 1"]
    assert lines == [
        ["dense", "", "90.00 ± 0.00 %, 5.15 MB"],
        ["thin", "75.00 ± 7.07 %, 0.65 MB", ""],
    ]
    assert compare_table(result).row_count == 2


def test_readme_gets_a_table_that_names_the_commits_of_its_cells(tmp_path: Path) -> None:
    result = some(["thin"])
    result["rows"][0]["commit"] = "decade"
    (tmp_path / "compare-some.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match="0 places for <!-- table compare-some -->"):
        render("no place", tmp_path)
    place = "Before\n<!-- table compare-some -->\n<!-- end -->\nAfter\n"
    text = render(place, tmp_path)
    assert render(text, tmp_path) == text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and {line.count("|") for line in lines} == {6}
    assert "Made by `fedkit compare some.toml`, seeds 0, 1, 2, commit c0ffee, decade." in text
    (tmp_path / "compare-some.json").unlink()
    assert render(place, tmp_path) == place
    with pytest.raises(FileNotFoundError, match=r"compare-some\.json"):
        render(text, tmp_path)


def test_a_picture_that_is_missing_altered_or_of_no_result_is_found(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "compare-some.json").write_text(json.dumps(some(["thin"])))
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table compare-some -->\n<!-- end -->\n")
    drawn = [results / "compare-some-bytes.svg", results / "compare-some-density.svg"]
    for path, content in rendered(tmp_path).items():
        path.write_text(content, encoding="utf-8")
    assert outdated(tmp_path) == []
    drawn[0].unlink()
    drawn[1].write_text("<svg/>")
    (results / "compare-gone-bytes.svg").write_text("<svg/>")
    readme.write_text(readme.read_text().replace("thin", "thick"))
    assert outdated(tmp_path) == [results / "compare-gone-bytes.svg", readme, *drawn]


def texts(svg: str) -> list[str]:
    return [
        node.text or "" for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")
    ]


@pytest.mark.parametrize("plot", [bytes_plot, density_plot])
def test_a_picture_is_small_the_same_each_time_and_names_all_it_shows(plot: Any) -> None:
    result = some(METHODS)
    svg = plot(result)
    assert plot(result) == svg
    assert len(svg.encode()) < 100_000
    written = texts(svg)
    assert {"dense", *METHODS} <= set(written)
    assert any(text.startswith("accuracy versus") for text in written)
    assert "some (digits, resnet8, alpha 0.5)" in written
    assert any(text.startswith("accuracy (%), mean") for text in written)
    assert any(text.endswith(("(MB)", "weights (%)")) for text in written)


@pytest.mark.parametrize("name", ["some", "a-name-of-a-comparison-" * 6])
def test_a_title_is_not_cut_off(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    drawn: list[Figure] = []
    draw = plots_module._figure

    def keep(*how: Any) -> Figure:
        drawn.append(draw(*how))
        return drawn[-1]

    monkeypatch.setattr(plots_module, "_figure", keep)
    density_plot({**some(METHODS), "name": name})
    (picture,) = drawn
    picture.draw_without_rendering()
    page = picture.get_window_extent()
    (axes,) = picture.axes
    written = [*picture.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
    assert any(name[:20] in text.get_text() for text in written)
    for text in written:
        assert page.x0 <= text.get_window_extent().x0, text.get_text()
        assert text.get_window_extent().x1 <= page.x1, text.get_text()


def test_a_picture_shows_the_figures(tmp_path: Path) -> None:
    path = tmp_path / "compare-some.json"
    path.write_text(json.dumps(some(["thin"])))
    before = plots(path)
    assert list(before) == ["compare-some-bytes.svg", "compare-some-density.svg"]
    changed = some(["thin"])
    changed["rows"][-1]["accuracy"] += 0.1
    path.write_text(json.dumps(changed))
    after = plots(path)
    assert all(before[name] != after[name] for name in before)
