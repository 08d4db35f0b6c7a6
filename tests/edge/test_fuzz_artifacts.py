"""Altered artifacts, manifests and run folders: a clear error or a correct result, nothing else."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edge import artifact
from edge.check import check, graph_of
from edge.export import int8_graph, save_c99, save_fpga, save_graph, save_tflite
from edge.inspect import inspect
from edge.runners import open_runner
from edge.targets.c99.runner import CompiledRunner
from fedkit.config import RunConfig
from fedkit.core.errors import FedkitError
from fedkit.server.checkpoint import RunFolder
from fedkit.server.record import record
from sim.scenario import make_scenario
from tests.edge import manifests
from tests.edge.targets.c99.library import need_gcc

INPUTS = np.random.default_rng(0).standard_normal((2, 1, 6, 6)).astype(np.float32)
_ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        2**31,
        2**70,
        1e308,
        float("nan"),
        "",
        "x",
        "../x",
        "\0",
        "\ud800",
        "x" * 5000,
    ),
    *([], {}, [[]], ["a", 1], {"a": None}),
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `files`, with a .tflite file and its graph, and `code`, with C and Verilog."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported")
    body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
    graph = int8_graph(body, INPUTS)
    for name in ("files", "code"):
        whole = save_graph(graph, folder / name / "model.graph", {})
    about = {"graph": "model.graph", "graph_sha256": whole.sha256}
    save_tflite(graph, INPUTS, folder / "files" / "model.tflite", about)
    save_c99(graph, INPUTS, folder / "code" / "c99", about, "size")
    save_fpga(graph, INPUTS, folder / "code" / "fpga", about)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a small fleet."""
    config = RunConfig(task="digits", devices=2, rounds=1, epochs=1, examples_per_device=20)
    scenario = make_scenario(config)
    path = tmp_path_factory.mktemp("runs") / "run"
    record(scenario, scenario.local_fleet(), path, after_step=lambda _: None)
    return path


def alter(folder: Path, choose: random.Random) -> None:
    """Change one file of a folder: its bytes, its length, or a value in its JSON."""
    path = choose.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    data = bytearray(path.read_bytes())
    if path.suffix == ".json" and choose.random() < 0.8:
        content = json.loads(data)
        for _ in range(choose.randint(1, 2)):
            alter_value(content, choose)
        path.write_text(json.dumps(content))
        if isinstance(content, dict) and choose.random() < 0.7:
            manifests.sign(path, content)  # as an attacker would
        return
    if choose.random() < 0.3:
        del data[choose.randrange(len(data)) :]
    for _ in range(choose.randint(1, 4)):
        if data:
            data[choose.randrange(len(data))] ^= choose.choice((1, 2, 16, 128, 255))
    path.write_bytes(bytes(data))


def alter_value(content: Any, choose: random.Random) -> None:
    """Change or remove one value of nested JSON, anywhere."""
    while isinstance(content, dict | list) and content:
        key = choose.choice(sorted(content) if isinstance(content, dict) else range(len(content)))
        inner = content[key]
        if not isinstance(inner, dict | list) or not inner or choose.random() < 0.2:
            if choose.random() < 0.3:
                del content[key]
            else:
                content[key] = choose.choice(_ODD)
            return
        content = inner


def check_altered(clean: Path, folder: Path, use: Callable[[Path], None], seeds: range) -> None:
    """Use many altered copies; each must work or end in an error of ours."""
    refused = 0
    for seed in seeds:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(clean, folder)
        alter(folder, random.Random(seed))
        try:
            use(folder)
        except FedkitError as error:
            assert len(str(error)) > 20
            refused += 1
    assert refused > 0.3 * len(seeds), "the changes change nothing"


def use_artifact(folder: Path) -> None:
    report = check(folder / "model.tflite", INPUTS)
    assert report.mismatches == 0
    found = artifact.load(folder / "model.graph")
    assert inspect(found, graph_of(found))


def use_folders(folder: Path) -> None:
    """Do all that runs nothing of a folder of code."""
    for name in ("c99", "fpga"):
        found = artifact.load(folder / name)
        assert open_runner(found.path, "interpreter").predict(INPUTS).shape == (2, 4)
        assert inspect(found, graph_of(found))


def use_code(folder: Path) -> None:
    runner = CompiledRunner(folder / "c99", ("-O0",))
    assert np.isfinite(runner.predict(INPUTS)).all()


def use_run(folder: Path) -> None:
    opened = RunFolder.open(folder)
    found = opened.load()
    assert all(np.isfinite(value).all() for value in found.state.weights.values())
    assert found.state.density > 0 and len(opened.digest()) == 64


def test_altered_artifacts(exported: Path, tmp_path: Path) -> None:
    check_altered(exported / "files", tmp_path / "copy", use_artifact, range(150))


def test_altered_folders(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = temporary(tmp_path, monkeypatch)
    check_altered(exported / "code", tmp_path / "copy", use_folders, range(30))
    assert not any(left.iterdir())


def test_altered_code(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_gcc()
    left = temporary(tmp_path, monkeypatch)
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copytree(exported / "code" / "c99", folder / "c99")
    check_altered(folder, tmp_path / "copy", use_code, range(30))
    assert not any(left.iterdir())


def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of what is there for a while."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_altered_runs(run: Path, tmp_path: Path) -> None:
    check_altered(run, tmp_path / "copy", use_run, range(100))


@pytest.mark.slow
def test_many_altered_artifacts(exported: Path, tmp_path: Path) -> None:
    check_altered(exported / "files", tmp_path / "copy", use_artifact, range(1000, 11_000))


@pytest.mark.slow
def test_many_altered_folders(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = temporary(tmp_path, monkeypatch)
    check_altered(exported / "code", tmp_path / "copy", use_folders, range(1000, 11_000))
    assert not any(left.iterdir())


@pytest.mark.slow
def test_many_altered_runs(run: Path, tmp_path: Path) -> None:
    check_altered(run, tmp_path / "copy", use_run, range(1000, 11_000))
