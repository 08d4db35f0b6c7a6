"""Pictures of the jobs show the figures of their result."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fedkit.report.job_plots import job_plots

RESULT = Path(__file__).parents[2] / "results" / "jobs.json"


def drawn(tmp_path: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    path = tmp_path / "jobs.json"
    path.write_text(json.dumps({"rows": rows}))
    return job_plots(path)


def labels(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_every_figure_stands_above_its_bar(tmp_path: Path) -> None:
    rows = json.loads(RESULT.read_text())["rows"]
    found = drawn(tmp_path, rows)
    names = {"damaged-digits": "anomaly"}
    assert set(found) == {f"jobs-{names.get(row['job'], row['job'])}.svg" for row in rows}
    for row in rows:
        name = names.get(row["job"], row["job"])
        told = labels(found[f"jobs-{name}.svg"])
        wanted = [f"{row[key]:.3f}" for key in ("float", "int8")]
        wanted += [f"{row[key]['instructions'] / 1e6:.2f}" for key in ("cortex-m4", "cortex-a53")]
        wanted += [f"{value:.2f}" for value in row.get("roc_auc_by_type", {}).values()]
        assert set(wanted) <= set(told)


def test_a_result_of_one_job_has_one_picture(tmp_path: Path) -> None:
    rows = [row for row in json.loads(RESULT.read_text())["rows"] if row["job"] == "motions"]
    (before,) = drawn(tmp_path, rows).values()
    rows[0]["int8"] = 0.125
    (after,) = drawn(tmp_path, rows).values()
    assert "0.125" in labels(after) and "0.125" not in labels(before)


@pytest.mark.parametrize("name", ["anomaly", "keywords", "keywords-kwt", "motions", "motions-gru"])
def test_a_tutorial_shows_its_pictures(name: str) -> None:
    page = RESULT.parents[1] / "docs" / "tutorials" / f"{name.partition('-')[0]}.md"
    assert f"(../../results/jobs-{name}.svg)" in page.read_text()
    assert (RESULT.parent / f"jobs-{name}.svg").stat().st_size < 10**6
