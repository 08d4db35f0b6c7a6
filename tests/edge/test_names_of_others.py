r"""Names of layers that would be code, if they reached source text as they are.

An artifact whose layers are called so is the one with plain names, but for comments; comments hold
nothing that ends them, joins lines, or is an address of $readmemh.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edge.define.interpret_int8 import evaluate_int8
from edge.export import int8_graph, load_onnx, save_c99, save_fpga, save_graph
from edge.graph_file import load_graph
from edge.targets.c99 import emitter as c99
from edge.targets.c99.runner import CompiledRunner
from edge.targets.fpga import emitter as fpga
from fedkit.graph import ir
from tests.edge.models import images
from tests.edge.targets.c99.library import need_gcc
from tests.naive.engine import FpgaEngine
from tests.sets import slow_but

INPUTS = images(1, 6, 6)
HOSTILE = [
    "a\nint evil(void);",
    "*/ int evil; /*",
    "*\\\n/ int evil; /\\\n*",
    "*??/\n/ int evil; /*",
    "\\",
    "??/",
    "@0 deadbeef",
    "x\n@0 deadbeef\n",
    '`include "evil.v"',
    "$(touch evil)",
    "a\rb\x0bc\x0cd",
    "a\u2028b\u2029c\x85d",
    "\u202e\u0000",
    "// /* */ //",
    "x" * 10_000,
    '"; $finish; "',
    "%n%s",
    "\ud800",
]


def onnx_graph(names: tuple[str, str, str]) -> ir.Graph:
    """Read a file of three nodes: a convolution, a ReLU and a linear layer."""
    rng = np.random.default_rng(0)
    made = {
        "w": rng.standard_normal((3, 1, 3, 3)),
        "b": rng.standard_normal(3),
        "v": rng.standard_normal((4, 48)),
        "c": rng.standard_normal(4),
    }
    one, two, three = names
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], name=one),
        helper.make_node("Relu", ["h"], ["r"], name=two),
        helper.make_node("Flatten", ["r"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "v", "c"], ["y"], name=three, transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in made.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return int8_graph(load_onnx(model.SerializeToString()), INPUTS)


def torch_graph(name: str) -> ir.Graph:
    """Lower a module two of whose children are called so; torch takes no dots in names."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for number, layer in enumerate((nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten())):
        model.add_module(f"{name.replace('.', '_')}{number}", layer)
    model.add_module("last", nn.Linear(48, 4))
    return int8_graph(model.eval(), INPUTS)


def sources(graph: ir.Graph) -> dict[str, str]:
    first = graph.tensors[graph.inputs[0]]
    codes = np.rint(ir.to_graph_layout(INPUTS[:1]) / np.float32(first.scale)) + first.zero_point
    example = np.clip(codes, -128, 127).astype(np.int8)
    output = evaluate_int8(graph, example, "half_up")
    files = {**c99.emit(graph, example, [output]).files, **fpga.emit(graph, example, output).files}
    return {name: content.decode("ascii") for name, content in files.items()}


def uncommented(name: str, text: str) -> str:
    """Return a file as its reader sees it: spliced, then without comments."""
    if name.endswith((".c", ".h", ".v")):
        assert "??" not in text, "a trigraph"
        text = text.replace("\\\n", "") if not name.endswith(".v") else text
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)


def assert_the_same_but_for_comments(found: ir.Graph, plain: ir.Graph) -> None:
    said, expected = sources(found), sources(plain)
    assert set(said) == set(expected)
    for name, text in said.items():
        assert uncommented(name, text) == uncommented(name, expected[name])
        assert len(text) < len(expected[name]) + 5_000, "a name is written in full"
        assert not re.search(r"deadbeef\s*$", uncommented(name, text), re.MULTILINE)


@pytest.fixture(scope="module")
def plain_onnx() -> ir.Graph:
    return onnx_graph(("one", "two", "three"))


@pytest.fixture(scope="module")
def plain_torch() -> ir.Graph:
    return torch_graph("plain")


@pytest.mark.parametrize("name", [each for each in HOSTILE if each != "\ud800"])
def test_names_in_onnx_files(name: str, plain_onnx: ir.Graph) -> None:
    assert_the_same_but_for_comments(onnx_graph((name, name + "2", name + "3")), plain_onnx)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_torch_modules(name: str, plain_torch: ir.Graph) -> None:
    assert_the_same_but_for_comments(torch_graph(name), plain_torch)


@settings(deadline=None, max_examples=60)
@given(name=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_name_in_an_onnx_file(name: str, plain_onnx: ir.Graph) -> None:
    graph = onnx_graph((name, f"{name}*/", f"/*{name}"))
    assert_the_same_but_for_comments(graph, plain_onnx)


@pytest.mark.parametrize("name", slow_but(HOSTILE[:3], HOSTILE[:9]))
def test_folders_compile_to_the_same(name: str, plain_torch: ir.Graph, tmp_path: Path) -> None:
    need_gcc()
    graph = torch_graph(name)
    objects = [
        CompiledRunner(
            save_c99(each, INPUTS, tmp_path / folder / "model", {}).path, ("-O0",)
        )._object
        for folder, each in (("a", graph), ("b", plain_torch))
    ]
    assert objects[0] == objects[1]
    runs = [
        FpgaEngine(
            {
                p.name: p.read_bytes()
                for p in save_fpga(each, INPUTS, tmp_path / to, {}).path.iterdir()
            }
        )
        for to, each in (("c", graph), ("d", plain_torch))
    ]
    example = np.arange(36, dtype=np.int8)
    assert np.array_equal(runs[0].run(example), runs[1].run(example))


def test_such_names_survive_in_a_graph_file(tmp_path: Path) -> None:
    graph = torch_graph(HOSTILE[1])
    saved = save_graph(graph, tmp_path / "model.graph", {})
    assert [op.source for op in load_graph(saved.path).ops] == [op.source for op in graph.ops]


# Names of tensors


@pytest.mark.parametrize(
    "name",
    [
        *("z.weight", "z.weight_int8", "z.bias_int32", "z.weight_slim", "z.weight_folded"),
        *("z.scratch", "output", "__metadata__"),
    ],
)
def test_a_tensor_called_as_what_is_derived_from_another(name: str) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 13]>
        g (float[1, 1, 6, 6] x) => (float[1, 36] y) { r = Relu(x)  y = Flatten(r) }"""
    )
    rng = np.random.default_rng(0)
    model.graph.ClearField("node")
    for tensor, shape in (("w", (3, 1, 3, 3)), ("v", (3, 3, 2, 2))):
        values = rng.standard_normal(shape).astype(np.float32)
        values[1] = 0  # a channel that is constant, which slimming takes out
        model.graph.initializer.append(numpy_helper.from_array(values, tensor))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 12]))

    def read(middle: str) -> ir.Graph:
        model.graph.ClearField("node")
        model.graph.node.extend(
            [
                helper.make_node("Conv", ["x", "w"], ["h"]),
                helper.make_node("Relu", ["h"], [middle]),
                helper.make_node("Conv", [middle, "v"], ["z"], strides=[2, 2]),
                helper.make_node("Flatten", ["z"], ["y"]),
            ]
        )
        return int8_graph(load_onnx(model.SerializeToString()), INPUTS)

    found, plain = sources(read(name)), sources(read("plain"))
    for file, text in found.items():
        assert uncommented(file, text) == uncommented(file, plain[file])
