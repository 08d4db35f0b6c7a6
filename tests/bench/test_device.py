from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from edge.artifact import Artifact
from edge.bench.result import Quantity, ReferenceVectors, Result
from edge.bench.ssh import Board
from edge.export import int8_graph, save_c99, save_graph
from edge.targets.c99 import pack
from fedkit.bench import device
from fedkit.bench.device import bench_device
from fedkit.cli import main
from fedkit.cli.bench import table
from fedkit.core.errors import ConfigError
from tests.edge.models import pruned
from tests.edge.targets.c99.library import need_emulator

KEYS = [
    *("target", "model", "density", "instructions"),
    *("flash_bytes", "ram_bytes", "stack_bytes", "ratio_dense"),
]


@pytest.fixture(autouse=True)
def _tools() -> None:
    need_emulator()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small C model with its graph beside it."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((20, 3, 8, 8)).astype(np.float32)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
    )
    graph = int8_graph(pruned(model, 0.2).eval(), inputs)
    folder = tmp_path_factory.mktemp("exported")
    saved = save_graph(graph, folder / "model.graph", {})
    made_of = {"graph": "model.graph", "graph_sha256": saved.sha256}
    return save_c99(graph, inputs, folder / "model-c99", made_of).path


def fedkit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["fedkit", "bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.slow
def test_resnet8_takes_fewer_instructions_where_it_is_sparse() -> None:
    result = bench_device(quick=True, targets=("cortex-a76",))
    dense, sparse = result["rows"]
    assert list(dense) == KEYS
    assert [row["density"] for row in (dense, sparse)] == [1.0, 0.05]
    assert dense["ratio_dense"] == 1.0
    assert sparse["ratio_dense"] == pytest.approx(
        dense["instructions"] / sparse["instructions"], abs=1e-3
    )
    assert sparse["ratio_dense"] > 3
    assert sparse["flash_bytes"] < dense["flash_bytes"] / 2
    assert len(result["details"]) == 2
    assert table(result).renderables[1].row_count == len(result["details"][0]["layers"])


def test_an_artifact_is_measured_with_its_own_graph(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = "device", "--artifact", str(exported), "--target", "cortex-m4, cortex-a53"
    assert fedkit(monkeypatch, *chosen, "--json") == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["target"] for row in rows] == ["cortex-m4", "cortex-a53"]
    for row in rows:
        assert row["model"] == "model-c99"
        assert 0.1 < row["density"] < 0.5
        assert row["ratio_dense"] is None


@pytest.mark.slow
def test_a_fault_stops_the_benchmark_before_any_figure(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = pack.folded_bias
    monkeypatch.setattr(pack, "folded_bias", lambda *given: right(*given) + 3000)
    for form in ([], ["--json"]):
        chosen = "device", "--artifact", str(exported), "--target", "cortex-m4"
        assert fedkit(monkeypatch, *chosen, *form) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert "cortex-m4 gives" in told.err and "of example 0, and the interpreter" in told.err


def test_what_is_installed_is_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedkit(monkeypatch, "device", "--list", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert {row["installed"] for row in result["rows"]} == {"yes"}
    assert result["install"] == "pip install 'fedkit[bench]'"
    monkeypatch.setattr("fedkit.bench.device.find_spec", lambda module: None)
    assert fedkit(monkeypatch, "device", "--list") == 0
    assert "no: pyelftools" in " ".join(capsys.readouterr().out.split())


def test_options_of_devices_are_refused_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedkit(monkeypatch, "wire", "--target", "cortex-m4") == 2
    assert "benchmark 'wire' takes none of --target" in capsys.readouterr().err
    assert fedkit(monkeypatch, "device", "--target", "cortex-m85") == 2
    assert "unknown target 'cortex-m85'" in capsys.readouterr().err


def test_a_board_gives_times_instead_of_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((80.0, 20.0))

    def measured(model: Artifact, board: Board, examples: ReferenceVectors) -> Result:
        assert model.target == "c99" and len(examples.inputs)
        quantities = {"latency_median_us": Quantity(next(times), "us")}
        return Result(model.path.name, board.host, "measured", 2, quantities)

    monkeypatch.setattr(device, "measure", measured)
    rows = bench_device(True, ssh="pi@board")["rows"]
    assert [row["target"] for row in rows] == ["pi@board"] * 2
    assert [row["latency_median_us"] for row in rows] == [80.0, 20.0]
    assert rows[1]["ratio_dense"] == 4.0
    with pytest.raises(ConfigError, match="one of --target and --ssh"):
        bench_device(True, targets=["cortex-m4"], ssh="pi@board")
