from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge import artifact
from edge.quantize import truth
from edge.targets.fpga import yosys
from edge.targets.fpga.runner import SimulatedRunner
from edge.targets.registry import runtimes
from fedkit.engine.plan.plan import load_plan
from fedkit.server.checkpoint import RunFolder
from fedkit.server.rounds import Report
from fedkit.tasks import losses
from tests.cli.conftest import SMALL
from tests.command_line import fedkit
from tests.processes import HANG, left_running, wait_for
from tests.sets import slow


def test_run_ends_with_one_json_line_of_documented_keys(out: Path) -> None:
    summary = json.loads((out / "stdout").read_text().splitlines()[-1])
    wanted = {
        "accuracy_dense_fedavg",
        "accuracy_sparse",
        "accuracy_int8",
        "density",
        "bytes_up",
        "bytes_down",
        "seconds",
        "artifact",
    }
    assert wanted <= set(summary)
    assert Path(summary["artifact"]).stat().st_size == summary["artifact_bytes"]
    assert summary["density"] == pytest.approx(0.1, abs=1e-4)
    assert summary["test_examples"] == 360
    assert 0 < summary["bytes_up"] + summary["bytes_down"] < summary["bytes_dense_fedavg"]
    assert summary == json.loads((out / "done" / "summary.json").read_text())


def test_show_prints_the_table_of_a_run(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedkit(f"show {out / 'done'}", monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "int8 artifact" in shown and "10.00%" in shown


def test_eval_measures_the_artifact_again(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedkit(f"eval {out / 'done' / 'model-int8.tflite'} --json", monkeypatch) == 0
    measured = json.loads(capsys.readouterr().out)
    summary = json.loads((out / "done" / "summary.json").read_text())
    assert measured["accuracy_int8"] == summary["accuracy_int8"]


def test_eval_of_an_artifact_from_elsewhere_asks_for_its_task(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.tflite"
    path.write_bytes((out / "done" / "model-int8.tflite").read_bytes())
    found = artifact.load(out / "done" / "model-int8.tflite")
    artifact.record(replace(found, path=path, provenance={}), {})
    assert fedkit(f"eval {path}", monkeypatch) == 2
    assert "names no task; give --task" in " ".join(capsys.readouterr().err.split())
    assert fedkit(f"eval {path} --task digits --json", monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["test_examples"] == 360


def test_export_makes_the_artifact_of_a_run_that_has_none(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedkit(f"export {out / 'done-dense'} --json", monkeypatch) == 0
    (made,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert made["accuracy_int8"] > 0
    assert fedkit(f"export {out / 'done-dense'}", monkeypatch) == 2
    assert "never overwritten" in capsys.readouterr().err


@pytest.mark.usefixtures("quick_compilation")
def test_all_targets_come_from_one_graph_and_compute_it(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = out / "done"
    assert fedkit(f"export {run} --target onnx,c99 --goal size --json", monkeypatch) == 0
    made = json.loads(capsys.readouterr().out)["artifacts"]
    assert [(each["target"], each["accuracy_int8"] > 0) for each in made] == [
        ("onnx-qdq", True),
        ("c99", True),
    ]
    for name in ("model-int8.tflite", "model-int8.onnx", "model-int8-c99"):
        about = artifact.load(run / name)
        assert about.provenance["graph_sha256"] == artifact.load(run / "model-int8.graph").sha256
        assert about.provenance["checkpoint_sha256"] == RunFolder.open(run).digest()
        assert about.measured["test_examples"] == 360
        assert fedkit(f"check {run / name} --examples 40 --layers --json", monkeypatch) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["mismatches"], found["examples"], found["same_class"]) == (0, 40, 1)
        assert len(found["layers"]) > 10 and found["integers"] > 40 * 1000
    assert fedkit(f"inspect {run / 'model-int8-c99'} --json", monkeypatch) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    kept, weights = (sum(row[key] for row in rows) for key in ("kept", "weights"))
    # Some weights that were kept become the integer 0.
    assert 0.05 < kept / weights < 0.2
    assert all(row["error"] < 0.2 for row in rows)
    assert fedkit(f"inspect {run / 'model-int8.graph'}", monkeypatch) == 0
    assert "all" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("quick_simulation")
def test_hardware_is_simulated(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if yosys.obstacle("yosys") is not None:
        pytest.skip("needs yosys: pip install 'fedkit[bench]'")
    monkeypatch.setattr(SimulatedRunner, "most_examples", 2)
    run = out / "done"
    assert fedkit(f"export {run} --target fpga --lanes 2", monkeypatch) == 0
    assert "cycles per inference" in capsys.readouterr().out
    about = artifact.load(run / "model-int8-fpga")
    assert about.measured["cycles_per_inference"] == about.details["cycles_per_inference"]
    assert (about.measured["test_examples"], about.details["lanes"]) == (2, 2)
    path = run / "model-int8-fpga"
    assert fedkit(f"check {path} --examples 1 --layers --json", monkeypatch) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["mismatches"], found["examples"]) == (0, 1)
    assert fedkit(f"inspect {path} --json", monkeypatch) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    entries = 8 * sum(row["bytes"] for row in rows)
    assert 0.5 < entries / about.details["rom_bits"] < 1.1


def test_check_ends_with_1_where_an_integer_differs(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(runtimes(), "tflite", {"ai-edge-litert": "gemmlowp"})
    assert fedkit(f"check {out / 'done' / 'model-int8.tflite'} --layers", monkeypatch) == 1
    assert "expected" in capsys.readouterr().out


def test_a_graph_of_an_earlier_checkpoint_is_not_taken(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(out / "done", run)
    found = artifact.load(run / "model-int8.graph")
    about = {**found.provenance, "checkpoint_sha256": "0" * 64}
    artifact.record(replace(found, provenance=about), {})
    (run / "model-int8.tflite").unlink()
    (run / "model-int8.tflite.json").unlink()
    assert fedkit(f"export {run}", monkeypatch) == 2
    assert "was not made from the checkpoint" in " ".join(capsys.readouterr().err.split())
    assert not (run / "model-int8.tflite").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    {
        "--target tflite,tvm": "target is 'tvm'; give one of tflite, onnx, c99, fpga",
        "--bits 5": "bits is 5; give one of 8, 6, 4",
        "--target c99 --goal beauty": "goal is 'beauty'; give one of speed, size",
    }.items(),
)
def test_a_bad_choice_of_artifacts_leaves_nothing(
    flags: str,
    message: str,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(path.name for path in (out / "done").iterdir())
    assert fedkit(f"export {out / 'done'} {flags}", monkeypatch) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in (out / "done").iterdir()) == before


BAD = {
    "--task nowhere": "no task 'nowhere'; give one of cifar10, cifar100, cinic10, "
    "damaged-digits, digits, digits-pixels, digits-reconstruction, digits-rows, fashion-mnist, "
    "fortunes, keywords, keywords-kwt, motions, motions-gru, svhn",
    "--task no.such.module:TASK": "cannot be imported",
    "--task fedkit.tasks.targets:describe": "leads to a function",
    "--density 0": "density is '0': input should be greater than 0",
    "--density 1.5": "density is '1.5': input should be less than or equal to 1",
    "--density nan": "density is 'nan'",
    "--density abc": "density is 'abc'",
    "--method fedtinny": "no method 'fedtinny'; give one of fedtiny, ",
    "--engine fast": "engine is 'fast': input should be 'auto', 'torch' or 'sparse'",
    "--model resnet9": "unknown model 'resnet9'; allowed: resnet8",
    "--model vgg11": "cannot take inputs of shape (1, 8, 8)",
    "--devices 2000": "2000 devices",
    "--alpha 0.01 --min-size 1": "device",
    "--partition pathological --classes-per-device 11": "classes_per_device is 11",
    "--partition natural-id": "owns",
    "--config missing.toml": "missing.toml cannot be read",
    "--exempt tail": "unknown layers ['tail']",
    "--density 0.0001": "raise density",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_is_one_clear_message_and_leaves_nothing(
    flags: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fedkit(f"run --in-process {flags}", monkeypatch) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert BAD[flags] in message and "Traceback" not in message
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_device_with_one_class_is_an_error_unless_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = "--devices 8 --alpha 0.01 --min-size 2 --seed 5"
    skewed = f"run {SMALL} --rounds 1 {shares} --out {tmp_path}"
    assert fedkit(skewed, monkeypatch) == 2
    assert "one class only" in " ".join(capsys.readouterr().err.split())
    assert fedkit(f"{skewed} --single-class allow --json", monkeypatch) == 0


def test_unknown_keys_of_a_config_file_are_named_with_the_allowed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    config.write_text('densitty = 0.1\ntask = "digits"\n')
    assert fedkit(f"run --config {config}", monkeypatch) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "unknown key 'densitty'; did you mean 'density'? allowed: task, model" in message


def test_one_bit_for_a_difference_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedkit("run --uplink-bits 1", monkeypatch) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "uplink_bits is '1': one bit" in message and "give 2 .. 8, or 0" in message


def test_integers_on_torch_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedkit(f"run --precision int8 --engine torch --out {tmp_path}", monkeypatch) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "precision is 'int8', but engine 'torch' computes in float32 only" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_flags_override_the_config_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    config.write_text("density = 0.5\nlr = 0.05\n")
    command = f"run {SMALL} --config {config} --density 0.2 --out {tmp_path} --name a --json"
    assert fedkit(command, monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["density"] == pytest.approx(0.2, abs=1e-3)
    assert "lr = 0.05" in (tmp_path / "a" / "config.toml").read_text()


@pytest.mark.parametrize("engine", ["torch", slow("sparse")])
def test_either_engine_runs_to_an_artifact_and_is_named(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"run {SMALL} --engine {engine} --out {tmp_path} --name a --json"
    assert fedkit(command, monkeypatch) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary["engine"].startswith(engine)
    assert f"engine: {summary['engine']}" in printed.err
    assert f'engine = "{engine}"' in (tmp_path / "a" / "config.toml").read_text()
    assert summary["accuracy_int8"] > 0.1 and summary["density"] == pytest.approx(0.1, abs=1e-3)
    assert fedkit(f"show {tmp_path / 'a'} --json", monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["engine"] == summary["engine"]


def test_a_run_that_falls_back_to_torch_says_why(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = json.loads((out / "done" / "summary.json").read_text())
    assert finished["engine"].startswith("sparse (")
    source = "from dataclasses import replace\nfrom fedkit.tasks import load_task\n"
    loss = "lambda outputs, targets: (outputs.logsumexp(1) - outputs[:, 0]).mean()"
    (tmp_path / "own_loss.py").write_text(
        f"{source}TASK = replace(load_task('digits'), loss={loss})"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = f"run {SMALL} --task own_loss:TASK --out {tmp_path} --name own"
    assert fedkit(own, monkeypatch) == 0
    assert "engine: torch; the sparse engine cannot run this: the loss" in " ".join(
        capsys.readouterr().err.split()
    )
    assert fedkit(f"{own}-2 --engine sparse", monkeypatch) == 2
    assert "other losses need --engine torch" in " ".join(capsys.readouterr().err.split())


def test_an_existing_run_folder_is_refused_before_anything_runs(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (out / "done").rglob("*")}
    assert fedkit(f"run {SMALL} --out {out} --name done", monkeypatch) == 2
    assert "never overwritten" in " ".join(capsys.readouterr().err.split())
    assert {path: path.stat().st_mtime_ns for path in (out / "done").rglob("*")} == before


def test_a_truncated_checkpoint_and_artifact_are_refused(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    for source in (p for p in (out / "done").rglob("*") if p.is_file()):
        target = copy / source.relative_to(out / "done")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    for name in ("checkpoint/model.safetensors", "model-int8.tflite"):
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[: len(data) // 2])
    assert fedkit(f"eval {copy / 'model-int8.tflite'}", monkeypatch) == 2
    assert "not the file its manifest describes" in " ".join(capsys.readouterr().err.split())
    (copy / "model-int8.tflite").unlink()
    (copy / "model-int8.tflite.json").unlink()
    assert fedkit(f"export {copy}", monkeypatch) == 2
    assert "truncated or altered" in " ".join(capsys.readouterr().err.split())


UNEXPORTABLE = """
from torch import nn
from fedkit.tasks import digits
from fedkit.tasks.task import Task
from tests.processes import left_running
def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Softshrink(), nn.Linear(9, 10))
TASK = Task('own', model, digits.train_data, digits.test_data)
"""


def test_a_model_that_cannot_be_exported_is_told_first_and_keeps_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_digits.py").write_text(UNEXPORTABLE)
    monkeypatch.syspath_prepend(tmp_path)
    own = f"run {SMALL} --task own_digits:TASK --out {tmp_path} --name own"
    assert fedkit(f"{own} --export tflite", monkeypatch) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert (
        "module '2': aten.softshrink.default is not supported" in message
        and "Nothing was run" in message
    )
    assert not (tmp_path / "own").exists()
    assert fedkit(own, monkeypatch) == 0
    message = " ".join(capsys.readouterr().err.split())
    assert "warning: the run will give no artifact" in message
    assert "module '2': aten.softshrink.default is not supported" in message
    assert fedkit(f"show {tmp_path / 'own'} --json", monkeypatch) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["finished"] and summary["rounds"] == 2 and "artifact" not in summary
    assert "softshrink" in summary["export_refused"]
    assert fedkit(f"show {tmp_path / 'own'}", monkeypatch) == 0
    assert fedkit(f"export {tmp_path / 'own'}", monkeypatch) == 2
    assert "softshrink" in capsys.readouterr().err


@pytest.mark.usefixtures("quick_compilation")
def test_several_targets_are_made_by_a_run_that_asks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = f"run {SMALL} --out {tmp_path} --name a --json"
    assert fedkit(f"{own} --export tvm", monkeypatch) == 2
    assert "target is 'tvm'" in capsys.readouterr().err and not (tmp_path / "a").exists()
    assert fedkit(f"{own} --export onnx,c99", monkeypatch) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [each["target"] for each in summary["artifacts"]] == ["onnx-qdq", "c99"]
    assert 0 < summary["float_error"]["test"] < 0.25
    for name, runtime in (("onnx", "onnxruntime"), ("c99", "compiled")):
        ending = {"onnx": ".onnx", "c99": "-c99"}[name]
        exact = artifact.load(tmp_path / "a" / f"model-int8{ending}").measured["exact"]
        assert (exact["runtime"], exact["examples"]) == (runtime, 16)
        assert exact["integers"] == 160 and (exact["differ"] == 0 or name == "onnx")


def test_a_graph_far_from_the_floats_is_not_exported(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(out / "done", run, ignore=shutil.ignore_patterns("model-*"))
    monkeypatch.setattr(truth, "REFUSED", 1e-4)
    monkeypatch.setattr(truth, "WARNED", 1e-5)
    assert fedkit(f"export {run}", monkeypatch) == 2
    assert "the calibration set" in (message := " ".join(capsys.readouterr().err.split()))
    assert "--accept-error" in message and not list(run.glob("model-*"))
    assert fedkit(f"export {run} --accept-error", monkeypatch) == 0
    message = " ".join(capsys.readouterr().err.split())
    assert "warning: the int8 model is not close" in message and "the test set" in message
    path = run / "model-int8.tflite"
    recorded = artifact.load(path).measured["float_error"]
    assert set(recorded) == {"calibration", "test"} and len(recorded["test"]["layers"]) > 5
    assert fedkit(f"check {path} --examples 40", monkeypatch) == 1
    assert "error against floats" in capsys.readouterr().out
    assert fedkit(f"check {path} --examples 40 --accept-error", monkeypatch) == 0


def test_a_missing_data_set_names_all_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedkit.tasks import fashion_mnist

    fashion_mnist._load.cache_clear()
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setenv("FEDKIT_DATA", str(tmp_path))
    assert fedkit("run --in-process --task fashion-mnist", monkeypatch) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert all(
        place in message for place in ("FEDKIT_DATA", str(tmp_path / "debian"), "zalando-datasets")
    )


def test_ctrl_c_between_rounds_keeps_what_was_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What Ctrl-C raises, raised once the second round is recorded."""
    append = RunFolder.append

    def append_and_stop(folder: RunFolder, report: Report, *rest: Any) -> None:
        append(folder, report, *rest)
        if report.round == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "append", append_and_stop)
    assert fedkit(f"run {SMALL} --rounds 5 --out {tmp_path} --name cut", monkeypatch) == 130
    told = " ".join(capsys.readouterr().err.split())
    assert f"look at it with: fedkit show {tmp_path / 'cut'}" in told
    assert fedkit(f"show {tmp_path / 'cut'} --json", monkeypatch) == 0
    summary = json.loads(capsys.readouterr().out)
    assert not summary["finished"] and summary["rounds"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--in-process", ""])
def test_ctrl_c_keeps_what_was_learned_and_says_how_to_see_it(flags: str, tmp_path: Path) -> None:
    command = f"-m fedkit run --rounds 500 --epochs 1 --devices 2 --out {tmp_path} --name cut"
    process = subprocess.Popen(
        [sys.executable, *command.split(), *flags.split()],
        env={**os.environ, "FEDKIT_TEST": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests themselves run in the background, Ctrl-C is ignored, also by children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    metrics = tmp_path / "cut" / "metrics.jsonl"
    wait_for(
        lambda: (
            process.poll() is not None
            or (metrics.is_file() and metrics.read_text().count("\n") >= 3)
        )
    )
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 130
    assert f"look at it with: fedkit show {tmp_path / 'cut'}" in " ".join(errors.split())
    shown = subprocess.run(
        [sys.executable, "-m", "fedkit", "show", str(tmp_path / "cut"), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    summary = json.loads(shown.stdout)
    assert not summary["finished"] and summary["rounds"] >= 1
    # The command has ended all it started; what watched over it ends a moment later.
    wait_for(lambda: not left_running(f"FEDKIT_TEST={tmp_path}"))


def test_plan_writes_what_a_device_without_torch_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "resnet8.plan"
    assert fedkit(f"plan {path} --task digits --model resnet8 --json", monkeypatch) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["weights"] == sum(map(math.prod, load_plan(path).weights.values()))
    assert fedkit(f"plan {path}", monkeypatch) == 2
    assert "give another path" in " ".join(capsys.readouterr().err.split())


def test_a_plan_holds_the_tasks_loss_and_one_of_its_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedkit(f"plan {tmp_path / 'a'} --task digits-reconstruction", monkeypatch) == 0
    assert load_plan(tmp_path / "a").loss == losses.MSE()
    source = "from dataclasses import replace\nfrom fedkit.tasks import load_task\n"
    (tmp_path / "task_of_own_loss.py").write_text(
        f"{source}TASK = replace(load_task('digits'), loss=lambda o, t: o.sum())"
    )
    monkeypatch.syspath_prepend(tmp_path)
    capsys.readouterr()
    own = f"plan {tmp_path / 'b'} --task task_of_own_loss:TASK"
    assert fedkit(own, monkeypatch) == 2 and not (tmp_path / "b").exists()
    assert "other losses need --engine torch" in " ".join(capsys.readouterr().err.split())


def test_a_shell_completes_commands_and_options() -> None:
    for line, wanted in (("fedkit rep", "report"), ("fedkit run --availab", "--availability")):
        about = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
        told = subprocess.run(
            [Path(sys.executable).with_name("fedkit")],
            env={**os.environ, **about, "_FEDKIT_COMPLETE": "complete_bash"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.split() == [wanted], told.stderr
