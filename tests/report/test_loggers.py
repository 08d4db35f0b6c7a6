"""Loggers: what their own readers give back are the numbers of the run."""

from __future__ import annotations

import importlib.util
import json
import math
import socket
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedkit.core.errors import ConfigError
from fedkit.report import loggers
from fedkit.report.loggers import LOGGERS, logged, require
from tests.report.run_folders import make_run, step
from tests.report.typed import typed
from tests.sets import slow_but

STEPS = [
    step(0, phase="start", loss=None),
    step(0, phase="selection", accuracy=0.25),
    step(1, loss=math.pi, message_bytes_up=2**40),
    step(2, accuracy=None),
]
Read = Mapping[str, list[tuple[int, float]]]


def written() -> Read:
    """Every number of `STEPS`: name -> round and value, in their order."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in STEPS:
        for key, value in line.items():
            if key not in ("phase", "round") and value is not None:
                found.setdefault(key, []).append((line["round"], float(value)))
    return found


def of_tensorboard(path: Path) -> Read:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    return {
        name: [(each.step, each.value) for each in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def of_mlflow(path: Path) -> Read:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{path.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fedkit")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == path.name and run.data.params["rounds"] == "3"
    names = run.data.metrics
    return {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in names
    }


def of_wandb(path: Path) -> Read:
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]
    from wandb.sdk.internal.datastore import DataStore

    found: dict[str, list[tuple[int, float]]] = {}
    (file,) = path.glob("wandb/offline-run-*/run-*.wandb")
    store = DataStore()
    store.open_for_scan(str(file))
    records = [Record.FromString(each) for each in iter(store.scan_data, None)]
    (run,) = (each.run for each in records if each.WhichOneof("record_type") == "run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (run.display_name, run.project, config["rounds"]) == (path.name, "fedkit", 3)
    assert run.host == "" and run.git.remote_url == ""
    for record in records:
        row = {}
        for item in record.history.item:
            row[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        for key in row.keys() - {"round"} if "round" in row else ():
            if not key.startswith("_"):
                found.setdefault(key, []).append((row["round"], row[key]))
    return found


READERS = {"tensorboard": of_tensorboard, "mlflow": of_mlflow, "wandb": of_wandb}


def test_every_logger_is_read_back() -> None:
    assert READERS.keys() == LOGGERS.keys()


@pytest.mark.filterwarnings("default")  # theirs are not ours
@pytest.mark.parametrize("name", slow_but(["tensorboard"], READERS))
def test_its_reader_gives_back_what_was_written(tmp_path: Path, name: str) -> None:
    if importlib.util.find_spec(LOGGERS[name].package) is None:
        pytest.skip(f"{name} is not installed: pip install 'fedkit[{name}]'")
    path = make_run(tmp_path / "run").path
    for _ in range(2):  # a run that goes on is written again, not twice
        with logged(path, [name]) as write:
            for count in range(len(STEPS) + 1):
                write(STEPS[:count])
    found = READERS[name](path)
    assert found.keys() == written().keys()
    for key, values in written().items():
        assert [number for number, _ in found[key]] == [number for number, _ in values]
        read, told = [v for _, v in found[key]], [v for _, v in values]
        assert read == pytest.approx(told, rel=1e-7)  # TensorBoard keeps float32


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # theirs are not ours
def test_wandb_sends_nothing_and_names_no_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="pip install 'fedkit[wandb]'")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        for name in ("WANDB_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)  # a person who is logged in
        monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
        path = make_run(tmp_path / "run").path
        with logged(path, ["wandb"]) as write:
            write(STEPS)
        server.settimeout(0.5)
        with pytest.raises(TimeoutError):
            server.accept()
    files = [each.read_bytes() for each in (path / "wandb").rglob("*") if each.is_file()]
    host = socket.gethostname().encode()
    assert files and not any(host in content for content in files)


def test_before_the_first_step_nothing_is_made(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run").path
    with logged(path, list(LOGGERS)) as write:
        write([])
    assert [each.name for each in path.iterdir()] == ["config.toml"]
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_is_told_before_anything_runs(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    assert typed(monkeypatch, "run", "--log", name, "--in-process") == 2
    assert f"pip install 'fedkit[{name}]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["weights", "", "tensorboard,", "TensorBoard"])
def test_what_is_no_logger_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="give some of tensorboard, mlflow, wandb"):
        require(name.split(","))


@pytest.mark.slow
def test_a_run_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--quick", "--devices=2", "--rounds=2", "--name=a", "--log=tensorboard"]
    assert typed(monkeypatch, "run", "--in-process", *words) == 0
    assert "log: tensorboard --logdir runs/a/tensorboard" in capsys.readouterr().err
    lines = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    told = [(line["round"], line["accuracy"]) for line in lines if line["accuracy"] is not None]
    found = of_tensorboard(Path("runs/a"))["accuracy"]
    assert [number for number, _ in found] == [number for number, _ in told]
    assert [value for _, value in found] == pytest.approx([value for _, value in told], rel=1e-6)
