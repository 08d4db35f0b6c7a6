from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedkit.config import make_config
from fedkit.core.errors import CheckpointError
from fedkit.server.checkpoint import RunFolder
from fedkit.server.rounds import Report
from sim.scenario import make_scenario

# Half width is for what travels; what is stored comes back exactly.
CONFIG = make_config({"devices": 2, "seed": 4, "wire": "fp16"})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    engine = make_scenario(CONFIG).engine
    rng = np.random.default_rng(0)
    masks = {n: rng.random(s) < 0.1 for n, s in engine.layout.prunable_shapes.items()}
    state = engine.initial_state().with_masks(masks)
    made = RunFolder.create(tmp_path / "run", CONFIG)
    made.append(Report("round", 7, 0.5, 1.0, state.density, 1, 2, state), engine.layout, {})
    return made


def test_a_checkpoint_round_trips_and_pruned_weights_are_zero(folder: RunFolder) -> None:
    engine = make_scenario(CONFIG).engine
    loaded = RunFolder.open(folder.path).load()
    assert (loaded.round, loaded.config, loaded.layout) == (7, CONFIG, engine.layout)
    original = engine.initial_state()
    for name, mask in loaded.state.masks.items():
        assert 0 < mask.sum() < mask.size
        assert np.array_equal(loaded.state.weights[name], original.weights[name] * mask)


def test_the_file_is_as_sparse_as_the_model(folder: RunFolder) -> None:
    stored = (folder.path / "checkpoint" / "model.safetensors").stat().st_size
    layout = folder.load().layout
    dense = 4 * sum(int(np.prod(shape)) for shape in layout.weights.values())
    assert stored < 0.25 * dense


def test_metrics_are_readable_while_a_line_is_being_written(folder: RunFolder) -> None:
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 8, "acc')
    assert [line["round"] for line in folder.metrics()] == [7]


def test_an_existing_run_folder_is_left_alone(folder: RunFolder) -> None:
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="never overwritten"):
        RunFolder.create(folder.path, CONFIG)
    assert {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", ["model.safetensors", "structure.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_a_damaged_checkpoint_is_refused(folder: RunFolder, name: str, damage: str) -> None:
    path = folder.path / "checkpoint" / name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(b"" if damage == "empty" else data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="missing, truncated or altered"):
        folder.load()


def test_another_format_is_refused(folder: RunFolder) -> None:
    path = folder.path / "checkpoint" / "structure.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="format 99, this version reads 2"):
        folder.load()


def test_no_temporary_files_are_left(folder: RunFolder) -> None:
    assert not list(folder.path.rglob("*.tmp"))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a run folder: it holds no config\.toml"):
        RunFolder.open(tmp_path)
