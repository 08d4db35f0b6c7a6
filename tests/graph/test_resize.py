"""Linear resizes, against torch and onnxruntime: what an export is made of, and what trains."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_onnx import lower as lower_onnx
from fedkit.graph.from_torch import lower, read
from fedkit.graph.interpret import evaluate
from fedkit.graph.linear import Coordinates, ResizedAxis, between
from fedkit.graph.verify import verify
from tests.calls import Calls
from tests.graph.exported import exported
from tests.graph.onnx_models import assert_close, flat, node, runtime
from tests.sets import drawn, slow_but

ModelShape = tuple[int, ...]
Resize = Callable[[Tensor], Tensor]


def numbers(shape: ModelShape, count: int = 2) -> Any:
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)


def model_of(resize: Resize) -> nn.Module:
    return nn.Sequential(Calls(resize), nn.Flatten())


def assert_same(graph: ir.Graph, x: Any, wanted: Any) -> None:
    assert_close(evaluate(graph, ir.to_graph_layout(x)), wanted)


def assert_read(resize: Resize, shape: ModelShape) -> ir.Graph:
    """Compare what an export and a training plan are made of with torch; return the former."""
    model, x = model_of(resize), numbers(shape)
    wanted, graph = model(torch.from_numpy(x)).numpy(), lower(model, shape)
    assert_same(graph, x, wanted)
    reading = read(model, torch.from_numpy(x), drops=False)
    assert reading.graph is not None, reading.reasons
    assert_same(reading.graph, x, wanted)
    return graph


# Of torch


def interpolate(**how: Any) -> Resize:
    return lambda x: F.interpolate(x, mode="linear" if x.dim() == 3 else "bilinear", **how)


@pytest.mark.parametrize("seed", range(drawn(20)))
def test_any_resize_is_what_torch_computes(seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = (2, *map(int, random.integers(1, 8, 2)))
    how: dict[str, Any] = {"align_corners": bool(random.random() < 0.4)}
    if random.random() < 0.5:
        how["size"] = tuple(map(int, random.integers(1, 14, 2)))
    else:
        scales = random.choice([1, 1.25, 1.3, 1.5, 2, 2.5, 3, 4], 2)
        how |= {"scale_factor": tuple(map(float, scales))}
        how |= {"recompute_scale_factor": bool(random.random() < 0.3)}
    assert_read(interpolate(**how), shape)


@pytest.mark.parametrize(
    ("how", "shape", "kinds"),
    [
        ({"scale_factor": 2}, (2, 3, 4), ["take", "depthwise_conv2d", "depth_to_space"]),
        ({"scale_factor": 4}, (2, 3, 4), ["take", "depthwise_conv2d", "depth_to_space"]),
        ({"scale_factor": 0.5}, (2, 4, 6), ["depthwise_conv2d"]),
        ({"size": (2, 3), "align_corners": True}, (2, 3, 5), ["take"]),
        ({"scale_factor": 1}, (2, 3, 4), []),
        ({"size": (4, 2)}, (2, 1, 1), ["take"]),
        ({"scale_factor": 2}, (2, 9), ["take", "depthwise_conv2d", "depth_to_space"]),
    ],
)
def test_no_more_is_computed_than_must_be(
    how: dict[str, Any], shape: ModelShape, kinds: list[str]
) -> None:
    graph = assert_read(interpolate(**how), shape)
    found = [op.kind for op in graph.ops if op.kind not in ("flatten_nchw", "reshape")]
    cut = ["take"] if "depth_to_space" in kinds and found[-1:] == ["take"] else []
    assert found == [*kinds, *cut]


def test_corners_of_a_large_map_are_aligned_one_axis_after_the_other() -> None:
    graph = assert_read(interpolate(scale_factor=2, align_corners=True), (1, 14, 20))
    assert [op.kind for op in graph.ops].count("depthwise_conv2d") == 2


@pytest.mark.parametrize(
    ("resize", "shape", "reason"),
    [
        (interpolate(size=(300, 4)), (1, 299, 4), "weights for each channel, 4096 can be; take a"),
        (interpolate(scale_factor=1.2345678), (1, 6, 5), "weights for each channel"),
        (
            lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", antialias=True),
            (1, 3, 3),
            "upsample_bilinear2d_aa",
        ),
        (interpolate(size=(2**13, 2**13 + 1)), (1, 2, 2), "more than 67108864 elements"),
    ],
)
def test_what_would_be_too_much_is_refused(resize: Resize, shape: ModelShape, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        lower(model_of(resize), shape)


def test_any_scale_can_be_trained() -> None:
    model, x = model_of(interpolate(scale_factor=1.2345678)), torch.from_numpy(numbers((1, 6, 5)))
    graph = read(model, x, drops=False).graph
    assert graph is not None and "resize_linear" in [op.kind for op in graph.ops]
    assert_same(graph, x.numpy(), model(x).numpy())


# The decomposition


def test_maps_side_by_side_are_the_places_between_places() -> None:
    """A convolution per phase, over places that repeat the ends, is the definition itself."""
    steps = [Fraction(p, q) for p, q in itertools.product(range(1, 6), repeat=2)]
    for size, out, step, start in itertools.product(
        (1, 2, 5), (1, 3, 7), steps, (Fraction(-3, 4), Fraction(0), Fraction(2, 3))
    ):
        axis = ResizedAxis(size, out, start, step)
        values = np.arange(float(size)) ** 2
        seen = values[axis.places]
        found = [
            weights @ seen[first : first + axis.kernel]
            for first in range(0, len(seen) - axis.kernel + 1, axis.stride)
            for weights in axis.weights()
        ]
        wanted = between(axis.coordinates, size) @ values
        np.testing.assert_allclose(found[:out], wanted, rtol=1e-5, atol=1e-5)
        assert len(found) - out < axis.phases


@pytest.mark.parametrize("rows", [(0.0, 3.5), (-0.1,), (float("nan"),)])
def test_coordinates_beyond_the_map_break_a_rule(rows: tuple[float, ...]) -> None:
    shapes = {"x": (1, 4, 1, 2), "y": (1, len(rows), 1, 2)}
    tensors = {name: ir.Tensor(name, shape) for name, shape in shapes.items()}
    op = ir.Op("resize_linear", ("x",), ("y",), attributes=Coordinates(rows, (0.0,)))
    with pytest.raises(ExportError, match="must lie between the places 0 and 3"):
        verify(ir.Graph(tensors, (op,), ("x",), ("y",)))


# Of ONNX

MODES = (
    *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel"),
    *("align_corners", "asymmetric"),
)
EMPTY = np.zeros(0, np.float32)


def a_file(opset: int, shape: ModelShape, more: dict[str, Any], **constants: Any) -> bytes:
    names = {9: "x s", 10: "x s"}.get(opset, "x r s" if "z" not in constants else "x r - z")
    operator = "Upsample" if opset == 9 else "Resize"
    resize = node(operator, names, "m", mode="linear", **more)
    given = constants if opset < 11 else {"r": EMPTY, **constants}
    return flat(resize, opset=opset, shape=(1, *shape), **given)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(4))
def test_resizes_of_onnx(mode: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = (2, *map(int, random.integers(2, 6, 2)))
    x, more = numbers(shape, 1), {"coordinate_transformation_mode": mode}
    sizes = np.array([1, 2, *random.integers(1, 12, 2)])
    files = [a_file(19, shape, more, z=sizes)]
    scales = np.array([1, 1, *random.choice([1.5, 2, 3, 4], 2)], np.float32)
    whole = mode != "align_corners" or all(scales[2:] * shape[1:] % 1 == 0)
    files += [a_file(19, shape, more, s=scales)] if whole else []
    for content in files:
        assert_same(lower_onnx(content), x, runtime(content, x))


@pytest.mark.parametrize("opset", [9, 10])
def test_resizes_of_old_files_begin_at_the_first_pixel(opset: int) -> None:
    x = numbers((2, 3, 4), 1)
    content = a_file(opset, (2, 3, 4), {}, s=np.array([1, 1, 2, 1.5], np.float32))
    assert_same(lower_onnx(content), x, runtime(content, x))


def test_a_series_of_onnx_is_resized() -> None:
    x, more = numbers((2, 7), 1), {"coordinate_transformation_mode": "half_pixel"}
    content = a_file(19, (2, 7), more, s=np.array([1, 1, 2], np.float32))
    assert_same(lower_onnx(content), x, runtime(content, x))


@pytest.mark.parametrize(
    ("more", "scales", "reason"),
    [
        ({"antialias": 1}, [1, 1, 2, 2], "a resize with antialias"),
        ({}, [1, 2, 2, 2], "a linear resize of examples or channels"),
        (
            {"coordinate_transformation_mode": "align_corners"},
            [1, 1, 1.5, 1],
            "corners that are aligned in a resize of 3 by 3/2, not to 4",
        ),
        (
            {"coordinate_transformation_mode": "tf_half_pixel_for_nn"},
            [1, 1, 2, 2],
            "a linear resize by the coordinates tf_half_pixel_for_nn",
        ),
    ],
)
def test_other_linear_resizes_of_onnx_are_refused(
    more: dict[str, Any], scales: list[float], reason: str
) -> None:
    content = a_file(18, (2, 3, 4), more, s=np.array(scales, np.float32))
    with pytest.raises(ExportError, match=reason):
        lower_onnx(content)


TOLD = {
    "factor": interpolate(scale_factor=2),
    "size": interpolate(size=(7, 5)),
    "corners": interpolate(size=(7, 5), align_corners=True),
}


@pytest.mark.parametrize("name", slow_but(("factor",), TOLD))
def test_files_of_torchs_exporter(name: str) -> None:
    """Of a symbolic batch, whose examples must not mix."""
    model, x = nn.Sequential(nn.ReLU(), model_of(TOLD[name])), numbers((2, 3, 4))
    content = exported(model, (2, 3, 4))
    assert_same(lower_onnx(content), x, runtime(content, x))
