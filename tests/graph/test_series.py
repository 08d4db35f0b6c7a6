"""Series are maps of height 1 in the graph: what torch and onnxruntime compute, it does too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_onnx import lower as lower_onnx
from fedkit.graph.from_torch import lower, read
from fedkit.graph.interpret import evaluate
from tests.calls import Calls
from tests.graph.exported import exported
from tests.series import SHAPE, Floats, Series, inputs
from tests.sets import slow_but


def assert_same_numbers(graph: ir.Graph, x: Floats, expected: Floats) -> None:
    found = evaluate(graph, ir.to_graph_layout(x)).reshape(expected.shape)
    assert np.abs(found - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def of_torch(model: nn.Module, x: Floats) -> Floats:
    with torch.no_grad():
        return np.asarray(model.eval()(torch.from_numpy(x)).numpy())


class Does(nn.Module):
    """What a function computes, flat; with a convolution before it, so that it has weights."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv1d(SHAPE[0], 4, 3, padding=1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x)).flatten(1)


def test_a_series_is_a_map_of_height_1(randomise: Callable[[nn.Module], nn.Module]) -> None:
    model, x = randomise(Series()), inputs(4)
    graph = lower(model, SHAPE)
    assert graph.tensors[graph.inputs[0]].shape == (1, 1, SHAPE[1], SHAPE[0])
    assert {len(graph.tensors[op.output].shape) for op in graph.ops} == {2, 4}
    assert_same_numbers(graph, x, of_torch(model, x))


@pytest.mark.slow
def test_a_file_of_torchs_exporter(randomise: Callable[[nn.Module], nn.Module]) -> None:
    model, x = randomise(Series()), inputs(4)
    assert_same_numbers(lower_onnx(exported(model.eval(), SHAPE)), x, of_torch(model, x))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "adaptive to 1": nn.AdaptiveAvgPool1d(1),
    "adaptive to 6": nn.AdaptiveAvgPool1d(6),
    "adaptive to 5": nn.AdaptiveAvgPool1d(5),
    "maximum, dilated": nn.MaxPool1d(3, 2, 1, 3),
    "adaptive maximum": nn.AdaptiveMaxPool1d(1),
    "average, padded": nn.AvgPool1d(3, 2, padding=1),
    "average, padding not counted": nn.AvgPool1d(3, 2, padding=1, count_include_pad=False),
    "maximum, rounded up": nn.MaxPool1d(5, 3, ceil_mode=True),
    "mean": lambda x: x.mean(-1),
    "mean, kept": lambda x: x.mean(2, keepdim=True),
    "padding": lambda x: F.pad(x, (1, 2)),
    "concat": lambda x: torch.cat([x, x.relu()], -2),
    "softmax over channels": lambda x: x.softmax(-2),
    "softmax over steps": lambda x: x.softmax(-1),
    "a linear layer over steps": lambda x: F.linear(
        x, torch.arange(2.0 * SHAPE[1]).view(2, -1) / 24
    ),
    "a constant per channel": lambda x: x * torch.tensor([[1.0], [2.0], [-1.0], [0.5]]),
    "a constant per step": lambda x: x + torch.linspace(-1, 1, SHAPE[1]),
    "a constant per value": lambda x: x - torch.linspace(-1, 1, 4 * SHAPE[1]).view(1, 4, -1),
    "a sum of multiples": lambda x: torch.add(x, x.relu(), alpha=2),
    "as a map and back": lambda x: F.max_pool2d(x.unsqueeze(2), (1, 2)).squeeze(2),
    "as a map, its width averaged": lambda x: x.unsqueeze(2).mean(3),
    "group norm": lambda x: F.group_norm(x, 2, torch.arange(4.0)),
    "instance norm": lambda x: F.instance_norm(x, weight=torch.arange(4.0)),
    "slopes per channel": lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3, 0.4])),
}


@pytest.mark.parametrize(
    "name", slow_but(("adaptive maximum", "a constant per step", "a sum of multiples"), FUNCTIONS)
)
def test_each_function_of_a_series(name: str) -> None:
    model, x = Does(FUNCTIONS[name]), inputs(3)
    assert_same_numbers(lower(model, SHAPE), x, of_torch(model, x))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv1d, int]:
    """Draw any legal Conv1d that is taken, and a length."""
    depthwise, cin, kernel, dilation = (
        *(draw(st.booleans()), draw(st.integers(1, 4))),
        *(draw(st.integers(1, 5)), draw(st.integers(1, 3))),
    )
    length, stride = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    cout = cin * draw(st.integers(1, 2)) if depthwise else draw(st.integers(1, 5))
    padding = draw(st.one_of(st.integers(0, 4), st.sampled_from(["same", "valid"])))
    assume(padding != "same" or stride == 1)
    more = 2 * padding if isinstance(padding, int) else 0
    assume(padding == "same" or (kernel - 1) * dilation + 1 <= length + more)
    groups = cin if depthwise else 1
    bias = draw(st.booleans())
    return nn.Conv1d(cin, cout, kernel, stride, padding, dilation, groups, bias), length


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(convolutions())
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's own run
def test_any_convolution(drawn: tuple[nn.Conv1d, int]) -> None:
    conv, length = drawn
    shape = conv.in_channels, length
    model, x = nn.Sequential(conv, nn.Flatten()), inputs(2, shape=shape)
    assert_same_numbers(lower(model, shape), x, of_torch(model, x))


MIXED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "an image layer": (nn.Conv2d(1, 1, 3), "of one image"),
    "an image pool": (nn.MaxPool2d(2), "of one image"),
    "an image average": (nn.AdaptiveAvgPool2d(1), "of one image"),
    "softmax over examples": (lambda x: x.softmax(0), "softmax over dimension 0"),
    "softmax over examples, from behind": (lambda x: x.softmax(-3), "softmax over dimension -3"),
    "channels padded": (lambda x: F.pad(x, (0, 0, 1, 1)), "height and width can grow"),
    "a map and a series": (lambda x: x.unsqueeze(2) + x, r"they must agree|of rank|shape"),
}


@pytest.mark.parametrize(
    "name", slow_but(("softmax over examples, from behind", "channels padded"), MIXED)
)
def test_what_would_be_something_else_is_refused(name: str) -> None:
    function, reason = MIXED[name]
    model = nn.Sequential(nn.Conv1d(SHAPE[0], 4, 3, padding=1), Calls(function))
    with pytest.raises(ExportError, match=reason):
        lower(model, SHAPE)


def test_an_unbatched_image_layer_is_refused_even_of_one_channel() -> None:
    """To torch a series [1, channels, length] is one image of one channel."""
    with pytest.raises(ExportError, match="of one image"):
        lower(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Flatten()), (4, 9))


def test_a_layer_norm_over_a_whole_series_is_read_as_it_trains() -> None:
    norm = nn.LayerNorm([4, 7])
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    model = nn.Sequential(nn.Conv1d(3, 4, 3), norm, nn.Flatten(), nn.Linear(28, 2))
    x = inputs(3, shape=(3, 9))
    reading = read(model, torch.from_numpy(x), drops=False)
    assert reading.graph is not None
    assert_same_numbers(reading.graph, x, of_torch(model, x))


# ONNX files made by hand


def file(*nodes: onnx.NodeProto, shape: tuple[int, ...] = (1, 3, 9), **constants: Any) -> bytes:
    graph = helper.make_graph(
        nodes,
        "series",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, None))],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def flat(operator: str, more: str = "", **attributes: Any) -> Callable[..., bytes]:
    def make(**constants: Any) -> bytes:
        node = helper.make_node(operator, ["x", *more.split()], ["m"], **attributes)
        return file(node, helper.make_node("Flatten", ["m"], ["y"]), **constants)

    return make


W = np.random.default_rng(5).standard_normal((6, 3, 3)).astype(np.float32)
DW = np.random.default_rng(6).standard_normal((6, 1, 2)).astype(np.float32)
FORMS: dict[str, Callable[[], bytes]] = {
    "conv": lambda: flat("Conv", "w", strides=[2], pads=[1, 2], dilations=[2])(w=W),
    "conv, kernel told": lambda: flat("Conv", "w b", kernel_shape=[3])(w=W, b=W[:, 0, 0]),
    "conv, same upper": lambda: flat("Conv", "w", auto_pad="SAME_UPPER", strides=[2])(w=W),
    "conv, depthwise": lambda: flat("Conv", "w", group=3)(w=DW),
    "max pool": lambda: flat("MaxPool", kernel_shape=[3], strides=[2], pads=[1, 1])(),
    "max pool, rounded up": lambda: flat("MaxPool", kernel_shape=[4], strides=[2], ceil_mode=1)(),
    "average pool": lambda: flat("AveragePool", kernel_shape=[3], pads=[1, 1])(),
    "average pool, padding counted": lambda: flat(
        "AveragePool", kernel_shape=[3], pads=[1, 1], count_include_pad=1
    )(),
    "global average": lambda: flat("GlobalAveragePool")(),
    "mean": lambda: flat("ReduceMean", axes=[-1], keepdims=0)(),
    "norm": lambda: flat("BatchNormalization", "a b c d")(
        a=W[0, :, 0], b=W[1, :, 0], c=W[2, :, 0], d=np.abs(W[3, :, 0])
    ),
    "instance norm": lambda: flat("InstanceNormalization", "a b")(a=W[0, :, 0], b=W[1, :, 0]),
    "pad": lambda: flat("Pad", "p")(p=np.array([0, 0, 2, 0, 0, 1])),
    "a constant per channel": lambda: flat("Mul", "c")(c=W[0, :, :1]),
    "a constant per step": lambda: flat("Add", "c")(c=np.arange(9, dtype=np.float32)),
    "as a map and back": lambda: file(
        helper.make_node("Unsqueeze", ["x", "two"], ["m"]),
        helper.make_node("Conv", ["m", "w"], ["n"]),
        helper.make_node("Squeeze", ["n", "two"], ["o"]),
        helper.make_node("GlobalAveragePool", ["o"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
        two=np.array([2]),
        w=W[:, :, None],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_onnx(form: str) -> None:
    content, x = FORMS[form](), inputs(3, shape=(3, 9))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    expected = np.concatenate([session.run(None, {"x": one[None]})[0] for one in x])
    assert_same_numbers(lower_onnx(content), x, expected)


ELSE: dict[str, tuple[Callable[[], bytes], str]] = {
    "channels padded": (
        lambda: flat("Pad", "p")(p=np.array([0, 1, 0, 0, 0, 0])),
        "height and width can grow",
    ),
    "window of an image": (flat("MaxPool", kernel_shape=[2, 2]), "MaxPool is not valid|must be 1"),
}


@pytest.mark.parametrize("form", ELSE)
def test_forms_of_onnx_that_are_something_else(form: str) -> None:
    make, reason = ELSE[form]
    with pytest.raises(ExportError, match=reason):
        lower_onnx(make())
