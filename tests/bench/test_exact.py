"""The benchmark of exactness: rows hold what they promise, and no integer differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from edge.check import CheckReport
from edge.export import int8_graph
from fedkit.bench.exact import MODELS, Cell, _figures, run, table, verilog_report
from fedkit.tasks import load_task
from fedkit.tasks.task import Metric
from tests.edge.targets.c99.library import need_gcc


@pytest.mark.slow
def test_rows_of_exactness_have_all_figures() -> None:
    need_gcc()
    rows = run(Cell("resnet8", 0.02, 300, 20, 3))["rows"]
    assert len(rows) >= 7 and len({row["runtime"] for row in rows}) == len(rows)
    for row in rows:
        examples = 3 if row["runtime"] == "Verilog" else 20
        assert (row["mismatches"], row["examples"], row["same_class"]) == (0, examples, 1)
        assert row["parameters_slim"] < row["parameters"] and row["macs_slim"] < row["macs"]
        assert {"accuracy_float", "accuracy_int8", "accuracy_int6", "accuracy_int4"} <= set(row)
    assert rows[0]["activations"] > 10 and rows[-1]["activations"] > 10


def test_a_model_that_has_no_circuit_says_why_in_its_cell(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((4, 1, 91, 91)).astype(np.float32)
    graph = int8_graph(nn.Sequential(nn.Flatten(), nn.Linear(91 * 91, 2)).eval(), x)
    told = verilog_report(graph, x, x, tmp_path, {})
    assert isinstance(told, str) and "at most 8191 weights" in told
    small = int8_graph(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), x[:, :, :2, :2])
    told_at_once = verilog_report(small, x[:, :, :2, :2], x[:0], tmp_path / "small", {})
    assert isinstance(told_at_once, str) and told_at_once.startswith("not simulated")
    made = CheckReport("compiled", "half_up", 1, same_class=1)
    made.outputs.add(np.zeros((1, 10), np.int8), np.zeros((1, 10), np.int8))
    about = {"accuracy_float": 0.5, "accuracy_int8": 0.5, "parameters": 9, "parameters_slim": 9}
    about |= {"macs": 9, "macs_slim": 9, "density": 1.0}
    rows = [
        {"model": "one", "runtime": "gcc", **about, **_figures(made)},
        {"model": "one", "runtime": "Verilog", **about, **_figures(told)},
        {"model": "two", "runtime": "Verilog", **about, **_figures(made)},
    ]
    head, rule, one, two = (
        [cell.strip() for cell in line.split("|")] for line in table({"rows": rows})
    )
    assert len(head) == len(rule) == len(one) == len(two)
    assert head[3:5] == ["gcc", "Verilog"]
    assert one[3] == "0 of 10" and "at most 8191 weights" in one[4]
    assert two[3:5] == ["", "0 of 10"], "a runtime that is missing leaves a cell empty"


def test_rows_of_other_tasks_and_metrics_say_so_in_the_table() -> None:
    made = CheckReport("compiled", "half_up", 1, same_class=1)
    made.outputs.add(np.zeros((1, 10), np.int8), np.zeros((1, 10), np.int8))
    about = {"runtime": "gcc", "density": 1.0, "parameters": 9, "parameters_slim": 9}
    about |= {"macs": 9, "macs_slim": 9, **_figures(made)}
    rows = [
        {"model": "one", "accuracy_float": 0.5, "accuracy_int8": 0.51, **about},
        {
            "model": "two",
            "task": "digits-reconstruction",
            "metric": load_task("digits-reconstruction").measure.about,
            "accuracy_float": 0.015,
            "accuracy_int8": 0.0151,
            **about,
        },
    ]
    _, _, one, two = ([cell.strip() for cell in line.split("|")] for line in table({"rows": rows}))
    assert one[1] == "one" and one[4:6] == ["50.00%", "+1.00"]
    assert two[1] == "two, digits-reconstruction"
    assert two[4:6] == ["0.015 (mean squared error)", "+0.0001"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tc-resnet8", "unet-w8", "ad-autoencoder"])
def test_a_cell_of_another_task_has_its_metric(model: str) -> None:
    need_gcc()
    task = load_task(MODELS[model][0])
    rows = run(Cell(model, 0.1, 500, 40, 20, 2, task.name))["rows"]
    for row in rows:
        assert (row["task"], row["mismatches"]) == (task.name, 0)
        assert Metric.of(row.get("metric")).name == task.measure.name
