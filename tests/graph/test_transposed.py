"""Channels that become places, and transposed convolutions, against torch and onnxruntime."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_onnx import lower as lower_onnx
from fedkit.graph.from_torch import lower, read
from fedkit.graph.interpret import evaluate
from fedkit.graph.phases import TransposedAxis
from fedkit.graph.pixel_blocks import Blocks
from fedkit.graph.verify import verify
from tests.enlarging import KINDS, built
from tests.graph.exported import exported
from tests.graph.onnx_models import assert_close, flat, node, runtime, weights
from tests.sets import drawn, slow_but

ModelShape = tuple[int, ...]


def numbers(shape: Sequence[int], count: int = 2) -> Any:
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)


def assert_same(graph: ir.Graph, x: Any, wanted: Any) -> None:
    assert_close(evaluate(graph, ir.to_graph_layout(x)), wanted)


def assert_read(layer: nn.Module, shape: ModelShape) -> None:
    """Compare what an export and a training plan are made of with the layer itself."""
    model, x = nn.Sequential(layer, nn.Flatten()).eval(), numbers(shape)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    assert_same(lower(model, shape), x, wanted)
    reading = read(model, torch.from_numpy(x), drops=False)
    assert reading.graph is not None, reading.reasons
    assert_same(reading.graph, x, wanted)


# Transposed convolutions of torch


def random_layer(seed: int) -> tuple[nn.Module, ModelShape] | None:
    """Return a layer whose result is not empty, and the shape that it reads."""
    random = np.random.default_rng(seed)

    def two(least: int, most: int) -> tuple[int, int]:
        return int(random.integers(least, most)), int(random.integers(least, most))

    size, kernel, padding, stride = two(1, 6), two(1, 6), two(0, 5), two(1, 5)
    dilation = two(1, 3) if random.random() < 0.3 else (1, 1)
    added = (
        random.integers(max(stride[0], dilation[0])),
        random.integers(max(stride[1], dilation[1])),
    )
    added = int(added[0]), int(added[1])
    whole = [
        (n - 1) * s + d * (k - 1) + 1 - 2 * p + a
        for n, s, d, k, p, a in zip(size, stride, dilation, kernel, padding, added, strict=True)
    ]
    groups = int(random.choice([1, 1, 3]))
    layer = nn.ConvTranspose2d(
        3,
        groups * int(random.integers(1, 3)),
        kernel,
        stride,
        padding,
        added,
        groups,
        bool(random.random() < 0.5),
        dilation,
    )
    return (layer, (3, *size)) if min(whole) > 0 else None


@pytest.mark.parametrize("seed", range(drawn(12)))
def test_any_transposed_convolution_is_what_torch_computes(seed: int) -> None:
    torch.manual_seed(seed)
    tries = (random_layer(1000 * seed + more) for more in itertools.count())
    assert_read(*next(found for found in tries if found is not None))


@pytest.mark.parametrize(
    ("layer", "kinds"),
    [
        (nn.ConvTranspose2d(2, 3, 2, 2), ["conv2d", "depth_to_space"]),
        (nn.ConvTranspose2d(2, 3, 4, 2, 1), ["conv2d", "depth_to_space", "take"]),
        (nn.ConvTranspose2d(2, 3, 3, padding=1), ["conv2d"]),
        (nn.ConvTranspose2d(2, 2, 2, 2, groups=2), ["depthwise_conv2d", "depth_to_space"]),
        (nn.ConvTranspose2d(2, 3, 1, 3), ["conv2d", "depth_to_space", "take"]),
        (nn.ConvTranspose2d(2, 3, 1, padding=1), ["take", "conv2d"]),
    ],
)
def test_no_more_is_computed_than_must_be(layer: nn.Module, kinds: list[str]) -> None:
    graph = lower(nn.Sequential(layer, nn.Flatten()), (2, 4, 4))
    assert [op.kind for op in graph.ops][:-1] == kinds


def test_lines_read_no_more_than_they_need() -> None:
    """Of every line the blocks begin and end with a place of the result."""
    for size, taps, stride, first, out in itertools.product(
        range(1, 5), range(1, 6), range(1, 5), range(6), range(1, 8)
    ):
        line = TransposedAxis(size, taps, stride, first, out)
        places = range(stride * line.blocks[0], stride * (line.blocks[-1] + 1))
        assert places[line.cut[0]] == first and places[line.cut[-1]] == first + out - 1
        assert line.cut[0] < stride and len(places) - line.cut[-1] <= stride


def test_a_series_is_a_map_of_height_1() -> None:
    assert_read(nn.ConvTranspose1d(3, 2, 5, 3, 2, 1), (3, 7))


def test_groups_of_several_channels_are_trained_alone() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, 2, groups=2)
    model = nn.Sequential(layer, nn.Flatten())
    with pytest.raises(ExportError, match="a transposed convolution of 2 groups; 1 or one per"):
        lower(model, (4, 3, 3))
    x = torch.from_numpy(numbers((4, 3, 3)))
    graph = read(model, x, drops=False).graph
    assert graph is not None
    assert_same(graph, x.numpy(), model(x).detach().numpy())


@pytest.mark.parametrize("trains", [False, True])
def test_what_nothing_could_hold_is_refused(trains: bool) -> None:
    model = nn.Sequential(nn.ConvTranspose2d(1, 1, 1, 20000, padding=9999), nn.Flatten())
    with pytest.raises(ExportError, match="more than 67108864 elements"):
        if trains:
            raise ExportError(str(read(model, torch.zeros(2, 1, 2, 2), drops=False).reasons))
        lower(model, (1, 2, 2))


def test_one_image_without_its_batch_is_refused() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(1, 2, 2, 2), nn.Flatten())
    with pytest.raises(ExportError, match="three dimensions for those of one image"):
        lower(model, (3, 3))


# Shuffles of torch


@pytest.mark.parametrize("block", [1, 2, 3])
def test_pixels_are_shuffled_as_torch_does(block: int) -> None:
    assert_read(nn.PixelShuffle(block), (2 * block**2, 3, 2))
    assert_read(nn.PixelUnshuffle(block), (2, 3 * block, 2 * block))


def test_the_reverse_of_a_shuffle_is_the_model() -> None:
    model = nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.Flatten())
    x = numbers((8, 3, 2))
    assert_same(lower(model, (8, 3, 2)), x, x.reshape(2, -1))


# Graphs


@pytest.mark.parametrize(
    ("blocks", "channels", "reason"),
    [
        (Blocks(2, 2, True), 6, "must read a multiple of 4 channels"),
        (Blocks(3, 1, False), 4, "must read a multiple of 3 channels"),
        (Blocks(0, 2, True), 4, "must have blocks of at least one pixel"),
        (Blocks(-1, -1, True), 4, "must have blocks of at least one pixel"),
    ],
)
def test_blocks_that_cannot_be_break_a_rule(blocks: Blocks, channels: int, reason: str) -> None:
    size = blocks.height, 2 * blocks.width
    shape = (1, *size, channels // max(1, blocks.pixels))
    tensors = {"x": ir.Tensor("x", (1, 1, 2, channels)), "y": ir.Tensor("y", shape)}
    op = ir.Op("depth_to_space", ("x",), ("y",), attributes=blocks)
    graph = ir.Graph(tensors, (op,), ("x",), ("y",))
    shapes = "must have|not .1, h, w, c." if min(size) < 1 else re.escape(reason)
    with pytest.raises(ExportError, match=shapes):
        verify(graph)


# Of ONNX

SHAPE = (2, 3, 4)

TRANSPOSED: dict[str, dict[str, Any]] = {
    "plain": {},
    "strides": {"strides": [3, 2]},
    "pads": {"strides": [2, 2], "pads": [0, 1, 2, 0]},
    "output_padding": {"strides": [2, 3], "output_padding": [1, 2]},
    "dilations": {"dilations": [2, 3]},
    "group": {"group": 2, "strides": [2, 1]},
    "valid": {"auto_pad": "VALID", "strides": [2, 2]},
    **{
        f"same {how} {strides}": {"auto_pad": f"SAME_{how.upper()}", "strides": strides}
        for how in ("upper", "lower")
        for strides in ([1, 1], [2, 1], [1, 2], [3, 2])
    },
    **{
        f"output_shape {size} {how}": {"strides": [2, 3], "output_shape": size, "auto_pad": how}
        for size in ([7, 11], [6, 10], [5, 9])
        for how in ("NOTSET", "SAME_UPPER", "SAME_LOWER")
    },
    "more than there is": {"strides": [2, 3], "output_shape": [8, 12]},
    "both": {"strides": [2, 3], "output_shape": [6, 10], "output_padding": [1, 2]},
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions_of_onnx(name: str) -> None:
    how = TRANSPOSED[name]
    kernel = weights(2, 3 // how.get("group", 1), 3, 2)
    transposed = node("ConvTranspose", "x w b", "m", **how)
    constants = {"w": kernel, "b": weights(3 if how.get("group", 1) == 1 else 2)}
    content = flat(transposed, shape=(1, *SHAPE), **constants)
    x = numbers(SHAPE)
    assert_same(lower_onnx(content), x, runtime(content, x))


@pytest.mark.parametrize(
    ("opset", "how", "reason"),
    [
        (17, {"pads": [0, -1, 0, 0]}, "pads must not contain negative values"),
        (
            17,
            {"auto_pad": "SAME_LOWER", "strides": [2, 2], "output_padding": [0, 1]},
            "SAME_LOWER with an output_padding, in which runtimes differ",
        ),
        (17, {"output_shape": [9, 9]}, r"a result of \(9, 9\), far more than \(5, 5\)"),
        (17, {"output_shape": [6, 5], "auto_pad": "SAME_UPPER"}, "begins before the first"),
        (10, {"output_shape": [4, 5]}, "an odd padding in all, which opset 11 first"),
        (17, {"kernel_shape": [2, 2]}, "kernel_shape"),
        (17, {"output_padding": [1]}, "output_padding"),
        (17, {"strides": [0, 1]}, "must be positive"),
        (17, {"strides": [2**20, 2**20]}, "more than 67108864 elements"),
    ],
)
def test_what_onnx_leaves_open_is_refused(opset: int, how: dict[str, Any], reason: str) -> None:
    content = flat(
        node("ConvTranspose", "x w", "m", **how),
        shape=(1, *SHAPE),
        opset=opset,
        w=weights(2, 3, 3, 2),
    )
    with pytest.raises(ExportError, match=reason):
        lower_onnx(content)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_of_onnx(mode: str) -> None:
    content = flat(node("DepthToSpace", "x", "m", blocksize=2, mode=mode), shape=(1, 8, 3, 2))
    x = numbers((8, 3, 2))
    graph = lower_onnx(content)
    assert [op.kind for op in graph.ops] == ["depth_to_space", "flatten_nchw"]
    assert_same(graph, x, runtime(content, x))


def test_space_to_depth_of_onnx() -> None:
    content = flat(node("SpaceToDepth", "x", "m", blocksize=3), shape=(1, 2, 3, 6))
    x = numbers((2, 3, 6))
    assert_same(lower_onnx(content), x, runtime(content, x))


@pytest.mark.parametrize("operator", ["DepthToSpace", "SpaceToDepth"])
@pytest.mark.parametrize("block", [0, -2, 3, 2**40])
def test_blocks_that_do_not_fit_are_refused(operator: str, block: int) -> None:
    content = flat(node(operator, "x", "m", blocksize=block), shape=(1, 8, 4, 2))
    with pytest.raises(ExportError, match=r"my (Depth|Space)To(Depth|Space)"):
        lower_onnx(content)


@pytest.mark.parametrize("kind", slow_but(("decoder",), [k for k in KINDS if k != "shuffles"]))
def test_files_of_torchs_exporter_are_read(kind: str) -> None:
    model, shape = built(kind)
    content, x = exported(model, shape), numbers(shape)
    assert_same(lower_onnx(content), x, runtime(content, x))
