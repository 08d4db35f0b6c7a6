"""Every target is compared with the interpreter; what differs is named where it begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge import artifact
from edge.artifact import Artifact
from edge.check import Known, check
from edge.define import interpret_int8
from edge.define.rounding import Policy
from edge.export import int8_graph, save_c99, save_graph, save_onnx, save_tflite
from edge.quantize import truth
from edge.runners import open_runner
from edge.targets.registry import runtimes
from fedkit.core.errors import ExportError
from fedkit.core.numerics import Int64s
from fedkit.graph import ir
from tests.edge.models import Branches, DenseBlock, Flat
from tests.edge.targets.c99.library import need_gcc
from tests.sets import slow

Save = Callable[..., Artifact]
SAVES: dict[str, Save] = {"c99": save_c99, "tflite": save_tflite, "onnx-qdq": save_onnx}


class Net(nn.Module):
    """A strided convolution, a sum, a pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = self.pool(torch.relu(x + self.left(x)))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


class Twice(nn.Module):
    """A convolution that is used twice, and the sum of what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        once = torch.relu(self.layer(x))
        y: Tensor = (once + torch.relu(self.layer(once))).flatten(1)
        return y


@pytest.fixture(scope="module")
def inputs() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((60, 3, 12, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def graph(inputs: NDArray[np.float32]) -> ir.Graph:
    torch.manual_seed(0)
    return int8_graph(Net(), inputs)


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch, quick_compilation: None) -> None:
    need_gcc()
    monkeypatch.setenv("CC", "gcc")


def saved(
    target: str, graph: ir.Graph, said: ir.Graph, inputs: NDArray[np.float32], folder: Path
) -> Path:
    """Save an artifact of one graph whose manifest names another."""
    whole = save_graph(said, folder / "model.graph", {})
    about = {"graph": whole.path.name, "graph_sha256": whole.sha256}
    return SAVES[target](graph, inputs, folder / f"model-{target}", about).path


@pytest.mark.parametrize("target", SAVES)
@pytest.mark.parametrize("layers", [False, True])
def test_no_integer_differs(
    target: str, layers: bool, graph: ir.Graph, inputs: NDArray[np.float32], tmp_path: Path
) -> None:
    report = check(saved(target, graph, graph, inputs, tmp_path), inputs, layers=layers)
    assert (report.mismatches, report.first, report.examples) == (0, None, 60)
    assert (report.outputs.integers, report.same_class) == (60 * 5, 60)
    names = {op.output for op in graph.ops} if layers else set()
    if target == "c99":  # whose sum takes the convolution in
        names -= {op.output for op in graph.ops if op.source == "left"}
    assert set(report.layers) == names
    assert all(tally.integers > 0 for tally in report.layers.values())


def test_checks_that_share_what_is_known_say_the_same(
    graph: ir.Graph,
    inputs: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(1)
    other, known = int8_graph(Net(), inputs), Known()
    right = saved("onnx-qdq", graph, graph, inputs, tmp_path / "right")
    wrong = saved("onnx-qdq", graph, other, inputs, tmp_path / "wrong")
    cases = [(right, inputs), (wrong, inputs), (right, inputs[::-1]), (right, inputs[:50])]
    expected = [check(*case) for case in cases]
    assert expected[1].mismatches > 0, "another graph is another definition"
    assert [check(*case, known=known) for case in cases] == expected

    def compare(*arguments: object) -> None:
        raise AssertionError("this is known")

    monkeypatch.setattr(truth, "compare", compare)
    assert [check(*case, known=known) for case in cases] == expected


@pytest.mark.parametrize("target", SAVES)
def test_weights_may_be_shared(target: str, inputs: NDArray[np.float32], tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = int8_graph(Twice(), inputs)
    assert [op.source for op in graph.ops].count("layer") == 2
    report = check(saved(target, graph, graph, inputs, tmp_path), inputs, layers=True)
    assert report.mismatches == 0 and report.outputs.integers == inputs.size


@pytest.mark.parametrize("target", SAVES)
@pytest.mark.parametrize("body", [DenseBlock, slow(Branches)])
def test_what_concats_join_is_compared(
    target: str, body: type[nn.Module], inputs: NDArray[np.float32], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    graph = int8_graph(Flat(body()), inputs)
    report = check(saved(target, graph, graph, inputs, tmp_path), inputs, layers=True)
    assert report.mismatches == 0 and len(report.layers) >= len(graph.ops) - 1


@pytest.mark.parametrize("target", SAVES)
@pytest.mark.parametrize("source", ["stem", slow("head")])
def test_a_difference_is_named_where_it_begins(
    target: str,
    source: str,
    graph: ir.Graph,
    inputs: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = interpret_int8.compute

    def other(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Any) -> Int64s:
        value = exact(policy, graph, op, operands)
        value[..., 2] = np.minimum(value[..., 2] + 3 * (op.source == source), 127)
        return value

    monkeypatch.setattr(interpret_int8, "compute", other)
    report = check(saved(target, graph, graph, inputs, tmp_path), inputs)
    assert report.outputs.mismatches > 0 and report.outputs.largest >= 1
    first = report.first
    assert first is not None and first.source == source
    assert first.tensor == next(op.output for op in graph.ops if op.source == source)
    assert first.position[-1] == 2 and first.expected - first.actual == 3


def test_a_file_that_is_not_of_its_graph_differs_in_its_outputs(
    graph: ir.Graph, inputs: NDArray[np.float32], tmp_path: Path
) -> None:
    bias = graph.tensors[graph.ops[-1].inputs[2]]
    data = graph.constant(bias.name) + 2**20
    other = replace(graph, tensors={**graph.tensors, bias.name: replace(bias, data=data)})
    report = check(saved("tflite", graph, other, inputs, tmp_path), inputs)
    assert report.first is not None and report.first.tensor == graph.outputs[0]


def test_a_policy_that_is_not_the_runtimes_shows(
    graph: ir.Graph,
    inputs: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = saved("tflite", graph, graph, inputs, tmp_path)
    monkeypatch.setitem(runtimes(), "tflite", {"ai-edge-litert": "half_up"})
    many = np.random.default_rng(1).standard_normal((2000, 3, 12, 12)).astype(np.float32)
    report = check(path, many, layers=True)
    assert report.mismatches > 0 and report.outputs.largest <= 2


def test_parity_is_one_line(graph: ir.Graph, inputs: NDArray[np.float32], tmp_path: Path) -> None:
    paths = [
        SAVES[target](graph, inputs, tmp_path / f"model-{target}", {}).path for target in SAVES
    ]
    first, *others = (open_runner(path).predict(inputs) for path in paths)
    step = graph.tensors[graph.outputs[0]].scale
    assert all(np.abs(first - other).max() <= 1.01 * step for other in others)


def refused(path: Path, inputs: NDArray[np.float32], **how: Any) -> str:
    with pytest.raises(ExportError) as refusal:
        check(path, inputs, **how)
    return str(refusal.value)


def test_what_cannot_be_checked_is_refused(
    graph: ir.Graph, inputs: NDArray[np.float32], tmp_path: Path
) -> None:
    alone = save_tflite(graph, inputs, tmp_path / "alone.tflite", {}).path
    assert "names no graph to compare with; export it by `fedkit export`" in refused(alone, inputs)
    assert "give one of ai-edge-litert, tflite-runtime" in refused(alone, inputs, runtime="tvm")
    path = saved("c99", graph, graph, inputs, tmp_path)
    whole = tmp_path / "model.graph"
    assert "'graph', which nothing runs" in refused(whole, inputs)
    artifact.manifest_path(whole).unlink()
    whole.unlink()
    assert "cannot read the artifact" in refused(path, inputs)
    save_graph(ir.until(graph, graph.ops[-2].output), whole, {})
    assert "was not made from the graph" in refused(path, inputs)
