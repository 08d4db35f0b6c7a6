from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedkit.bench.readme import ROOT, TABLES, render
from fedkit.bench.wire import bench_wire
from fedkit.cli.tables import rows_table


def test_wire_counts_the_real_resnet18_and_meets_its_bounds() -> None:
    result = bench_wire(quick=True)
    assert result["parameters"] == 11_173_962
    assert [row["density"] for row in result["rows"]] == [0.01, 0.05, 0.1]
    for row in result["rows"]:
        sent = row["bytes_up"] + row["bytes_down"]
        assert row["ratio_dense"] == pytest.approx(row["bytes_dense_fp32"] / sent, rel=1e-3)
        assert row["bytes_dense_fp32"] > 2 * 4 * result["parameters"]
        assert 0.9 < row["ratio_bound"] <= 1.1
    assert result["rows"][0]["ratio_dense"] >= 75
    assert rows_table(result).row_count == 3


def test_readme_tables_are_those_of_the_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert render(text, ROOT / "results") == text


def test_a_result_that_changed_shows(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in TABLES:
        result = json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))
        (tmp_path / f"{name}.json").write_text(json.dumps({**result, "commit": "0ther"}))
    assert render(text, tmp_path) != text
    with pytest.raises(ValueError, match="0 places for table"):
        render("no table here", tmp_path)


def test_bench_prints_one_json_object_and_refuses_unknown_names() -> None:
    bad = subprocess.run(
        [sys.executable, "-m", "fedkit", "bench", "speed"], capture_output=True, text=True
    )
    assert bad.returncode == 2
    assert "unknown benchmark 'speed'; allowed: wire" in bad.stderr
