"""Names in exported files: of modules, plain, no two alike; the integers are what they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import nn

from edge.export import int8_graph, save_onnx, save_tflite
from edge.passes.name_by_module import name_by_module
from edge.runners import open_runner
from edge.targets.onnx import emitter as onnx_emitter
from edge.targets.onnx.runner import OnnxRunner
from edge.targets.tflite import emitter as tflite_emitter
from edge.targets.tflite.runner import TfliteRunner
from fedkit.graph import ir
from fedkit.graph.verify import verify
from tests.edge.models import MODELS, Flat, images


class Net(nn.Module):
    """Modules with names, one of which is used twice, and an op of no module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.twice = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.twice(self.twice(x))
        return self.head(x.mean((2, 3)))


def net() -> ir.Graph:
    torch.manual_seed(0)
    return int8_graph(Net().eval(), images(3, 8, 10))


def names_in_tflite(path: Path) -> list[str]:
    found = Interpreter(str(path)).get_tensor_details()
    return [each["name"] for each in found]


def names_in_onnx(path: Path) -> list[str]:
    graph = onnx.load(path).graph
    made = [name for node in graph.node for name in node.output]
    return [*made, *(each.name for each in graph.initializer), *(each.name for each in graph.input)]


@pytest.mark.parametrize(
    ("save", "ending", "read"),
    [(save_tflite, "tflite", names_in_tflite), (save_onnx, "onnx", names_in_onnx)],
)
def test_a_file_names_the_modules(
    save: Callable[..., object], ending: str, read: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    graph, path = net(), tmp_path / f"m.{ending}"
    save(graph, images(3, 8, 10), path, {})
    found = read(path)
    assert len(set(found)) == len(found)
    assert all(name.isascii() and name.isprintable() and " " not in name for name in found)
    wanted = {
        *("stem.0/conv2d_relu", "stem.0/weight", "stem.0/bias"),
        *("twice/conv2d", "twice/conv2d_2", "twice/weight"),
        *("model/add", "model/mean", "head/weight", graph.inputs[0], graph.outputs[0]),
    }
    assert wanted <= set(found)


@pytest.mark.parametrize("name", MODELS)
def test_names_change_no_integer(name: str) -> None:
    inputs = images(3, 8, 10)
    graph = int8_graph(Flat(MODELS[name]()).eval(), inputs)
    named = name_by_module(graph)
    verify(named)
    codes = np.random.default_rng(1).integers(-128, 128, (5, 3, 8, 10)).astype(np.int8)
    one, other = (TfliteRunner(tflite_emitter.emit(g)).predict_int8(codes) for g in (graph, named))
    assert np.array_equal(one, other)
    one, other = (OnnxRunner(onnx_emitter.emit(g)).predict_int8(codes) for g in (graph, named))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("source", ["a b\n\x1b[2J\"'", "é" * 9, "x" * 10**5, "/", "", "a/../b"])
def test_names_of_others_are_plain_and_differ(source: str) -> None:
    graph = net()
    named = name_by_module(
        replace(graph, ops=tuple(replace(op, source=source) for op in graph.ops))
    )
    assert len(named.tensors) == len(graph.tensors)
    for name in named.tensors:
        assert name.isascii() and name.isprintable() and 0 < len(name) < 160
        assert not set(name) & set(" \"'\\\n")
    assert (named.inputs, named.outputs) == (graph.inputs, graph.outputs)


@pytest.mark.parametrize("name", ["stem.0/conv2d_relu", "stem.0/conv2d_relu.scale", "stem.0/bias"])
def test_an_output_called_as_a_tensor_would_be_keeps_its_name(name: str, tmp_path: Path) -> None:
    graph = net()
    (old,) = graph.outputs
    last = replace(graph.ops[-1], outputs=(name,))
    tensors = {k: v for k, v in graph.tensors.items() if k != old}
    tensors[name] = replace(graph.tensors[old], name=name)
    graph = replace(
        graph, tensors=tensors, ops=(*graph.ops[:-1], last), outputs=(name,), origin=None
    )
    inputs = images(3, 8, 10)
    for save, path in ((save_onnx, tmp_path / "m.onnx"), (save_tflite, tmp_path / "m.tflite")):
        saved = save(graph, inputs, path, {})
        assert [port.name for port in saved.outputs] == [name]
        assert np.isfinite(open_runner(saved.path).predict(inputs)).all()
    found = names_in_onnx(tmp_path / "m.onnx")
    assert len(set(found)) == len(found)
