"""What a model moves along single axes becomes a list for each: torch and onnx say which."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn import functional as F

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_onnx import lower as lower_onnx
from fedkit.graph.from_torch import lower, read
from fedkit.graph.interpret import evaluate
from fedkit.graph.places import Places
from fedkit.graph.verify import verify
from tests.calls import Calls
from tests.graph.exported import exported
from tests.moving import KINDS
from tests.sets import slow_but

SHAPE = (4, 5, 6)
Function = Callable[[Tensor], Tensor]


def inputs(shape: Sequence[int] = SHAPE) -> Any:
    return np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)


def assert_same_numbers(graph: ir.Graph, x: Any, expected: Any) -> None:
    found = evaluate(graph, ir.to_graph_layout(x)).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)


def moving(function: Function) -> nn.Module:
    """Return a model of moves alone, but for a ReLU: its numbers are those of its inputs."""
    return nn.Sequential(nn.ReLU(), Calls(function), nn.Flatten())


def assert_moves(function: Function, shape: Sequence[int] = SHAPE) -> tuple[ir.Graph, list[Places]]:
    """Return the graph of a model and what it takes; assert that it gives torch's numbers."""
    model, x = moving(function), inputs(shape)
    graph = lower(model, shape)
    assert_same_numbers(graph, x, model(torch.from_numpy(x)).numpy())
    return graph, [op.attributes for op in graph.ops if isinstance(op.attributes, Places)]


def backwards(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.sigmoid() * 0 + part for part in parts[::-1]], 1)


MOVES: dict[str, Function] = {
    "a slice": lambda x: x[:, 1:3],
    "steps": lambda x: x[:, :, ::2, 1::3],
    "narrow": lambda x: x.narrow(-1, 2, 3),
    "one row": lambda x: x[:, :, -1],
    "one row, kept": lambda x: x[:, :, 2:3],
    "chunks": lambda x: backwards(x.chunk(2, 1)),
    "uneven parts": lambda x: backwards(x.split([1, 3], 1)),
    "parts of three": lambda x: backwards(x.split(3, 1)),
    "parts in place of others": lambda x: torch.cat(x.tensor_split(3, -3)[1:], 1),
    "one of all rows": lambda x: x.unbind(2)[3],
    "an index": lambda x: x[:, [2, 0, 0]],
    "an index from behind": lambda x: x[..., torch.tensor([-1, 0])],
    "index_select": lambda x: x.index_select(3, torch.tensor([3, 1, 1])),
    "flip": lambda x: x.flip(1, -1),
    "roll": lambda x: x.roll((1, -2), (2, 3)),
    "channel shuffle": nn.ChannelShuffle(2),
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 2),
    "reflect": nn.ReflectionPad2d((2, 1, 0, 3)),
    "reflect and crop": lambda x: F.pad(x, (-1, 2, 3, -2), mode="reflect"),
    "replicate": nn.ReplicationPad2d((7, 1, 0, 3)),
    "circular": lambda x: F.pad(x, (2, 1, 0, 3), mode="circular"),
    "crop": lambda x: F.pad(x, (-1, -2, 0, -1)),
    "crop and zeros": lambda x: F.pad(x, (-1, 2, 3, -2)),
    "upsample": nn.Upsample(scale_factor=2),
    "upsample to a size": lambda x: F.interpolate(x, (13, 17)),
    "downsample": lambda x: F.interpolate(x, (2, 4)),
    "upsample by 1.7": lambda x: F.interpolate(x, scale_factor=1.7),
    "nearest-exact": lambda x: F.interpolate(x, (7, 11), mode="nearest-exact"),
}
QUICK = ("steps", "uneven parts", "one of all rows", "flip", "reflect and crop", "upsample by 1.7")


@pytest.mark.parametrize("name", slow_but(QUICK, MOVES))
def test_moves_of_torch(name: str) -> None:
    _, found = assert_moves(MOVES[name])
    assert found


@pytest.mark.parametrize("size", [1, 3, 7, *range(40, 60)])
def test_torch_enlarges_in_its_own_float32(size: int) -> None:
    """Its rule is floor(i * in / out), whose rounding decides for some sizes."""
    _, (places,) = assert_moves(lambda x: F.interpolate(x, (size, 3)))
    scale = np.float32(SHAPE[1]) / np.float32(size)
    own = np.floor(np.arange(size, dtype=np.float32) * scale).astype(int)
    wanted = tuple(np.minimum(own, SHAPE[1] - 1).tolist())
    assert (places.rows or tuple(range(SHAPE[1]))) == wanted


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[..., :-3],
        lambda x: x[:, :, -1],
        lambda x: F.pad(x, (2, 4), mode="reflect"),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    ],
)
def test_moves_of_series(function: Function) -> None:
    _, found = assert_moves(function, (4, 9))
    assert found and all(places.rows is None for places in found)


def test_moves_of_features() -> None:
    _, (places,) = assert_moves(lambda x: x.flip(1), (5,))
    assert places == Places(channels=(4, 3, 2, 1, 0))


def test_what_moves_nothing_is_no_op() -> None:
    graph, found = assert_moves(
        lambda x: x[:][:, :, 0:].roll(0, 1).repeat(1, 1, 1, 1).chunk(1, 1)[0]
    )
    assert not found and [op.kind for op in graph.ops] == ["relu", "flatten_nchw"]


def test_training_plans_read_moves_with_two_examples() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), Calls(lambda x: x.chunk(2, 1)[1]), nn.Flatten())
    graph = read(model, torch.zeros(2, *SHAPE), drops=False).graph
    assert graph is not None
    assert [op.attributes for op in graph.ops if op.kind == "take"] == [Places(channels=(2, 3))]


REFUSED: dict[str, tuple[Function, str]] = {
    "one example": (lambda x: x[:1], "dimension 0, which holds the examples"),
    "the first eight": (lambda x: x[:8], "dimension 0, which holds the examples"),
    "examples in parts": (lambda x: x.split(8)[0], "dimension 0, which holds the examples"),
    "examples turned": (lambda x: x.flip(0), "dimension 0, which holds the examples"),
    "examples repeated": (lambda x: x.repeat(2, 1, 1, 1), "examples"),
    "rolled as one": (lambda x: x.roll(1), "along several dimensions at once"),
    "places in pairs": (lambda x: x[:, :, [0, 1], [2, 1]], "along several dimensions at once"),
    "nothing": (lambda x: x[:, 4:], "leaves nothing"),
    "bicubic": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
        "upsample_bicubic2d",
    ),
    "ones around": (lambda x: F.pad(x, (1, -1), value=1.0), "constant padding with 1.0; zeros"),
    "places of the input": (
        lambda x: x[:, x.flatten(1).sum(1).long()],
        "aten.to.dtype is not supported",
    ),
    "in place on a part": (
        lambda x: torch.cat([x, F.relu_(x[:, 1:])], 1),
        "shares memory with .* a part of it; set inplace=False",
    ),
    "in place below a part": (
        lambda x: torch.cat([x[:, 1:], F.relu_(x)], 1),
        "shares memory with .* a part of it; set inplace=False",
    ),
}


@pytest.mark.parametrize("name", slow_but(("the first eight", "in place on a part"), REFUSED))
def test_what_is_no_move_of_single_axes_is_refused(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(ExportError, match=reason):
        lower(moving(function), SHAPE)


def test_a_copy_may_be_changed_in_place() -> None:
    assert_moves(lambda x: torch.cat([x, F.relu_(x.flip(1))], 1))


# Graphs


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        (Places(rows=(0, 5)), "must take rows of 0 to 4, at least one"),
        (Places(columns=(-1,)), "must take columns of 0 to 5"),
        (Places(channels=(3, 4)), "must take channels of 0 to 3"),
    ],
)
def test_lists_beyond_what_there_is_break_a_rule(places: Places, reason: str) -> None:
    lists = (places.rows, places.columns, places.channels)
    sizes = (5, 6, 4)
    shape = tuple(n if each is None else len(each) for n, each in zip(sizes, lists, strict=True))
    tensors = {"x": ir.Tensor("x", (1, 5, 6, 4)), "y": ir.Tensor("y", (1, *shape))}
    op = ir.Op("take", ("x",), ("y",), attributes=places)
    with pytest.raises(ExportError, match=re.escape(reason)):
        verify(ir.Graph(tensors, (op,), ("x",), ("y",)))


def test_features_have_no_rows() -> None:
    tensors = {name: ir.Tensor(name, (1, 3)) for name in "xy"}
    op = ir.Op("take", ("x",), ("y",), attributes=Places(rows=(0,)))
    with pytest.raises(ExportError, match="takes rows or columns of features"):
        verify(ir.Graph(tensors, (op,), ("x",), ("y",)))


# ONNX


def one_node(
    operator: str,
    more: str = "",
    opset: int = 19,
    shape: Sequence[int] = SHAPE,
    outputs: Sequence[str] = ("m",),
    read: str = "m",
    **given: Any,
) -> bytes:
    """Return a file of a node and a Flatten; arrays are constants, all else is an attribute."""
    constants = {name: each for name, each in given.items() if isinstance(each, np.ndarray)}
    attributes = {name: each for name, each in given.items() if name not in constants}
    operands = ["x", *("" if name == "-" else name for name in more.split())]
    nodes = [
        helper.make_node(operator, operands, list(outputs), **attributes),
        helper.make_node("Flatten", [read], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "moves",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, *shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, None))],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return bytes(model.SerializeToString())


def integers(*values: int) -> Any:
    return np.array(values, np.int64)


def onnxruntimes(content: bytes, x: Any) -> Any:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": one[None]})[0] for one in x])


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


PADS = integers(0, 0, 2, 1, 0, 0, 0, 3)
FORMS: dict[str, Callable[[], bytes]] = {
    "slice": lambda: one_node(
        *("Slice", "s e a t"),
        **dict(s=integers(1, -1), e=integers(9, -9), a=integers(-1, 1), t=integers(2, -1)),
    ),
    "slice of old": lambda: one_node("Slice", opset=9, starts=[1], ends=[3], axes=[2]),
    "split": lambda: one_node("Split", "s", outputs=("l", "m"), axis=1, s=integers(1, 3)),
    "split, its first": lambda: one_node("Split", outputs=("m", "l", "r"), axis=-1, num_outputs=3),
    "split of old": lambda: one_node("Split", opset=11, outputs=("l", "m"), axis=2, split=[2, 3]),
    "gather": lambda: one_node("Gather", "i", axis=2, i=integers(-1, 0, 0)),
    "gather one": lambda: one_node("Gather", "i", axis=2, i=np.array(-2)),
    "gather one of a series": lambda: one_node("Gather", "i", shape=(4, 9), axis=2, i=np.array(8)),
    "tile": lambda: one_node("Tile", "r", r=integers(1, 2, 1, 3)),
    "reflect": lambda: one_node("Pad", "p", mode="reflect", p=PADS),
    "edge": lambda: one_node("Pad", "p", mode="edge", p=3 * PADS),
    "wrap": lambda: one_node("Pad", "p", mode="wrap", p=PADS),
    "crop": lambda: one_node("Pad", "p", p=integers(0, 0, -2, 1, 0, 0, 0, -3)),
    "upsample": lambda: one_node("Upsample", "s", opset=9, s=floats(1, 1, 2, 3)),
    "upsample of old": lambda: one_node("Upsample", opset=8, scales=[1.0, 1.0, 1.5, 3.0]),
    "resize of old": lambda: one_node("Resize", "s", opset=10, s=floats(1, 1, 2, 1.5)),
    "resize along axes": lambda: one_node("Resize", "- - s", axes=[3, 2], s=integers(11, 3)),
}


@pytest.mark.parametrize("form", FORMS)
def test_moves_of_onnx(form: str) -> None:
    content = FORMS[form]()
    x = inputs((4, 9) if "series" in form else SHAPE)
    assert_same_numbers(lower_onnx(content), x, onnxruntimes(content, x))


COORDINATES = (
    *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel"),
    *("align_corners", "asymmetric"),
)
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@pytest.mark.parametrize("coordinates", slow_but(("half_pixel_symmetric",), COORDINATES))
@pytest.mark.parametrize("nearest", slow_but(NEAREST[:2], NEAREST))
def test_resizes_are_those_of_onnx(coordinates: str, nearest: str) -> None:
    how: dict[str, Any] = {"coordinate_transformation_mode": coordinates, "nearest_mode": nearest}
    x = np.arange(7, dtype=np.float32).reshape(1, 1, 1, 7)
    scales = [("- s", floats(1, 1, 1, s)) for s in (0.3, 0.5, 0.75, 1, 1.3, 2, 2.5, 3)]
    sizes = [("- - s", integers(1, 1, 1, s)) for s in (1, 2, 3, 5, 9, 14, 20)]
    refused = 0
    for operands, s in scales + sizes:
        content = one_node("Resize", operands, shape=(1, 1, 7), s=s, **how)
        wanted = onnxruntimes(content, x)
        try:
            graph = lower_onnx(content)
        except ExportError as error:
            assert "which runtimes round in several ways" in str(error)
            refused += 1
            continue
        assert_same_numbers(graph, x, wanted)
        if coordinates != "half_pixel_symmetric":  # of which the reference has another idea
            (wanted,) = ReferenceEvaluator(content).run(None, {"x": x})
            assert_same_numbers(graph, x, wanted)
    assert refused <= 6


def test_a_resize_that_rounding_decides_is_refused() -> None:
    """3 / 0.3 is 10 in float32, and below it where 0.3 of float32 is divided in float64."""
    how: dict[str, Any] = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    content = one_node("Resize", "- s", shape=(1, 1, 20), s=floats(1, 1, 1, 0.3), **how)
    with pytest.raises(ExportError, match=r"a resize by 0\.30.* round in several ways"):
        lower_onnx(content)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "cubic": (
        lambda: one_node("Resize", "- s", mode="cubic", s=floats(1, 1, 2, 2)),
        "a resize by cubic interpolation; nearest and linear can be",
    ),
    "by a region": (
        lambda: one_node(
            *("Resize", "r s"),
            coordinate_transformation_mode="tf_crop_and_resize",
            r=floats(0, 0, 0, 0, 1, 1, 1, 1),
            s=floats(1, 1, 2, 2),
        ),
        "coordinates tf_crop_and_resize",
    ),
    "of one aspect": (
        lambda: one_node(
            "Resize", "- - s", keep_aspect_ratio_policy="not_larger", s=integers(1, 4, 9, 9)
        ),
        "keeps the aspect ratio",
    ),
    "examples": (
        lambda: one_node(
            "Slice", "s e a t", s=integers(-1), e=integers(-9), a=integers(0), t=integers(-1)
        ),
        "dimension 0, which holds the examples",
    ),
    "the first eight": (
        lambda: one_node("Slice", "s e", s=integers(0), e=integers(8)),
        "dimension 0, which holds the examples",
    ),
    "one example": (lambda: one_node("Gather", "i", axis=0, i=integers(0)), "examples"),
    "split examples": (lambda: one_node("Split", axis=0, num_outputs=1), "a split of examples"),
    "shrinking of old": (
        lambda: one_node("Resize", "s", opset=10, s=floats(1, 1, 0.6, 1)),
        "which opset 11 first defines",
    ),
    "beyond": (lambda: one_node("Gather", "i", axis=1, i=integers(4)), "beyond the 4 places"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_moves_of_onnx_are_refused(name: str) -> None:
    make, reason = BAD[name]
    with pytest.raises(ExportError, match=reason):
        lower_onnx(make())


OF_EXPORTER = ("chunks", "uneven parts", "flip", "reflect", "replicate", "crop and zeros")


@pytest.mark.parametrize(
    "name", slow_but(("chunks",), [*OF_EXPORTER, "upsample by 1.7", "downsample", "one row"])
)
def test_files_of_torchs_exporter(name: str) -> None:
    """Of a symbolic batch, whose examples must not mix."""
    model, x = moving(MOVES[name]), inputs()
    graph = lower_onnx(exported(model, SHAPE))
    assert_same_numbers(graph, x, model(torch.from_numpy(x)).numpy())


# Models


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_people(kind: str) -> None:
    make, shape = KINDS[kind]
    torch.manual_seed(0)
    model, x = make().eval(), inputs(shape)
    graph = lower(model, shape)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    found = evaluate(graph, ir.to_graph_layout(x)).reshape(wanted.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert not {"take", "transpose"}.isdisjoint(op.kind for op in graph.ops)
