"""`fedkit rewrite`, and `--rewrite` of exports: a run, a file, and what people get told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge import artifact
from fedkit.nn.norms.frozen import freeze
from tests.command_line import fedkit
from tests.graph.exported import exported


def said(arguments: str, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that succeeds prints."""
    assert fedkit(arguments, patch) == 0
    return capsys.readouterr().out


def as_file(model: nn.Module, shape: tuple[int, ...], path: Path) -> Path:
    path.write_bytes(exported(model.eval(), shape, symbolic=False))
    return path


def low_rank() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.Linear(40, 5), nn.ReLU(), nn.Linear(5, 2))


def test_a_run_is_told_what_applies(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads(said(f"rewrite {out / 'done'} --json", monkeypatch, capsys))
    rows = {row["rewrite"]: row for row in told["rewrites"]}
    assert list(rows)[:3] == ["merge_affines", "fold_bn", "residual_scale_fold"]
    assert rows["fold_bn"]["applied"]
    assert rows["fold_bn"]["probe_differs"] < 1e-5
    assert rows["fold_bn"]["saved"]["ops"] == len(rows["fold_bn"]["applied"])
    saved = sum(row["saved"]["int8_bytes"] for row in rows.values())
    assert told["before"]["int8_bytes"] - told["after"]["int8_bytes"] == saved > 0


def test_a_run_is_exported_with_rewrites_beside_the_one_without(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = out / "done"
    told = said(f"export {run} --rewrite exact,ln_to_rms --json", monkeypatch, capsys)
    (made,) = json.loads(told)["artifacts"]
    path = Path(made["artifact"])
    assert path.name == "model-int8-exact-ln_to_rms.tflite"
    assert artifact.load(path).provenance["rewrites"] == ["exact", "ln_to_rms"]
    assert json.loads(said(f"check {path} --json", monkeypatch, capsys))["mismatches"] == 0


@pytest.mark.parametrize("command", ["rewrite {}", "export {} --target tflite"])
def test_a_rewrite_that_does_not_exist_is_named(
    command: str, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedkit(f"{command.format(out / 'done')} --rewrite ln_to_rns", monkeypatch) == 2
    assert "rewrites names 'ln_to_rns'; give some of exact, " in capsys.readouterr().err


def test_a_file_is_told_what_applies_and_what_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = as_file(low_rank(), (6,), tmp_path / "m.onnx")
    told = json.loads(said(f"rewrite {path} --json", monkeypatch, capsys))
    (merged,) = [row for row in told["rewrites"] if row["rewrite"] == "lowrank_merge"]
    assert len(merged["applied"]) == 1
    assert merged["saved"] == {
        "ops": 1,
        "parameters": 6 * 40 + 40 + 40 * 5 - 6 * 5,
        "kept": 6 * 40 + 40 + 40 * 5 - 6 * 5,
        "int8_bytes": 6 * 40 + 4 * 40 + 40 * 5 - 6 * 5,
        "macs": 6 * 40 + 40 * 5 - 6 * 5,
        "kept_macs": 6 * 40 + 40 * 5 - 6 * 5,
    }
    norm = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    path = as_file(norm, (6,), tmp_path / "norm.onnx")
    text = said(f"rewrite {path} --rewrite ln_freeze", monkeypatch, capsys)
    assert "ln_freeze (lossy)" in text
    assert "it needs examples" in " ".join(text.split())


def test_a_file_is_exported_with_rewrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, data = as_file(low_rank(), (6,), tmp_path / "m.onnx"), tmp_path / "x.npy"
    np.save(data, np.random.default_rng(0).standard_normal((40, 6), np.float32))
    sizes = []
    for number, more in enumerate(["", "--rewrite lowrank_merge"]):
        made = tmp_path / f"{number}.tflite"
        command = f"import {path} --calibration {data} --out {made} {more} --json"
        sizes.append(json.loads(said(command, monkeypatch, capsys))["artifact_bytes"])
    assert sizes[1] < sizes[0]
    assert artifact.load(tmp_path / "1.tflite").provenance["rewrites"] == ["lowrank_merge"]


@pytest.mark.parametrize("name", ["no-such-folder", "m.tflite"])
def test_what_is_neither_run_nor_file_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.tflite").write_bytes(b"x")
    assert fedkit(f"rewrite {tmp_path / name}", monkeypatch) == 2
    assert "is no run folder and no .onnx file" in " ".join(capsys.readouterr().err.split())


def test_names_of_others_are_written_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    path = as_file(nn.Sequential(nn.Linear(6, 2), nn.LayerNorm(2)), (6,), tmp_path / "m.onnx")
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = "\x1b[31m[bold]norm"
    onnx.save(model, path)
    text = said(f"rewrite {path} --rewrite ln_freeze", monkeypatch, capsys)
    assert "\x1b[31m" not in text
    assert "[bold]norm" in text


def test_a_check_out_of_range_exits_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import edge
    from fedkit.tasks import load_task

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 10))
    model.eval()
    digits = load_task("digits").examples("test").inputs
    freeze(model, "2", 0.02)
    made = edge.export_model(model, digits / 50, tmp_path / "m.tflite")
    code = fedkit(f"check {made.path} --task digits --json", monkeypatch)
    found = json.loads(capsys.readouterr().out)
    assert code == 1
    assert found["mismatches"] == 0
    assert found["guards"][0]["outside"] > 100
    assert "saw others than the calibration set has" in found["out_of_range"]
    assert fedkit(f"check {made.path} --task digits --accept-error", monkeypatch) == 0
    words = capsys.readouterr().out.replace("│", " ").split()
    assert "outputs of such inputs mean nothing" in " ".join(words)
