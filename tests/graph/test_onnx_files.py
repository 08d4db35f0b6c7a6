"""ONNX files as people have them: what is chosen of them, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from edge.export import float_graph, load_onnx
from fedkit.cli.app import app
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_onnx import lower, opened
from fedkit.graph.interpret import evaluate, evaluate_all
from fedkit.graph.onnx_support import support
from tests.edge.models import images
from tests.graph.onnx_models import (
    FORMS,
    KERNEL,
    SHAPE,
    assert_close,
    file,
    flat,
    node,
    number,
    runtime,
    weights,
)

# Shapes


def conv(*dims: Any) -> bytes:
    return flat(node("Conv", "x w", "m"), shape=dims, w=KERNEL)


@pytest.mark.parametrize("name", ["x", ""])
@pytest.mark.parametrize("batch", ["n", None, 1, 8])
def test_sizes_that_the_file_leaves_open_can_be_given(batch: Any, name: str) -> None:
    graph = lower(conv(batch, 3, "h", None), {name: (1, 3, 8, 10)})
    fixed = conv(1, *SHAPE)
    expected = runtime(fixed, images(*SHAPE))
    assert_close(evaluate(graph, ir.to_graph_layout(images(*SHAPE))), expected)


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"z": (1, 3, 8, 10)}, r"no input is called 'z'; give NAME=1x3x8x10 .* inputs: 'x'"),
        ({"x": (2, 3, 8, 10)}, "the batch in front is 2; .* give 1x3x8x10"),
        ({"x": (1, 4, 8, 10)}, "the file says [?]x3x[?]x[?]; a size that the file leaves open"),
        ({"x": (1, 3, 8)}, "the file says"),
        ({"x": (1, 3, 0, 8)}, "sizes must be positive"),
        ({"x": (1, 3, 10**6, 10**6)}, "67108864 values at most"),
        ({"x": ()}, "sizes must be positive"),
    ],
)
def test_shapes_that_cannot_be_say_why(shapes: Any, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        lower(conv("n", 3, "h", "w"), shapes)


def test_an_open_size_tells_how_to_give_it() -> None:
    with pytest.raises(ExportError, match=r"--input-shape x=1x3x[?]x10 with a number for each"):
        lower(conv("n", 3, "h", 10))
    with pytest.raises(ExportError, match=r"or give --input-shape x=1x3x8x10"):
        lower(conv(8, *SHAPE))


# Inputs and outputs


def two_of_each() -> bytes:
    model = file(
        node("Add", "x z", "s"),
        node("Gemm", "x w", "y"),
        node("Relu", "s", "t"),
        node("Sin", "t", "u"),
        shape=("n", 6),
        w=weights(6, 4),
    )
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ("n", 6)))
    for name in ("t", "u"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ("n", 6)))
    return model.SerializeToString()


def test_several_inputs_and_outputs_are_read_and_not_exported() -> None:
    content = two_of_each()
    graph = lower(content, outputs=("t", "y"))
    assert (graph.inputs, graph.outputs) == (("x", "z"), ("t", "y"))
    given = {name: images(6, n=3) * factor for name, factor in (("x", 1), ("z", -2))}
    found = evaluate_all(graph, given)
    np.testing.assert_array_equal(found[0], np.maximum(given["x"] + given["z"], 0))
    np.testing.assert_allclose(found[1], given["x"] @ weights(6, 4), atol=1e-5)
    with pytest.raises(ExportError, match=r"2 inputs \('x', 'z'\), and an artifact has one"):
        float_graph(graph, (6,))
    with pytest.raises(ExportError, match="input 'z' is missing"):
        evaluate_all(graph, {"x": given["x"]})


def test_a_chosen_output_leaves_out_what_lies_behind_it() -> None:
    graph = load_onnx(two_of_each(), outputs=("y",))
    assert (graph.inputs, graph.outputs, len(graph.ops)) == (("x",), ("y",), 1)
    with pytest.raises(ExportError, match="'my Sin': Sin is not supported"):
        lower(two_of_each())
    with pytest.raises(
        ExportError, match=r"output is 'q', and no node .* outputs are 'y', 't', 'u'"
    ):
        lower(two_of_each(), outputs=("q",))


def test_an_inner_value_can_be_an_output() -> None:
    content = file(
        node("Conv", "x w", "a"),
        node("GlobalAveragePool", "a", "g"),
        node("Flatten", "g", "f"),
        node("Sin", "f"),
        w=KERNEL,
    ).SerializeToString()
    graph = load_onnx(content, outputs=("f",))
    convolved = runtime(FORMS["conv, same upper"](), images(*SHAPE))
    assert graph.outputs == ("f",) and len(convolved)
    assert evaluate(graph, ir.to_graph_layout(images(*SHAPE))).shape == (12, 4)


def test_initialisers_need_not_be_inputs_in_old_formats() -> None:
    model = onnx.load_from_string(FORMS["conv, asymmetric padding"]())
    model.ir_version, model.opset_import[0].version = 3, 8
    assert load_onnx(model.SerializeToString()).inputs == ("x",)


def test_initialisers_may_be_listed_as_inputs() -> None:
    model = onnx.load_from_string(FORMS["conv, asymmetric padding"]())
    dims = model.graph.initializer[0].dims
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, dims))
    assert load_onnx(model.SerializeToString()).inputs == ("x",)


# Bytes


def pixels(kind: type[np.integer[Any]], n: int = 5) -> Any:
    ends = np.iinfo(kind)
    return np.random.default_rng(0).integers(ends.min, ends.max + 1, (n, *SHAPE)).astype(kind)


@pytest.mark.parametrize(
    ("kind", "made"), [(TensorProto.UINT8, np.uint8), (TensorProto.INT8, np.int8)]
)
def test_bytes_that_are_cast_are_numbers(kind: int, made: type[np.integer[Any]]) -> None:
    content = flat(
        node("Cast", "x", "f", to=TensorProto.FLOAT),
        node("Div", "f c", "d"),
        node("Conv", "d w", "m"),
        kind=kind,
        gives=TensorProto.FLOAT,
        w=KERNEL,
        c=number(255),
    )
    found = evaluate(load_onnx(content), ir.to_graph_layout(pixels(made).astype(np.float32)))
    assert_close(found, runtime(content, pixels(made)))


def test_bytes_that_are_dequantised_are_what_comes_of_it() -> None:
    content = flat(
        node("DequantizeLinear", "x s z", "f"),
        node("Conv", "f w", "m"),
        kind=TensorProto.UINT8,
        gives=TensorProto.FLOAT,
        w=KERNEL,
        s=number(0.02),
        z=np.array(128, np.uint8),
    )
    with pytest.warns(UserWarning, match="integers are not kept: layer 'my Conv'"):
        graph = load_onnx(content)
    real = (pixels(np.uint8).astype(np.float32) - 128) * np.float32(0.02)
    assert_close(evaluate(graph, ir.to_graph_layout(real)), runtime(content, pixels(np.uint8)))


@pytest.mark.parametrize(
    ("kind", "nodes", "reason"),
    [
        (TensorProto.UINT8, [node("MatMul", "x w", "m")], "MatMul is not valid|of type UINT8"),
        (TensorProto.FLOAT, [node("Cast", "x", "m", to=TensorProto.INT8)], "from FLOAT to INT8"),
        (TensorProto.FLOAT16, [node("Relu", "x", "m")], "of type FLOAT16; only float32 models"),
    ],
)
def test_other_numbers_are_refused(kind: int, nodes: Any, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        lower(flat(*nodes, kind=kind, w=weights(10, 10)))


# Opsets


def compared(opset: int, form: str) -> bool:
    """Whether a form can be of an opset, which then must mean the same here and in onnxruntime."""
    made = onnx.load_from_string(FORMS[form]())
    made.opset_import[0].version, made.ir_version = opset, min(10, 3 + opset // 3)
    content = made.SerializeToString()
    inputs = images(*(dim.dim_value for dim in made.graph.input[0].type.tensor_type.shape.dim[1:]))
    try:
        found = evaluate(lower(content), ir.to_graph_layout(inputs[:2]))
    except ExportError:
        return False
    expected = runtime(content, inputs[:2])
    assert_close(np.moveaxis(found, 3, 1) if found.ndim == 4 else found, expected)
    return True


def test_forms_mean_the_same_in_old_and_new_opsets() -> None:
    few = list(FORMS)[::6]
    assert sum(compared(opset, form) for opset in (7, 23) for form in few) >= len(few)


@pytest.mark.slow
@pytest.mark.parametrize("opset", range(7, 24))
def test_forms_mean_the_same_in_each_opset(opset: int) -> None:
    assert sum(compared(opset, form) for form in FORMS) >= 0.5 * len(FORMS)


# Hostile files


def renamed(change: Callable[[onnx.ModelProto], None]) -> bytes:
    model = file(node("Relu", "x", "a"), node("Exp", "a", "y"), shape=(1, 3))
    change(model)
    return model.SerializeToString()


def external(model: onnx.ModelProto, **about: str) -> None:
    tensor = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in about.items():
        tensor.external_data.add(key=key, value=value)


def set_input(model: onnx.ModelProto, at: int, *names: str) -> None:
    model.graph.node[at].input[:] = names


HOSTILE: dict[str, tuple[Callable[[onnx.ModelProto], Any], str]] = {
    "a circle": (lambda m: set_input(m, 0, "y"), "nodes of the file go in a circle"),
    "a node that reads itself": (lambda m: set_input(m, 1, "y"), "depends on its own result"),
    "a missing input": (lambda m: set_input(m, 1, "q"), "'my Exp' reads 'q', which nothing"),
    "two values of one name": (
        lambda m: m.graph.node[1].output.__setitem__(0, "a"),
        "2 values called 'a'",
    ),
    "a value of an input's name": (
        lambda m: m.graph.node[0].output.__setitem__(0, "x"),
        "2 values called 'x'",
    ),
    "an output of no node": (lambda m: m.graph.node.pop(), "output 'y' is computed by no node"),
    "two opsets": (lambda m: m.opset_import.add(version=9), r"of the opsets \[9, 17\] at once"),
    "sparse tensors": (lambda m: m.graph.sparse_initializer.add(), "holds sparse tensors"),
    "a function": (lambda m: m.functions.add(name="f"), "functions of its own, as 'f'.*inliner"),
    "a giant": (
        lambda m: m.graph.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 10**12),
        "more than 67108864",
    ),
    "a giant constant": (
        lambda m: m.graph.initializer.add(name="w", data_type=1, dims=[10**12]),
        "constant 'w' cannot be read|onnx refuses the file",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_wrong_with_a_file_is_one_line(case: str) -> None:
    change, reason = HOSTILE[case]
    with pytest.raises(ExportError, match=reason) as refused:
        lower(renamed(change))
    assert "\n" not in str(refused.value)


def test_constants_that_are_not_numbers_are_named() -> None:
    content = file(node("Gemm", "x w"), shape=(1, 2), w=np.full((2, 2), np.nan, np.float32))
    with pytest.raises(ExportError, match=r"constant 'y\.weight' holds NaN"):
        lower(content.SerializeToString())


def test_a_long_chain_before_integers_is_read() -> None:
    count = 1500  # more than Python's recursion goes deep
    chain = [node("Conv", "x w", "v0")]
    for at in range(count):
        chain.append(node("MaxPool", f"v{at}", f"v{at + 1}", kernel_shape=[1, 1]))
    integers = [
        node("QuantizeLinear", f"v{count} s z", "q"),
        node("DequantizeLinear", "q s z", "m"),
    ]
    zero = np.zeros((), np.uint8)
    content = flat(*chain, *integers, w=KERNEL, s=number(0.1), z=zero)
    kinds = [op.kind for op in lower(content).ops]
    assert kinds.count("max_pool2d") == count and "relu" in kinds  # as its integers begin at 0


def test_nodes_in_any_order_are_read() -> None:
    model = file(node("Exp", "a", "y"), node("Relu", "x", "a"), shape=(1, 3))
    assert [op.kind for op in lower(model.SerializeToString()).ops] == ["relu", "exp"]


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"location": "/etc/passwd"}, "not in the folder of the .onnx file"),
        ({"location": "../secret"}, "not in the folder"),
        ({"location": "link"}, "not in the folder"),
        ({}, "not in the folder"),
        ({"location": "none"}, "put their file beside it"),
        ({"location": "data", "offset": "-4"}, "from -4 on of 'data', which holds 16"),
        ({"location": "data", "length": str(10**12)}, "1000000000000 bytes from 0 on"),
        ({"location": "data", "offset": "four"}, "cannot be read"),
        ({"location": "data", "length": "8"}, "constant 'w' cannot be read|refuses the file"),
    ],
)
def test_data_elsewhere_are_not_read(about: dict[str, str], reason: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    (folder / "data").write_bytes(bytes(16))
    (folder / "link").symlink_to(tmp_path / "secret")
    path = folder / "model.onnx"
    path.write_bytes(renamed(lambda model: external(model, **about)))
    with pytest.raises(ExportError, match=reason):
        lower(path)


def test_a_node_cannot_read_files(tmp_path: Path) -> None:
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[3])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data")
    (tmp_path / "data").write_bytes(bytes(12))
    model = file(node("Constant", "", "c", value=tensor), node("Add", "x c"), shape=(1, 3))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="'my Constant' has its data in another file"):
        lower(tmp_path / "m.onnx")


# The table


def test_the_table_has_every_op_with_its_way_out() -> None:
    found = support(opened(two_of_each()))
    assert [(row.op, row.count, row.refused) for row in found.rows] == [
        ("Add", 1, 0),
        ("Gemm", 1, 0),
        ("Relu", 1, 0),
        ("Sin", 1, 1),
    ]
    assert found.rows[-1].reasons == (
        "Sin is not supported; cut the file off before it (--output t), or replace it in the model",
    )
    assert found.refused == 1
    assert support(opened(two_of_each(), outputs=("t",))).refused == 0


def test_a_file_whose_inputs_are_open_has_a_table_by_names() -> None:
    found = support(opened(two_of_each().replace(b"x", b"x")))
    assert not found.problem
    content = flat(node("Sin", "x", "a"), node("Conv", "a w", "m"), shape=(1, 3, "h", 9), w=KERNEL)
    found = support(opened(content))
    assert "dynamic shape" in found.problem
    assert [(row.op, row.refused) for row in found.rows] == [
        ("Conv", 0),
        ("Flatten", 0),
        ("Sin", 1),
    ]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["import", *arguments])


def test_the_command_prints_the_table_first_and_fails_for_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(two_of_each())
    refused = run(str(path))
    assert refused.exit_code == 1
    assert (
        "Sin" in refused.output and "refused" in refused.output and "inputs" not in refused.output
    )
    read = run(str(path), "--output", "y", "--json")
    assert read.exit_code == 0
    found = json.loads(read.output.splitlines()[-1])
    assert [row["op"] for row in found["ops"]] == ["Gemm"]
    assert found["inputs"] == [{"name": "x", "shape": [1, 6]}]
    assert found["graph"] == "float"


def test_the_command_makes_an_artifact(tmp_path: Path) -> None:
    path, made = tmp_path / "m.onnx", tmp_path / "m.graph"
    path.write_bytes(conv("n", 3, "h", "w"))
    np.save(tmp_path / "x.npy", images(*SHAPE))
    given = [str(path), "--input-shape", "x=1x3x8x10", "--out", str(made)]
    assert isinstance(run(*given).exception, Exception)  # no examples
    assert run(*given, "--calibration", str(tmp_path / "x.npy")).exit_code == 0
    assert made.exists()


@pytest.mark.parametrize("text", ["x=", "x=1x", "x=axb", "1x-3", "x=1e3", "²"])
def test_shapes_are_numbers(text: str, tmp_path: Path) -> None:
    found = run(str(tmp_path / "m.onnx"), "--input-shape", text)
    assert "give NAME=1x3x224x224" in str(found.exception)


# Models of strangers


def installed() -> Iterator[Path]:
    for package in (onnx, onnxruntime):
        yield from sorted(Path(str(package.__file__)).parent.rglob("*.onnx"))


LARGE = ("alexnet", "vgg19", "zfnet512")
"""Whose weights take hundreds of megabytes."""


@pytest.mark.slow
def test_files_of_installed_packages_are_read_or_refused_by_name() -> None:
    read, refused = set(), 0
    for path in installed():
        try:
            if not any(name in path.name for name in LARGE):
                load_onnx(path)  # which compares with onnxruntime
                read.add(path.stem)
        except ExportError as error:
            assert str(error)
            refused += 1
    assert read >= {"light_squeezenet", "light_densenet121", "light_inception_v2", "light_resnet50"}
    assert refused
