"""Every example runs as its first line says."""

from __future__ import annotations

import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import edge
import fedkit
from edge.targets.c99.runner import CompiledRunner
from fedkit.cli import main
from fedkit.cli.grid import read_grid
from fedkit.nn.zoo import build_model
from fedkit.tasks import digits, keywords, motions
from fedkit.tasks.task import Task
from tests.edge.targets.c99.library import need_gcc
from tests.graph.exported import exported
from tests.tasks.recordings import written

ROOT = Path(__file__).resolve().parents[1]


def test_own_task_is_thirty_lines_and_runs_to_an_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """examples/own_task.py, given as a path to the command line."""
    source = (ROOT / "examples" / "own_task.py").read_text()
    assert len(source.splitlines()) <= 30
    command = (
        "fedkit run --in-process --task examples.own_task:TASK --devices 5 --alpha 5 --rounds 10 "
        f"--density 0.3 --out {tmp_path} --json"
    )
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["accuracy_sparse"] > 0.9
    assert abs(summary["accuracy_int8"] - summary["accuracy_sparse"]) <= 0.02


def run_task(name: str, options: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a task of examples/ of at most 30 lines from the command line; return its summary."""
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) <= 30
    command = f"fedkit run --in-process --task examples.{name}:TASK {options} --json"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", command.split())
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    summary: dict[str, Any] = json.loads(printed.getvalue().splitlines()[-1])
    return summary


def test_images_of_a_folder_are_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """examples/image_folder.py, on digits as files."""
    for part, data in (("train", digits.train_data()), ("test", digits.test_data())):
        for index, (levels, digit) in enumerate(zip(data.inputs[:, 0], data.targets, strict=True)):
            folder = tmp_path / part / str(digit)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.uint8(levels * 255)).save(folder / f"{index}.png")
    monkeypatch.setenv("IMAGES", str(tmp_path))
    options = f"--devices 3 --alpha 5 --rounds 2 --density 0.5 --out {tmp_path}"
    assert run_task("image_folder", options, monkeypatch)["accuracy_sparse"] > 0.6


def test_a_torch_dataset_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """examples/torch_dataset.py."""
    options = f"--devices 3 --alpha 5 --rounds 5 --density 0.5 --out {tmp_path}"
    assert run_task("torch_dataset", options, monkeypatch)["accuracy_sparse"] > 0.85


OTHER_TARGETS = {
    "regression": 0.15,
    "several_labels": 0.85,
    "autoencoder": -0.16,
    "segmentation": 0.85,
}
"""Example -> its metric after three rounds at least, negative where lower is better."""


@pytest.mark.parametrize("name", OTHER_TARGETS)
def test_a_task_of_other_targets_trains_without_torch_and_leaves(name: str, tmp_path: Path) -> None:
    """examples/regression.py, several_labels.py, autoencoder.py and segmentation.py."""
    path = ROOT / "examples" / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 30
    task = runpy.run_path(str(path))["TASK"]
    shown = re.search(r"fedkit run --task (\S+) (.*)\"\"\"", path.read_text())
    assert shown is not None and shown[1] == f"examples.{name}:TASK"
    flags = dict(re.findall(r"--(\S+) (\S+)", shown[2]))
    keys: dict[str, Any] = {**flags, "devices": 3, "rounds": 3, "density": 0.5}
    result = fedkit.run(task, **keys)
    assert "torch" not in result._scenario.engine_notice
    sign = 1 if result.metric.higher_is_better else -1
    assert sign * result.value >= OTHER_TARGETS[name]
    test = task.examples("test")
    edge.export_model(result.module(), test.inputs, tmp_path / "own.tflite")
    outputs = edge.open_artifact(tmp_path / "own.tflite").predict(test.inputs)
    assert task.measure(outputs, test.targets) == pytest.approx(result.value, abs=0.1)


NORMS = runpy.run_path(str(ROOT / "examples" / "norms.py"))


def test_grids_of_norms_name_every_task_of_their_example() -> None:
    """sim/scenarios/digits-norms.toml, digits-slab.toml and padded-slab.toml."""
    tasks = {name for name, value in NORMS.items() if isinstance(value, Task)}
    named: set[str] = set()
    for grid in ("digits-norms", "digits-slab", "padded-slab"):
        cells = read_grid(ROOT / "sim" / "scenarios" / f"{grid}.toml").cells
        named |= {config.task.removeprefix("examples.norms:") for config in cells}
        assert {config.seed for config in cells} == {1, 2, 3}
    assert named == tasks


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, value in NORMS.items() if isinstance(value, Task)])
def test_tasks_that_differ_in_their_norms_learn(name: str) -> None:
    """examples/norms.py."""
    settings: dict[str, Any] = {"devices": 3, "rounds": 8, "epochs": 2, "method": "dense"}
    settings |= {"partition": "iid", "bn_merge": "exact-last", "server_share": 0.0}
    assert fedkit.run(NORMS[name], **settings).accuracy > 0.6


@pytest.mark.slow
def test_texts_are_learned_without_torch_and_exported(tmp_path: Path) -> None:
    """examples/language_model.py."""
    path = ROOT / "examples" / "language_model.py"
    assert len(path.read_text().splitlines()) <= 30
    task = runpy.run_path(str(path))["TASK"]
    settings: dict[str, Any] = {
        "devices": 3,
        "partition": "natural-id",
        "density": 0.5,
        "rounds": 1,
        "epochs": 1,
    }
    result = fedkit.run(task, **settings, examples_per_device=60, test_examples=100, lr=0.1)
    assert "torch" not in result._scenario.engine_notice
    assert result.value < 40  # of 97 characters
    tokens = task.examples("test").inputs[:3]
    edge.export_model(result.module(), task.examples("test").inputs, tmp_path / "gpt.tflite")
    found = edge.open_artifact(tmp_path / "gpt.tflite").predict(tokens)
    with torch.no_grad():
        expected = result.module().eval()(torch.from_numpy(tokens)).numpy()
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98


@pytest.mark.slow
def test_grid_ends_in_a_table_of_means(tmp_path: Path) -> None:
    """examples/grid.toml."""
    command = f"-m fedkit compare examples/grid.toml --out {tmp_path} --work {tmp_path} --json"
    ended = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    assert len(result["rows"]) == 9
    assert all(row["accuracy"] > 0.8 for row in result["rows"])
    assert (tmp_path / "example/report.html").is_file()


def test_in_process_prints_a_line_per_step(capsys: pytest.CaptureFixture[str]) -> None:
    """examples/in_process.py."""
    example = runpy.run_path(str(ROOT / "examples" / "in_process.py"))
    assert example["main"]() > 0.3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["start", "selection", "round", "round", "round"]


@pytest.mark.slow
def test_damaged_machines_are_found_by_what_a_fleet_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """examples/anomaly.py."""
    path = ROOT / "examples" / "anomaly.py"
    assert len(path.read_text().splitlines()) <= 45
    found = runpy.run_path(str(path))["main"](str(tmp_path), rounds=20)
    assert found.roc_auc > 0.8 and found.found > 2 * found.false_alarms
    assert capsys.readouterr().out.startswith("20% of the weights, ")


@pytest.mark.slow
def test_words_are_told_by_c_that_takes_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """examples/keywords.py, for a tenth of its rounds; the words are those that eval tells."""
    need_gcc()
    if shutil.which("espeak-ng") is None:
        pytest.skip("there is no espeak-ng; apt-get install espeak-ng")
    path = ROOT / "examples" / "keywords.py"
    assert len(path.read_text().splitlines()) <= 50
    accuracy, words = runpy.run_path(str(path))["main"](str(tmp_path), rounds=6)
    assert accuracy > 0.4 and "of unheard voices" in capsys.readouterr().out
    model = edge.open_artifact(tmp_path / "keywords-c99", "interpreter")
    audio = keywords.AUDIO
    inputs = np.concatenate([audio.read(tmp_path / f"{word}.wav") for word in audio.classes])
    found = np.asarray(model.predict(inputs)).argmax(axis=1)
    assert [audio.classes[number] for number in found] == words


@pytest.mark.slow
def test_words_are_told_by_a_transformer_in_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """examples/keywords.py with kwt-1: too short to learn, and yet to the bit."""
    need_gcc()
    if shutil.which("espeak-ng") is None:
        pytest.skip("there is no espeak-ng; apt-get install espeak-ng")
    short: dict[str, Any] = {"rounds": 1, "epochs": 1, "server_epochs": 1, "sparse_epochs": 1}
    example = runpy.run_path(str(ROOT / "examples" / "keywords.py"))
    _, words = example["main"](str(tmp_path), "kwt-1", **short, selection="none")
    model = edge.open_artifact(tmp_path / "keywords-c99", "interpreter")
    audio = keywords.SERIES
    inputs = np.concatenate([audio.read(tmp_path / f"{word}.wav") for word in audio.classes])
    found = np.asarray(model.predict(inputs)).argmax(axis=1)
    assert [audio.classes[number] for number in found] == words


@pytest.mark.slow
@pytest.mark.parametrize("network", ["har-cnn", "har-gru"])
def test_activities_are_told_from_series(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """examples/motions.py, on made-up series."""
    need_gcc()
    written(tmp_path / "BasicMotions")
    monkeypatch.setenv("FEDKIT_DATA", str(tmp_path))
    path = ROOT / "examples" / "motions.py"
    assert len(path.read_text().splitlines()) <= 50
    floats, integers = runpy.run_path(str(path))["main"](
        str(tmp_path), network, rounds=4, devices=2, partition="iid", min_size=2
    )
    assert floats > 0.5 and abs(floats - integers) < 0.1
    said, told = capfd.readouterr().out.strip().splitlines()
    assert "kB of C" in said
    model = edge.open_artifact(tmp_path / "motions-c99", "interpreter")
    outputs = np.asarray(model.predict(motions.RAW.read(tmp_path / "window.csv")))
    activity = motions.ACTIVITIES[int(outputs.argmax())]
    assert told.split("\t")[1:] == ["1 to 50", activity]


def test_own_cnn_trains_sparse_and_tells_its_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """examples/own_cnn.py."""
    path = ROOT / "examples" / "own_cnn.py"
    assert len(path.read_text().splitlines()) < 100
    assert runpy.run_path(str(path))["main"]() > 0.93
    first, second = capsys.readouterr().out.splitlines()
    assert "density 10.0%" in first
    assert second.startswith("memory of a training step: ") and "activations" in second


def test_own_baseline_is_run_beside_random_and_fedtiny(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """examples/own_baseline.py; its method is found by its path from the checkout."""
    monkeypatch.chdir(ROOT)
    path = ROOT / "examples" / "own_baseline.py"
    assert len(path.read_text().splitlines()) < 50
    example = runpy.run_path(str(path))
    scores = example["score"](np.array([[3.0, -1.0], [0.0, 2.0]], np.float32))
    np.testing.assert_allclose(scores, [[1, 1 / 14], [0, 4 / 13]], rtol=1e-6)
    accuracies = example["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(":")[0] for line in lines] == list(accuracies)
    assert all(line.endswith("at density 0.050") for line in lines)
    random, own, fedtiny = accuracies.values()
    assert min(own, fedtiny) > random > 0.7


def test_a_model_of_ones_own_trains_in_four_bits() -> None:
    """examples/integer_training.py."""
    example = runpy.run_path(str(ROOT / "examples" / "integer_training.py"))
    assert example["main"]() > 0.9


@pytest.mark.usefixtures("quick_compilation")
def test_own_c_model_computes_what_torch_does(capsys: pytest.CaptureFixture[str]) -> None:
    """examples/own_c_model.py."""
    need_gcc()
    path = ROOT / "examples" / "own_c_model.py"
    assert len(path.read_text().splitlines()) < 40
    assert runpy.run_path(str(path))["main"]() < 0.1
    files, time = capsys.readouterr().out.splitlines()
    assert "arena of" in files and "us per image" in time


def test_own_onnx_model_becomes_a_tflite_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """examples/own_onnx_model.py."""
    path = ROOT / "examples" / "own_onnx_model.py"
    assert len(path.read_text().splitlines()) < 30
    shape, source = (3, 16, 16), tmp_path / "model.onnx"
    source.write_bytes(exported(build_model("ds-cnn", shape, 10).eval(), shape))
    assert runpy.run_path(str(path))["main"](source) < 0.1
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'model.tflite'}: ")


def test_a_model_is_exported_in_twenty_lines_and_used_in_thirty_of_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """examples/export_model.py and examples/use_c_model.c."""
    need_gcc()
    script, source = ROOT / "examples" / "export_model.py", ROOT / "examples" / "use_c_model.c"
    assert len(script.read_text().splitlines()) <= 20
    assert len(source.read_text().splitlines()) <= 30
    folder, program = tmp_path / "model", tmp_path / "classify"
    monkeypatch.setattr(sys, "argv", [str(script), str(folder)])
    runpy.run_path(str(script), run_name="__main__")
    subprocess.run(["make", "-s", "-C", str(folder), "CFLAGS=-O0"], check=True)
    built = [str(source), str(folder / "libmodel.a"), "-lm", "-o", str(program)]
    subprocess.run(["gcc", "-Wall", "-Wextra", "-Werror", f"-I{folder}", *built], check=True)
    inputs = np.random.default_rng(0).random((20, 1, 8, 8), np.float32)
    ended = subprocess.run([str(program)], input=inputs.tobytes(), capture_output=True, check=True)
    expected = CompiledRunner(folder, ("-O0",)).predict(inputs)
    found = np.array([line.split() for line in ended.stdout.splitlines()], np.float64)
    assert found[:, 0].tolist() == expected.argmax(1).tolist()
    np.testing.assert_allclose(found[:, 1], expected.max(1), atol=1e-6)
