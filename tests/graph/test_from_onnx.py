"""A graph lowered from an ONNX file computes what onnxruntime and torch compute."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from edge import passes
from edge.export import int8_graph, load_onnx
from edge.targets.onnx import emitter as emitter
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_onnx import lower
from fedkit.graph.from_torch import lower as lower_torch
from fedkit.graph.interpret import evaluate
from fedkit.nn.zoo import build_model
from tests.edge.models import MODELS, Flat, Residual, images
from tests.graph.exported import exported
from tests.graph.onnx_models import (
    FORMS,
    KERNEL,
    NORM,
    ODD,
    PADS,
    SHAPE,
    Attributes,
    Floats,
    assert_close,
    damaged,
    distorted,
    file,
    flat,
    integers,
    node,
    number,
    runtime,
    weights,
)
from tests.sets import slow_but

WHOLE = {
    "resnet8": (3, 8, 8),
    "ds-cnn": (1, 12, 10),
    "mobilenetv2-w0.25": (3, 8, 8),
    "vgg11": (3, 32, 32),
}


def assert_same_numbers(content: bytes, inputs: Floats) -> ir.Graph:
    """Compare the plain and the optimised graph with onnxruntime; return the plain one."""
    expected, graph = runtime(content, inputs), lower(content)
    for one in (graph, passes.optimise(graph)):
        found = evaluate(one, ir.to_graph_layout(inputs))
        if found.ndim == 4:
            found = np.moveaxis(found, 3, 1)
        assert_close(found, expected)
    return graph


# Files of torch's exporter


@pytest.mark.parametrize("name", slow_but(("resnet8",), WHOLE))
def test_zoo_models(name: str, randomise: Callable[[nn.Module], nn.Module]) -> None:
    shape = WHOLE[name]
    model, inputs = randomise(build_model(name, shape, 7)), images(*shape, n=3)
    graph = assert_same_numbers(exported(model, shape), inputs)
    expected = evaluate(lower_torch(model, shape), ir.to_graph_layout(inputs))
    assert_close(evaluate(graph, ir.to_graph_layout(inputs)), expected)


@pytest.mark.parametrize("opset", slow_but((20,), (9, 20)))
@pytest.mark.parametrize("name", MODELS)
def test_each_model_at_several_opsets(
    name: str, opset: int, randomise: Callable[[nn.Module], nn.Module]
) -> None:
    model, inputs = randomise(Flat(MODELS[name]())), images(*SHAPE, n=4)
    lowered = lower_torch(model, SHAPE)
    expected = evaluate(lowered, ir.to_graph_layout(inputs))
    graph = assert_same_numbers(exported(model, SHAPE, opset, opset > 9), inputs)
    assert_close(evaluate(graph, ir.to_graph_layout(inputs)), expected)
    kinds = [op.kind for op in graph.ops]
    # The exporter makes one concat of two, and orders branches as it likes.
    assert name == "branches" or kinds == [op.kind for op in lowered.ops]


class Spelled(nn.Module):
    """Shapes computed in the file, a mean over axes, a padding, a norm by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 8 + 0, 5)
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)) * self.scale / 2 - 0.25 + self.scale
        return self.fc(nn.functional.relu6(y).view(x.size(0), -1))


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("folds", [False, True])
def test_shapes_and_norms_that_the_file_computes(opset: int, folds: bool) -> None:
    content = exported(Spelled().eval(), SHAPE, opset, do_constant_folding=folds)
    operators = {node.op_type for node in onnx.load_from_string(content).graph.node}
    assert {"Shape", "Concat", "Mul", "Div", "Sub"} <= operators
    graph = assert_same_numbers(content, images(*SHAPE))
    assert [op.kind for op in passes.optimise(graph).ops] == ["conv2d", "reshape", "linear"]


# Files made by hand


@pytest.mark.parametrize("form", FORMS)
def test_each_form(form: str) -> None:
    content = FORMS[form]()
    shape = onnx.load_from_string(content).graph.input[0].type.tensor_type.shape.dim
    inputs = 3 * images(*(dim.dim_value for dim in shape[1:]), n=3)
    assert_same_numbers(content, inputs)


def test_names_are_the_files() -> None:
    graph = lower(FORMS["conv, same upper"]())
    assert graph.inputs == ("x",)
    assert graph.outputs == ("y",)
    assert [(op.source, op.output) for op in graph.ops] == [("my Conv", "m"), ("my Flatten", "y")]


def test_a_value_may_have_the_name_of_a_constant_of_ours() -> None:
    made = file(
        node("Conv", "x w", "m"),
        node("Relu", "m", "m.weight"),
        node("Flatten", "m.weight"),
        w=KERNEL,
    )
    assert_same_numbers(made.SerializeToString(), images(*SHAPE))


# What is refused


def test_all_that_is_unsupported_is_listed_at_once() -> None:
    content = flat(
        node("Conv", "x w", "a", group=3),
        node("Sin", "a", "b"),
        helper.make_node("Fancy", ["b"], ["c"], domain="my.domain", name="own"),
        node("Softmax", "c", "d"),
        node("Shrink", "d", "f"),
        node("Clip", "b l h", "e"),
        node("Mul", "b e", "m"),
        w=weights(4, 2, 1, 1),
        l=number(1),
        h=number(-1),
        shape=("n", 4, 5, 5),
    )
    with pytest.raises(ExportError) as refused:
        lower(content)
    message = str(refused.value)
    assert message.startswith("5 op(s)")
    for part in (
        "'my Conv': weights (4, 2, 1, 1) in 3 group(s) for 4 channels",
        "'my Sin': Sin is not supported",
        "'own': my.domain.Fancy is not supported",
        "'my Shrink': Shrink is not supported",
        "'my Clip': a clamp to [1.0, -1.0]",
    ):
        assert f"node {part}" in message


def branch(name: str) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([node("Relu", "x", name)], name, [], [out])


BRANCHES = {"then_branch": branch("t"), "else_branch": branch("e")}
POOL: Attributes = {"kernel_shape": [3, 3]}

UNSUPPORTED: dict[str, tuple[Callable[[], bytes], str]] = {
    "control flow": (
        lambda: flat(
            node("ReduceMax", "x", "g", keepdims=0),
            node("Cast", "g", "c", to=TensorProto.BOOL),
            node("If", "c", "m", **BRANCHES),
        ),
        "If is control flow",
    ),
    "gemm of a transposed batch": (
        lambda: file(
            node("Gemm", "x w", transA=1), shape=(1, 1), w=weights(1, 4)
        ).SerializeToString(),
        "Gemm with transA",
    ),
    "weights of the input": (
        lambda: file(node("MatMul", "x x"), shape=(1, 1)).SerializeToString(),
        "a product of features, which mixes the examples",
    ),
    "a sum that widens": (
        lambda: flat(
            node("GlobalAveragePool", "x", "g"), node("Relu", "x", "r"), node("Sum", "g x r", "m")
        ),
        "a sum of 3 values, and not of one shape",
    ),
    "the larger of two": (
        lambda: flat(node("Relu", "x", "r"), node("Max", "x r", "m")),
        "the other value that depend on the input",
    ),
    "double weights": (
        lambda: flat(node("Conv", "x w", "m"), w=KERNEL.astype(np.float64)),
        r"W has inconsistent type tensor\(double\)",
    ),
    "ceil_mode": (
        lambda: flat(
            node("AveragePool", "x", "m", ceil_mode=1, pads=[1] * 4, count_include_pad=1, **POOL)
        ),
        r"an average that counts padding, and whose last window ends beyond it \(ceil_mode\)",
    ),
    "padding that crops": (
        lambda: flat(
            node("Conv", "x w", "m", auto_pad="SAME_UPPER", strides=[5, 9]), w=weights(4, 3, 2, 2)
        ),
        "that would crop",
    ),
    "a flag of five": (
        lambda: flat(node("MaxPool", "x", "m", ceil_mode=5, **POOL)),
        "ceil_mode = 5; 0 or 1",
    ),
    "axes from the end, too early": (
        lambda: flat(
            node("GlobalAveragePool", "x", "a"), node("Squeeze", "a", "m", axes=[-1]), opset=9
        ),
        r"axes = \[-1\]; before opset 11",
    ),
    "padding beyond memory": (
        lambda: flat(node("Pad", "x p", "m"), p=2**40 * PADS),
        "more than 67108864 elements",
    ),
    "dilated average": (
        lambda: flat(
            node(
                *("AveragePool", "x", "m"),
                **{"dilations": [2, 2], "pads": [1] * 4, "count_include_pad": 1, **POOL},
            ),
            opset=19,
        ),
        "a dilated average that counts padding",
    ),
    "padding alone": (
        lambda: flat(node("MaxPool", "x", "m", pads=[3, 0, 0, 0], **POOL)),
        "windows of padding alone",
    ),
    "indices": (
        lambda: flat(
            node("MaxPool", "x", "a i", **POOL),
            node("Cast", "i", "f", to=TensorProto.FLOAT),
            node("Add", "a f", "m"),
        ),
        "MaxPool with more than one output",
    ),
    "statistics of the batch": (
        lambda: flat(node("BatchNormalization", "x s b u v", "m o p", training_mode=1), **NORM),
        "BatchNormalization in training",
    ),
    "dropout that drops": (
        lambda: flat(node("Dropout", "x r t", "m"), r=number(0.5), t=np.array(True)),
        "dropout that is on",
    ),
    "padding by one": (lambda: flat(node("Pad", "x p v", "m"), p=PADS, v=number(1)), "with 1.0"),
    "reflection of more than all": (
        lambda: flat(node("Pad", "x p", "m", mode="reflect"), p=9 * PADS),
        "values reflected",
    ),
    "a border of its own": (
        lambda: flat(node("Pad", "x p", "m", mode="mirror"), p=PADS),
        "mirror padding; constant, reflect, edge, wrap can be",
    ),
    "more channels": (
        lambda: flat(node("Pad", "x p", "m"), p=integers(0, 1, 0, 0, 0, 0, 0, 0)),
        "height and width can grow",
    ),
    "constants that widen": (
        lambda: flat(
            node("GlobalAveragePool", "x", "g"), node("Add", "g c", "m"), c=weights(8, 10)
        ),
        r".*a constant of shape \(8, 10\), which widens",
    ),
    "division by an activation": (
        lambda: flat(node("Div", "c x", "m"), c=number(1)),
        "a division by an activation",
    ),
    "division by zero": (lambda: flat(node("Div", "x c", "m"), c=number(0)), "a division by zero"),
    "the batch moved": (
        lambda: flat(node("Reshape", "x s", "m"), s=integers(3, 80)),
        r"a value of shape \(3, 80\), without the batch",
    ),
    "a batch in one row": (
        lambda: file(node("Flatten", "x", axis=0), shape=("n", *SHAPE)).SerializeToString(),
        r"Flatten gives \(1, 240\) for one example, \(1, 480\) for two; the file leaves the batch",
    ),
    "a batch reshaped into one row": (
        lambda: file(
            node("Reshape", "x s"), shape=(None, *SHAPE), s=integers(1, -1)
        ).SerializeToString(),
        r"Reshape gives \(1, 240\) for one example, \(1, 480\) for two",
    ),
    "a batch cut to one row": (
        lambda: file(
            node("Reshape", "x s"), shape=("n", *SHAPE), s=integers(1, 240)
        ).SerializeToString(),
        "keep the batch in front, or export the model with batch size 1",
    ),
    "a batch that becomes the width": (
        lambda: flat(node("Unsqueeze", "x a", "m"), shape=("n", 6), a=integers(0, 1)),
        r"Unsqueeze gives \(1, 1, 1, 6\) for one example, \(1, 1, 2, 6\) for two",
    ),
    "a batch that becomes the channels": (
        lambda: flat(
            node("Shape", "x", "s", end=1),
            node("Concat", "o s t", "r", axis=0),
            node("Reshape", "x r", "m"),
            shape=("n", 6),
            o=integers(1),
            t=integers(2, 3),
        ),
        r"Reshape gives \(1, 1, 2, 3\) for one example, \(1, 2, 2, 3\) for two",
    ),
    "a factor that counts examples": (
        lambda: flat(
            node("Shape", "x", "s", end=1),
            node("Cast", "s", "f", to=TensorProto.FLOAT),
            node("Div", "x f", "m"),
            shape=("n", *SHAPE),
        ),
        "Div by 'f', which depends on the batch",
    ),
    "a concat of the batch": (
        lambda: flat(node("Concat", "x x", "m", axis=0), shape=("n", *SHAPE)),
        "a concat over dimension 0, that of the examples",
    ),
    "a mean of the batch": (
        lambda: flat(node("ReduceMean", "x", "m", axes=[0]), shape=("n", *SHAPE)),
        r"a mean over dimensions \[0\]",
    ),
    "a mean of everything": (
        lambda: flat(node("ReduceMean", "x", "m"), shape=("n", *SHAPE)),
        r"a mean over dimensions \[\]",
    ),
    "a softmax of the batch": (
        lambda: flat(node("Softmax", "x", "m", axis=0), shape=("n", *SHAPE)),
        r"a Softmax over dimension 0",
    ),
    "a batch turned": (
        lambda: flat(node("Transpose", "x", "m", perm=[1, 0, 2, 3]), shape=("n", 1, 8, 10)),
        "it moves along dimension 0, which holds the examples",
    ),
    "a size of values": (
        lambda: flat(
            node("NonZero", "c", "i"),
            node("Cast", "i", "f", to=TensorProto.FLOAT),
            node("Add", "x f", "m"),
            c=weights(3),
        ),
        "NonZero of constants, whose size is unknown",
    ),
    "text that takes for ever": (
        lambda: flat(
            node("RegexFullMatch", "s", "q", pattern="(a+)+$"),
            node("Cast", "q", "f", to=TensorProto.FLOAT),
            node("Add", "x f", "m"),
            opset=20,
            s=np.array(["a" * 40 + "b"], object),
        ),
        "RegexFullMatch of text",
    ),
    "a sum that takes for ever": (
        lambda: flat(
            node("Einsum", "v v v", "s", equation="i,j,k->"),
            node("Add", "x s", "m"),
            v=weights(2**9),
        ),
        "Einsum of constants of 134217728 values; 4194304 can be",
    ),
    "random weights": (
        lambda: flat(node("RandomNormal", "", "w", shape=[4, 3, 1, 1]), node("Conv", "x w", "m")),
        "RandomNormal of constants gives random values",
    ),
    "a constant beyond memory": (
        lambda: flat(
            node("ConstantOfShape", "s", "w"), node("Conv", "x w", "m"), s=integers(2**40, 3, 1, 1)
        ),
        "more than 67108864 elements",
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_forms_say_why(case: str) -> None:
    make, reason = UNSUPPORTED[case]
    with pytest.raises(ExportError, match=f"node 'my .*{reason}"):
        lower(make())


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("dilation", [1, 2, 9])
@pytest.mark.parametrize("kernel", [(9, 1), (1, 11), (9, 11), (40, 40)])
@pytest.mark.parametrize("stride", [1, 3, 50])
def test_windows_larger_than_the_map_are_refused_or_onnxruntimes(
    operator: str, dilation: int, kernel: tuple[int, int], stride: int
) -> None:
    how = {"kernel_shape": kernel, "dilations": [dilation] * 2, "strides": [stride] * 2}
    content = flat(node(operator, "x", "m", **how), opset=19)
    try:
        graph = lower(content)
    except ExportError as error:
        assert "window" in str(error) or "onnx refuses the file" in str(error)
        return
    assert_runs(graph, content, compares=True)


def quantised() -> onnx.ModelProto:
    graph = int8_graph(Residual(), images(*SHAPE))
    return onnx.load_from_string(emitter.emit(graph, "qoperator"))


def relu(**options: Any) -> onnx.ModelProto:
    return file(node("Relu", "x"), **options)


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "a batch": (lambda: relu(shape=(8, 3)), "'x' has batch size 8.*export the model with batch"),
    "any height": (lambda: relu(shape=("n", 3, "h", 9)), r"dynamic shape \[n, 3, h, 9\]"),
    "any shape": (lambda: relu(shape=None), "'shape' of 'type' is required"),
    "a number": (lambda: relu(shape=()), "'x' has 0 dimensions"),
    "a video": (lambda: relu(shape=(1, 3, 2, 9, 9)), "'x' has 5 dimensions"),
    "half": (lambda: relu(shape=(1, 3), kind=TensorProto.FLOAT16), "of type FLOAT16; only float32"),
    "bytes": (lambda: relu(shape=(1, 3), kind=TensorProto.INT8, opset=14), "of type INT8"),
    "quantised": (
        quantised,
        "quantised already: it holds .*Linear.*give the float model.*or one in QDQ form",
    ),
    "an old opset": (lambda: relu(shape=(1, 3), opset=6), "opset 6; opsets 7 to 28"),
    "a new opset": (lambda: relu(shape=(1, 3), opset=99), "opset 99; opsets 7 to 28"),
    "a constant": (
        lambda: file(node("Relu", "c"), c=weights(1, 3), shape=(1, 3)),
        "does not depend on its input",
    ),
    "values that are not numbers": (
        lambda: file(node("Gemm", "x w"), shape=(1, 2), w=number(np.nan).repeat(4).reshape(2, 2)),
        "'y.weight' holds NaN",
    ),
    "a node that ONNX refuses": (
        lambda: file(node("Relu", "x x"), shape=(1, 3)),
        "onnx refuses the file: .*Relu",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_why(case: str) -> None:
    make, reason = REFUSED[case]
    with pytest.raises(ExportError, match=reason):
        lower(make().SerializeToString())


@pytest.mark.parametrize("content", [b"", b"not a model" * 40, b"\x08\x08"])
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"model\.onnx is not an ONNX file, or is damaged"):
        lower(path)
    with pytest.raises(ExportError, match=f"the model of {len(content)} bytes is not an ONNX file"):
        lower(content)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.onnx cannot be read"):
        lower(tmp_path / "none.onnx")


def test_data_in_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # onnx looks for the data's file in the working folder too
    model = onnx.load_from_string(exported(Residual(), SHAPE))
    inputs, path = images(*SHAPE), tmp_path / "model.onnx"
    expected = evaluate(lower(model.SerializeToString()), ir.to_graph_layout(inputs))
    onnx.save(model, path, save_as_external_data=True, location="data", size_threshold=0)
    np.testing.assert_array_equal(evaluate(lower(path), ir.to_graph_layout(inputs)), expected)
    with pytest.raises(ExportError, match="which bytes alone do not tell"):
        lower(path.read_bytes())
    (tmp_path / "data").unlink()
    with pytest.raises(ExportError, match=r"outside the \.onnx file cannot be read.*beside it"):
        lower(path)


def test_without_onnx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("fedkit.graph.from_onnx")
    monkeypatch.delitem(sys.modules, "fedkit.graph.from_onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ExportError, match=r"onnx is not installed; run `pip install 'fedkit\["):
        load_onnx(b"")


# Damaged files


def assert_runs(graph: ir.Graph, content: bytes, compares: bool) -> None:
    """Run a mutant, and compare it with onnxruntime if that runs it too."""
    x = graph.tensors[graph.inputs[0]]
    inputs = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    with np.errstate(all="ignore"):
        found = evaluate(graph, inputs)
    try:
        expected = runtime(content, np.moveaxis(inputs, 3, 1) if inputs.ndim == 4 else inputs)
    except Exception:  # it has limits of its own
        return
    found = np.moveaxis(found, 3, 1) if found.ndim == 4 else found
    if compares:
        assert_close(found[:, :, 0] if graph.series else found, expected)


def check_mutants(seeds: range) -> None:
    """Each mutant must be refused, or be a graph that runs as onnxruntime does."""
    originals, accepted = [make() for make in FORMS.values()], 0
    for seed in seeds:
        choose, keeps_weights = random.Random(seed), bool(seed % 2)
        mutate = distorted if keeps_weights else damaged
        content = mutate(choose.choice(originals), choose)
        shapes = {"x": [choose.choice(ODD) for _ in range(4)]} if choose.random() < 0.05 else None
        try:
            graph = lower(content, shapes)
        except ExportError as error:
            assert str(error)
            continue
        accepted += 1
        if max(math.prod(tensor.shape) for tensor in graph.tensors.values()) < 2**16:
            assert_runs(graph, content, keeps_weights)
    assert 0.05 * len(seeds) < accepted <= max(1, 0.95 * len(seeds))


@pytest.mark.parametrize("seeds", [range(300), range(2937, 2938), range(8765, 8766)])
def test_damaged_files_are_refused_or_sound(seeds: range) -> None:
    check_mutants(seeds)  # the last two return series


@pytest.mark.slow
def test_many_damaged_files_are_refused_or_sound() -> None:
    check_mutants(range(1000, 11_000))
