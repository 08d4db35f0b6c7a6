"""Artifacts in a report: their layers, how exact they are, and what they cost on processors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edge
from fedkit.cli.artifact_layers import layers
from fedkit.cli.look import inspect
from fedkit.core.errors import ExportError
from fedkit.report import plotly_library
from fedkit.report.page import report
from fedkit.report.reading import ArtifactLayer
from tests.report.parsed import Page
from tests.report.run_folders import EVIL, make_run, step, whole


@pytest.fixture(autouse=True)
def small_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave 2 MB of JavaScript out of pages that are only parsed."""
    monkeypatch.setattr(plotly_library, "packed", lambda: "")


CONV = ArtifactLayer("stem", "conv2d", (1, 8, 8, 4), 36, 9, 2304, 576, 60, 0.0125)
SUM = ArtifactLayer("add", "add", (1, 8, 8, 4), 0, 0, 0, 0, 0, None)


def test_layers_are_a_table_with_sums_and_a_file(tmp_path: Path) -> None:
    page = Page(report([whole(tmp_path / "run")], lambda path: [CONV, replace(CONV, kept=18), SUM]))
    assert ["stem", "conv2d", "8x8x4", "25.00%", "9", "36", "576", "25.00%", "60",
            "1.25%"] in page.rows  # fmt: skip
    assert ["add", "add", "8x8x4", "", "", "", "", "", "", ""] in page.rows
    assert ["all", "", "", "37.50%", "27", "72", "1,152", "25.00%", "120", ""] in page.rows
    first, second, third = page.file("artifacts")
    assert (first["density"], second["density"], third["density"]) == ("0.25", "0.5", "")
    assert first["artifact"] == "model-int8.tflite" and first["error against float"] == "0.0125"


def test_an_artifact_that_cannot_be_looked_into_is_told(tmp_path: Path) -> None:
    def look(path: Path) -> list[ArtifactLayer]:
        raise ExportError(f"{path.name} is {EVIL}")

    page = Page(report([whole(tmp_path / "run")], look))
    assert "run: layers of model-int8.tflite: model-int8.tflite is" in page.text
    assert page.unclosed == [] and page.tags.count("script") == 3


def test_a_large_artifact_is_shown_in_part_and_is_whole_in_its_file(tmp_path: Path) -> None:
    page = Page(report([whole(tmp_path / "run")], lambda path: [CONV] * 1_000))
    assert "(400 of 1,000 layers)" in page.text
    assert len(page.file("artifacts")) == 1_000


def test_the_exactness_of_a_manifest_is_told(tmp_path: Path) -> None:
    path = whole(tmp_path / "run") / "model-int8.tflite.json"
    manifest = json.loads(path.read_text())

    def told(exact: Any) -> str:
        manifest["measured"]["exact"] = exact
        path.write_text(json.dumps(manifest))
        page = Page(report([tmp_path / "run"]))
        return next(row for row in page.rows if row[0] == "model-int8.tflite")[5]

    whole_one = {"runtime": "some", "examples": 16, "integers": 1600, "differ": 2}
    assert told(whole_one) == "2 of 1,600, of 16 examples in some"
    for odd in (None, 5, {}, {**whole_one, "differ": -1}, {**whole_one, "integers": EVIL}):
        assert told(odd) == "not compared when it was made; fedkit check compares"


def test_costs_on_processors_are_drawn_where_they_were_measured(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"target": target, "model": "model-int8-c99", "density": 0.1, "instructions": count,
         "ratio_dense": None, "odd": {}}
        for target, count in (("cortex-m4", 3_000), ("cortex-a76", 1_000))
    ]  # fmt: skip
    run = make_run(tmp_path / "run", [step(1)]).path
    (run / "device.json").write_text(json.dumps({"benchmark": "device", "rows": [*rows, 5]}))
    (run / "other.json").write_text(json.dumps({"benchmark": "device", "rows": EVIL}))
    page = Page(report([run]))
    (bars,) = page.figure("instructions of one inference")
    assert (bars["x"], bars["y"]) == (["cortex-m4", "cortex-a76"], [3_000, 1_000])
    assert ["run", "cortex-m4", "model-int8-c99", "0.1", "3,000", ""] in page.rows


def test_layers_are_those_that_inspect_shows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    inputs = np.random.default_rng(0).standard_normal((20, 1, 8, 8)).astype(np.float32)
    run = make_run(tmp_path / "run", [step(1)]).path
    edge.export_model(module, inputs, run / "model-int8.tflite")
    found = layers(run / "model-int8.tflite")
    rows = inspect(run / "model-int8.tflite")["rows"]
    assert [vars(layer) for layer in found] == [
        {key: row[key] for key in vars(found[0])} for row in rows
    ]
    page = Page(report([run], layers))
    assert "Layers of run, model-int8.tflite" in page.text
    content = (run / "model-int8.tflite").read_bytes()
    (run / "model-int8.tflite").write_bytes(content[:-1])
    assert "is not the file its manifest describes" in Page(report([run], layers)).text
