"""What `import fedkit` and `import edge` offer."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from torch import nn

import edge
import fedkit
from fedkit.core.errors import CheckpointError, ConfigError, ExportError, TaskError
from fedkit.graph import ir
from fedkit.server.checkpoint import RunFolder
from fedkit.tasks import load_task
from tests.fresh import HEAVY, ROOT, imported_by
from tests.graph.exported import exported

FACES = (fedkit, edge)
SETTINGS: dict[str, Any] = {
    "devices": 2,
    "rounds": 1,
    "epochs": 1,
    "server_epochs": 1,
    "sparse_epochs": 1,
    "examples_per_device": 40,
    "test_examples": 100,
}


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
def test_every_name_is_found_listed_and_explained(face: ModuleType) -> None:
    for name in face.__all__:
        value = getattr(face, name)
        assert name in dir(face)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert vars(value)["__doc__"] if inspect.isclass(value) else value.__doc__, name
    star: dict[str, object] = {}
    exec(f"from {face.__name__} import *", star)
    assert set(face.__all__) <= set(star)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        face.nothing  # noqa: B018


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
def test_type_checkers_see_the_same_as_python(face: ModuleType) -> None:
    """The imports under TYPE_CHECKING are those that are made when a name is asked for."""
    assert face.__file__
    tree = ast.parse(Path(face.__file__).read_text())
    (branch,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    (table,) = (node for node in ast.walk(branch) if isinstance(node, ast.Dict))
    assert ast.literal_eval(table) == seen
    assert set(face.__all__) - {"__version__"} == set(seen)
    for name, module in seen.items():
        assert getattr(face, name) is getattr(importlib.import_module(str(module)), name)


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
def test_no_name_is_that_of_a_module_there_is_or_was(face: ModuleType) -> None:
    """Else whichever is imported last would take the other's place."""
    from fedkit.core.moved import EMPTIED, MODULES

    assert face.__file__
    folder = Path(face.__file__).parent
    there = {path.stem for path in folder.iterdir()}
    was = {
        each.removeprefix(f"{face.__name__}.")
        for each in (*MODULES, *EMPTIED)
        if each.startswith(f"{face.__name__}.")
    }
    assert {"lower", "emit"} & was or {"task", "baselines"} & was
    assert set(face.__all__) & (there | was) == set()


@pytest.mark.parametrize("name", ["fedkit", "edge", "sim"])
def test_to_import_a_face_imports_nothing_of_weight(name: str) -> None:
    found = imported_by(f"import {name}; dir({name}); {name}.__doc__")
    assert found & {*HEAVY, "numpy", "scipy", "pydantic", "typing"} <= imported_by("pass")


def test_twelve_lines_train_a_fleet_and_export_what_it_learned(tmp_path: Path) -> None:
    calls: list[fedkit.Report] = []
    task = load_task("digits")
    data, test = task.examples("train"), task.examples("test")

    own = fedkit.Task("own", "resnet8", lambda: data, lambda: test)
    result = fedkit.run(own, **SETTINGS, density=0.2, seed=3, after_step=calls.append)
    model, images = result.module(), test.inputs[:50]
    saved = edge.export_model(model, images, tmp_path / "own.tflite", accept_error=True)
    report = edge.check_artifact(saved.path, images)
    outputs = edge.open_artifact(saved.path).predict(images)

    assert tuple(calls) == result.steps and result.steps[-1].round == 1
    assert result.density == pytest.approx(0.2, abs=0.005)
    assert result.accuracy == result.value == result.steps[-1].accuracy
    assert result.bytes_sent > 0 and result.folder is None and result.config.task == "own"
    assert isinstance(model, nn.Module) and not model.training
    assert report.mismatches == 0 and outputs.shape == (50, 10)


def test_a_task_by_its_name_and_as_an_object_give_the_same(tmp_path: Path) -> None:
    named = fedkit.run("digits", **SETTINGS, folder=tmp_path / "r")
    given = fedkit.run(load_task("digits"), **SETTINGS)
    assert named.folder == tmp_path / "r"
    stored = RunFolder.open(tmp_path / "r").load().state
    for name, weights in given.state.weights.items():
        np.testing.assert_array_equal(weights, named.state.weights[name])
        np.testing.assert_array_equal(weights, stored.weights[name])
    with pytest.raises(CheckpointError, match="exists"):
        fedkit.run("digits", **SETTINGS, folder=tmp_path / "r")


def test_what_cannot_be_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key 'device'; did you mean 'devices'"):
        fedkit.run("digits", device=3)
    with pytest.raises(ConfigError, match="rounds is 0"):
        fedkit.run("digits", rounds=0)
    with pytest.raises(TaskError, match="no task 'digit'"):
        fedkit.run("digit")
    with pytest.raises(ConfigError, match=r"task is a int; give a fedkit\.Task"):
        fedkit.run(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must find it by a name"):
        fedkit.run(load_task("digits"), folder="somewhere")
    assert not Path("somewhere").exists()
    for error in (ConfigError, TaskError, ExportError):
        assert issubclass(error, fedkit.FedkitError)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()


def test_every_kind_of_model_becomes_the_same_graph(tmp_path: Path) -> None:
    model, shape = network(), (1, 8, 8)
    file = tmp_path / "m.onnx"
    file.write_bytes(exported(model, shape))
    calibration = np.random.default_rng(0).random((20, *shape), np.float32)
    floats = edge.float_graph(model, shape)
    kinds = [op.kind for op in floats.ops]
    assert [op.kind for op in edge.float_graph(str(file)).ops] == kinds
    whole = edge.int8_graph(model, calibration)
    for each in (file, floats, edge.float_graph(floats)):
        assert [op.kind for op in edge.int8_graph(each, calibration).ops] == [
            op.kind for op in whole.ops
        ]
    first = edge.export_model(whole, calibration, tmp_path / "a.tflite")
    again = edge.export_model(model, calibration, tmp_path / "b", "tflite", {"seed": 0})
    assert first.path.read_bytes() == again.path.read_bytes()
    assert again.provenance["seed"] == 0
    for saved in (first, again):
        assert edge.check_artifact(saved.path, calibration, layers=True).mismatches == 0


@pytest.mark.parametrize(
    ("name", "target"),
    [("m.onnx", "onnx-qdq"), ("m-c99", "c99"), ("m-fpga", "fpga"), ("m.graph", "graph")],
)
def test_the_path_tells_the_target(tmp_path: Path, name: str, target: str) -> None:
    calibration = np.random.default_rng(0).random((20, 1, 8, 8), np.float32)
    saved = edge.export_model(network(), calibration, tmp_path / name)
    assert saved.target == target and saved.path == tmp_path / name
    with pytest.raises(ExportError, match="exists already"):
        edge.export_model(network(), calibration, tmp_path / name)


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    calibration = np.zeros((4, 1, 8, 8), np.float32)
    with pytest.raises(ExportError, match="does not tell what to make of it"):
        edge.export_model(network(), calibration, tmp_path / "model")
    with pytest.raises(ExportError, match="target is 'tfl'; give target as one of tflite"):
        edge.export_model(network(), calibration, tmp_path / "model.tflite", "tfl")
    with pytest.raises(ExportError, match=r"model\.pt is no \.onnx file"):
        edge.float_graph(tmp_path / "model.pt")
    with pytest.raises(ExportError, match="input_shape is None"):
        edge.float_graph(network())
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: object) -> None:
        assert (tmp_path / "m.tflite.graph").is_file()
        raise ExportError("no")

    monkeypatch.setattr("edge.api.save", save)
    calibration = np.random.default_rng(0).random((20, 1, 8, 8), np.float32)
    with pytest.raises(ExportError, match="no"):
        edge.export_model(network(), calibration, tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []


def test_names_of_modules_stay_modules() -> None:
    assert isinstance(importlib.import_module("edge.export"), ModuleType)
    assert edge.Graph is ir.Graph and (ROOT / "edge" / "export.py").is_file()
