"""An int8 model is compared with the float model: what is far from it is told, and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge import artifact, graph_file
from edge.check import check
from edge.define.interpret_int8 import evaluate_int8
from edge.export import export_tflite, int8_graph, save_c99, save_fpga, save_graph, save_onnx
from edge.inspect import inspect
from edge.quantize import truth
from edge.quantize.truth import ExportWarning
from edge.targets.tflite.runner import TfliteRunner
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.interpret import evaluate
from tests.sets import slow_but

Floats = NDArray[np.float32]
Save = Callable[..., artifact.Artifact]


class Two(nn.Module):
    """Two branches, the second of which a bias silences."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)
        nn.init.constant_(self.b.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.a(x)) + torch.relu(self.b(x)))
        return y


class Score(nn.Module):
    """A score that is 0 for all that is normal: it fires where the inputs are above a bound."""

    def __init__(self, features: int, bound: float) -> None:
        super().__init__()
        self.detect, self.score = nn.Linear(features, features), nn.Linear(features, 1)
        nn.init.eye_(self.detect.weight)
        nn.init.constant_(self.detect.bias, -bound)
        nn.init.constant_(self.score.weight, 1.0)
        nn.init.constant_(self.score.bias, 0.25)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.score(torch.relu(self.detect(x)))
        return y


def features(count: int, seed: int = 0, size: int = 4) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)


def floats_of(model: nn.Module, inputs: Floats) -> Floats:
    with torch.no_grad():
        return np.asarray(model.eval()(torch.from_numpy(inputs)).numpy())


def integers_of(graph: ir.Graph, inputs: Floats) -> Floats:
    """Run the int8 graph on float inputs; return its outputs as floats."""
    x, y = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    codes = np.clip(np.round(ir.to_graph_layout(inputs) / x.scale) + x.zero_point, -128, 127)
    found = evaluate_int8(graph, codes.astype(np.int8))
    return np.asarray(y.scale * (found.astype(np.float32) - y.zero_point), np.float32)


@pytest.mark.parametrize("bias", [-20.0, -4.0])
def test_a_silent_branch_leaves_the_others_as_they_are(bias: float) -> None:
    inputs = features(100)
    for seed in range(10 if bias == -20 else 3):
        torch.manual_seed(seed)
        model = Two(bias)
        found, wanted = integers_of(int8_graph(model, inputs), inputs), floats_of(model, inputs)
        assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.98
        assert np.abs(found - wanted).max() <= 0.05 * np.ptp(wanted)


def test_the_artifact_of_a_silent_branch_gives_the_classes_of_the_model(tmp_path: Path) -> None:
    model, inputs = Two(-20.0), features(100)
    export_tflite(model, inputs, tmp_path / "m.tflite", {})
    found = TfliteRunner(tmp_path / "m.tflite").predict(inputs)
    assert (found.argmax(1) == floats_of(model, inputs).argmax(1)).mean() >= 0.98


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("scales", ["float", "pow2"])
def test_a_score_that_was_constant_in_calibration_still_grows(scales: Any, bits: int) -> None:
    model = Score(4, 2.0)
    model.detect.weight.data[0] = 0  # nothing reads the feature that has the inputs' whole range
    normal = np.clip(features(200), -1.9, 1.9)
    normal[:2, 0] = 3, -3
    graph = int8_graph(model, normal, bits, scales)
    unlike = np.random.default_rng(1).uniform(-3, 3, (200, 4)).astype(np.float32)
    wanted, found = floats_of(model, unlike), integers_of(graph, unlike)
    assert wanted.max() > 1.5  # calibration never showed more than 0.25
    assert np.abs(found - wanted).max() <= 0.1 * np.ptp(wanted)
    assert np.abs(integers_of(graph, normal) - 0.25).max() <= 0.05


def test_a_layer_joined_with_wider_ones_keeps_its_size() -> None:
    class TwoScales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.wide = nn.Linear(4, 4), nn.Linear(4, 4)
            self.small.weight.data[0] *= 1e-3
            self.small.bias.data[0] *= 1e-3
            self.wide.weight.data *= 300

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.small(x), self.wide(x)], 1)

    model, inputs = TwoScales(), features(100)
    graph = int8_graph(model, inputs)
    step = graph.tensors[graph.outputs[0]].scale
    found, wanted = integers_of(graph, inputs), floats_of(model, inputs)
    assert np.abs(found - wanted)[:, :4].max() <= 2 * step


class Pieces(nn.Module):
    """A small network drawn at random: convolutions, norms, branches, pools."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.parts = nn.ModuleList(self._part(rng) for _ in range(int(rng.integers(1, 4))))
        self.how = [str(rng.choice(["add", "cat", "chain"])) for _ in self.parts]
        self.narrow = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in self.parts)
        self.head = nn.Linear(4, 3)

    def _part(self, rng: np.random.Generator) -> nn.Module:
        groups = int(rng.choice([1, 4]))
        conv, norm = nn.Conv2d(4, 4, 3, padding=1, groups=groups), nn.BatchNorm2d(4)
        norm.running_mean = torch.from_numpy(rng.normal(size=4).astype(np.float32)) * 0.3
        norm.running_var = torch.from_numpy(rng.uniform(0.3, 2, 4).astype(np.float32))
        if rng.random() < 0.3 and conv.bias is not None:
            nn.init.constant_(conv.bias, -30.0)  # silent behind a ReLU
        if rng.random() < 0.2:
            nn.init.zeros_(conv.weight)  # pruned
        order = [conv, norm, nn.ReLU()] if rng.random() < 0.5 else [conv, nn.ReLU(), norm]
        return nn.Sequential(*order, nn.MaxPool2d(3, 1, 1) if rng.random() < 0.3 else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for part, how, narrow in zip(self.parts, self.how, self.narrow, strict=True):
            y = part(x)
            x = {"add": x + y, "chain": y, "cat": narrow(torch.cat([x, y], 1))}[how]
        z: Tensor = self.head(x.mean((2, 3)))
        return z


def calibration(kind: str, rng: np.random.Generator) -> Floats:
    shape = (24, 2, 5, 5)
    inputs = {
        "normal": lambda: rng.normal(size=shape),
        "one": lambda: rng.normal(size=(1, *shape[1:])),
        "constant": lambda: np.broadcast_to(rng.normal(size=(1, 2, 1, 1)), shape),
        "zero": lambda: np.zeros(shape),
        "positive": lambda: rng.uniform(1, 2, shape),
        "tiny": lambda: rng.normal(size=shape) * 1e-12,
        "large": lambda: rng.normal(size=shape) * 1e6,
        "one channel": lambda: rng.normal(size=shape) * [[[[1.0]], [[0.0]]]],
    }[kind]()
    return np.asarray(inputs, np.float32)


KINDS = ["normal", "one", "constant", "zero", "positive", "tiny", "large", "one channel"]


@pytest.mark.parametrize("kind", slow_but(KINDS[:3], KINDS))
@pytest.mark.filterwarnings("ignore::edge.quantize.truth.ExportWarning")
def test_nets_drawn_at_random_are_close_to_their_floats_or_refused(kind: str) -> None:
    refused = 0
    for seed in range(3):
        rng = np.random.default_rng([seed, KINDS.index(kind)])
        torch.manual_seed(seed)
        model, inputs = Pieces(rng), calibration(kind, rng)
        wanted = floats_of(model, inputs)
        try:
            found = integers_of(int8_graph(model, inputs), inputs)
        except ExportError:
            refused += 1
            continue
        spread = np.sqrt(np.square(wanted - wanted.mean()).mean())
        assert np.sqrt(np.square(found - wanted).mean()) <= 0.401 * spread
    assert refused <= 1


# The comparison itself


@pytest.fixture
def graph() -> ir.Graph:
    return int8_graph(Two(-1.0), features(100))


def scaled(graph: ir.Graph, factor: float) -> ir.Graph:
    """Return a graph whose last weights are worth `factor` times what they are."""
    (*_, op) = graph.ops
    scales = {}
    for name in op.inputs[1:]:
        q = graph.tensors[name].quantization
        assert q is not None
        more = ir.Quantization(tuple(s * factor for s in q.scale), q.zero_point, q.axis)
        scales[name] = replace(graph.tensors[name], quantization=more)
    return replace(graph, tensors={**graph.tensors, **scales})


def test_the_noise_is_that_of_its_definition(graph: ir.Graph) -> None:
    assert graph.origin is not None
    torch.manual_seed(0)
    inputs = features(60, seed=3)
    found = truth.compare(graph, graph.origin.floats, inputs)
    real = evaluate(graph.origin.floats, inputs).astype(np.float64)
    actual = integers_of(graph, inputs)
    noise = np.sqrt(np.mean((actual - real) ** 2))
    assert found.output == pytest.approx(noise / np.std(real), rel=1e-4)
    assert found.same_class == np.mean(actual.argmax(1) == real.argmax(1))
    assert (found.examples, list(found.layers)) == (60, [graph.inputs[0], *_outputs(graph)])


def _outputs(graph: ir.Graph) -> list[str]:
    return [op.output for op in graph.ops]


def test_a_wrong_scale_is_refused_unless_it_is_accepted(graph: ir.Graph) -> None:
    assert graph.origin is not None
    inputs = features(60)
    for factor, outcome in ((1.0, None), (1.3, ExportWarning), (2.0, ExportError)):
        found = truth.compare(scaled(graph, factor), graph.origin.floats, inputs)
        if outcome is None:
            truth.judge(found, graph, "the test set")
        elif outcome is ExportWarning:
            with pytest.warns(ExportWarning, match=r"not close to the float model.*the test set"):
                truth.judge(found, graph, "the test set")
        else:
            with pytest.raises(ExportError, match=r"grows most at 'head'.*--accept-error"):
                truth.judge(found, graph, "the test set")
            with pytest.warns(ExportWarning, match="off by"):
                truth.judge(found, graph, "the test set", accept_error=True)


def test_a_model_whose_values_int8_does_not_hold_is_refused() -> None:
    model, inputs = nn.Linear(4, 3), features(50) + 2000
    model.bias.data = -model.weight.data.sum(1) * 2000  # all that varies is below one step
    with pytest.raises(ExportError, match=r"not close to the float model.*normalise inputs"):
        int8_graph(model, inputs)
    with pytest.warns(ExportWarning):
        assert int8_graph(model, inputs, accept_error=True).origin is not None


def test_every_manifest_holds_the_error_of_every_layer(graph: ir.Graph, tmp_path: Path) -> None:
    inputs = features(100)
    saves: list[Save] = [save_graph, save_c99, save_fpga, save_onnx]
    for number, save in enumerate(saves):
        path = tmp_path / str(number)
        saved = save(graph, path, {}) if save is save_graph else save(graph, inputs, path, {})
        error = artifact.load(saved.path).details["float_error"]
        assert graph.origin is not None and error["layers"] == graph.origin.noise
        assert 0 < error["output"] == error["layers"][graph.outputs[0]] < 0.05
        assert (error["examples"], error["same_class"] > 0.95) == (100, True)


def test_the_graph_file_brings_the_float_model_to_check(graph: ir.Graph, tmp_path: Path) -> None:
    whole = save_graph(graph, tmp_path / "m.graph", {})
    about = {"graph": "m.graph", "graph_sha256": whole.sha256}
    saved = save_onnx(graph_file.load_graph(whole.path), features(9), tmp_path / "m.onnx", about)
    report = check(saved.path, features(50, seed=5))
    assert report.mismatches == 0 and report.truth is not None
    assert 0 < report.truth.output < 0.05 and report.truth.examples == 50
    (*_, last) = inspect(saved, graph_file.load_graph(whole.path))
    assert graph.origin is not None and last.error == graph.origin.noise[last.name]


def test_an_artifact_without_float_model_is_told(graph: ir.Graph, tmp_path: Path) -> None:
    whole = save_graph(replace(graph, origin=None), tmp_path / "m.graph", {})
    about = {"graph": "m.graph", "graph_sha256": whole.sha256}
    loaded = graph_file.load_graph(whole.path)
    saved = save_onnx(loaded, features(9), tmp_path / "m.onnx", about)
    assert check(saved.path, features(5)).truth is None
    assert "float_error" not in saved.details


def test_a_graph_file_of_the_first_version_is_read(graph: ir.Graph) -> None:
    data = graph_file.to_bytes(replace(graph, origin=None))
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    content = json.loads(header["__metadata__"]["graph"])
    content["version"] = 1
    content.pop("origin", None)
    header["__metadata__"]["graph"] = json.dumps(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    old = len(text).to_bytes(8, "little") + text + data[8 + size :]
    loaded = graph_file.from_bytes(old)
    assert loaded.origin is None and loaded.ops == graph.ops


def pictures(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, 1, 4, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("calibration", "found"),
    [
        (pictures(1), "one example;"),
        (np.repeat(pictures(1), 5, axis=0), "one example, 5 times;"),
        (pictures(6)[..., :1, :1].repeat(4, 2).repeat(4, 3), "images of one colour each"),
    ],
    ids=["one", "one over and over", "flat"],
)
def test_a_calibration_set_that_shows_nothing_is_told(calibration: Floats, found: str) -> None:
    with pytest.warns(ExportWarning, match=f"the calibration set holds {found}"):
        truth.warn_of_few(calibration)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    with pytest.warns(ExportWarning, match=found):
        int8_graph(net, calibration, accept_error=True)


def test_a_calibration_set_of_several_examples_is_not(recwarn: pytest.WarningsRecorder) -> None:
    for calibration in (pictures(2), features(2), features(0)):
        truth.warn_of_few(calibration)
    assert not list(recwarn)
