from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fedkit.bench import wire
from fedkit.bench.readme import ROOT, outdated, pages, render
from fedkit.bench.registry import BENCHMARKS
from fedkit.bench.run import make_row
from fedkit.cli.tables import rows_table
from fedkit.core.errors import ConfigError
from tests.sets import slow

MEASURED = {"seconds": 10.0, "seconds_rounds": 10.0, "seconds_total": 20.0, "accuracy": 0.5}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_a_function_and_has_a_table(name: str) -> None:
    module = import_module(f"fedkit.bench.{name}")
    assert callable(getattr(module, f"bench_{name}"))
    assert callable(module.table)
    assert BENCHMARKS[name].about


def test_no_module_has_a_benchmark_that_is_not_found() -> None:
    having = {
        path.stem
        for path in (ROOT / "fedkit" / "bench").glob("*.py")
        if f"\ndef bench_{path.stem}(" in path.read_text(encoding="utf-8")
    }
    assert having == set(BENCHMARKS)


def test_benchmarks_are_listed_without_what_they_measure() -> None:
    code = "import fedkit.bench.registry, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert not {"torch", "numpy", "flwr", "edge"} & set(loaded.split())


@pytest.mark.parametrize("densities", [(0.01,), slow(((0.01, 0.05, 0.1),))])
def test_wire_counts_the_real_resnet18_and_meets_its_bounds(
    densities: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_DENSITIES", densities)
    result = wire.bench_wire(quick=True)
    assert result["parameters"] == 11_173_962
    assert [(row["density"], row["wire"]) for row in result["rows"]] == [
        (density, kind) for density in densities for kind in ("fp32", "fp16")
    ]
    for row in result["rows"]:
        sent = row["bytes_up"] + row["bytes_down"]
        assert row["ratio_dense"] == pytest.approx(row["bytes_dense_fp32"] / sent, rel=1e-3)
        assert row["bytes_dense_fp32"] > 2 * 4 * result["parameters"]
        assert 0.9 < row["ratio_bound"] <= 1.1
        assert row["ratio_update_4bit"] >= 7
    assert result["rows"][0]["ratio_dense"] >= 75
    assert result["rows"][1]["ratio_dense"] >= 150
    assert rows_table(result).row_count == len(result["rows"])


def test_tables_and_pictures_are_those_of_the_results() -> None:
    assert outdated(ROOT) == []


def test_a_result_that_changed_shows(tmp_path: Path) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in pages(ROOT))
    for path in (ROOT / "results").glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        (tmp_path / path.name).write_text(json.dumps({**result, "commit": "0ther"}))
    assert render(text, tmp_path) != text
    with pytest.raises(ValueError, match="0 places for <!-- table"):
        render("no table here", tmp_path)


RESULTS: dict[str, dict[str, Any]] = {
    "sparsetrain": {
        "seed": 0,
        "rows": [
            {
                "model": "resnet18",
                "density": 0.01,
                "stored_bits": 8,
                "roofline_share": 0.6,
                "seconds_ours": 0.25,
                "seconds_torch": 2.0,
                "ratio": 8.0,
                "peak_bytes_ours": 50_000_000,
                "peak_bytes_torch": 400_000_000,
                "memory_ratio": 0.125,
                "tensor_bytes_ours": 10_000_000,
                "tensor_bytes_torch": 90_000_000,
            }
        ],
    },
    "run": {
        "seeds": [1, 2],
        **make_row(0, {"sparse": MEASURED, "torch": {**MEASURED, "seconds": 30.0}}),
        "rows": [make_row(seed, {"sparse": MEASURED, "torch": MEASURED}) for seed in (1, 2)],
    },
    "client": {
        "seed": 0,
        "rows": [
            {
                "client": "sparse",
                "seconds_import": 0.5,
                "idle_bytes": 40_000_000,
                "peak_bytes": 60_000_000,
                "installed_bytes": 100_000_000,
            }
        ],
    },
}
"""A made-up result per table that may not be published yet."""


@pytest.mark.parametrize("name", RESULTS)
def test_a_table_has_as_many_cells_in_each_line_and_says_where_it_is_from(
    tmp_path: Path, name: str
) -> None:
    result = {**RESULTS[name], "command": f"fedkit bench {name}", "commit": "c0ffee"}
    (tmp_path / f"{name}.json").write_text(json.dumps(result))
    text = f"Before\n<!-- table {name} -->\n<!-- end -->\nAfter\n"
    rendered = render(text, tmp_path)
    assert render(rendered, tmp_path) == rendered
    head, *lines = [line for line in rendered.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {head.count("|")}
    assert f"Made by `fedkit bench {name}`, seed" in rendered


@pytest.mark.parametrize("where", ["commit of all", "commit of a row"])
def test_figures_of_code_that_no_commit_has_are_not_published(tmp_path: Path, where: str) -> None:
    made = {"command": "fedkit bench run --json", "commit": "c0ffee"}
    (row, *rows) = RESULTS["run"]["rows"]
    if where == "commit of all":
        made["commit"] = "c0ffee-dirty"
    else:
        row = {**row, "commit": "c0ffee-dirty"}
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**RESULTS["run"], **made, "rows": [row, *rows]}))
    with pytest.raises(ConfigError) as refused:
        render("<!-- table run -->\n<!-- end -->", tmp_path)
    assert f"{path} was measured with code that no commit has (c0ffee-dirty)" in str(refused.value)
    assert "fedkit bench run --json > build/run; tail -n 1 build/run" in str(refused.value)
    assert f"json.tool - {path}" in str(refused.value)


def test_a_result_of_no_benchmark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "speed.json").write_text('{"benchmark": "speed", "commit": "c0ffee", "rows": []}')
    with pytest.raises(ConfigError, match=r"speed\.json is of the benchmark 'speed'"):
        render("", tmp_path)


def test_an_empty_place_may_wait_for_its_file_and_a_table_may_not_lose_it(tmp_path: Path) -> None:
    for text in ("no table here", "<!-- table wire -->\n<!-- end -->"):
        assert render(text, tmp_path) == text
    with pytest.raises(FileNotFoundError, match=r"wire\.json"):
        render("<!-- table wire -->\n| a |\n<!-- end -->", tmp_path)


def test_bench_prints_one_json_object_and_refuses_unknown_names() -> None:
    bad = subprocess.run(
        [sys.executable, "-m", "fedkit", "bench", "speed"], capture_output=True, text=True
    )
    assert bad.returncode == 2
    assert "unknown benchmark 'speed'; allowed: client, cost," in bad.stderr
