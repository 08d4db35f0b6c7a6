"""Norms over channels, as layers, functions and files have them, and as people spell them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from edge import passes
from fedkit.core.errors import ExportError
from fedkit.graph import from_onnx, from_torch, ir
from fedkit.graph.interpret import evaluate
from fedkit.graph.ops.norms import OfPlace
from tests.graph.exported import exported
from tests.sets import slow_but

Shape = tuple[int, ...]


class WithNorm(nn.Module):
    """What a function makes of a value, a weight and a bias."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor], size: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.function = function
        self.weight, self.bias = (
            nn.Parameter(torch.randn(size, generator=random)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.function(x.tanh(), self.weight, self.bias))


def over_channels(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As ConvNeXt has it for maps."""
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    hat = (x - mean) / torch.sqrt(variance + 1e-3)
    return weight[:, None, None] * hat + bias[:, None, None]


def by_variance(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    spread = torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-3)
    return (x - x.mean(-1, keepdim=True)) * spread * weight + bias


def by_inverse(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    off = x - x.mean(-1, keepdim=True)
    return (
        torch.reciprocal(((off * off).mean(-1, keepdim=True) + 1e-3).sqrt()) * off * weight + bias
    )


NORMS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Shape, bool]] = {
    "of tokens": (lambda x, w, b: F.layer_norm(x, (6,), w, b, 1e-3), (5, 6), True),
    "of features": (lambda x, w, b: F.layer_norm(x, (6,), w, b, 1e-3), (6,), True),
    "of a map's last axis": (lambda x, w, b: F.layer_norm(x, (6,), w, b), (3, 4, 6), True),
    "without parameters": (lambda x, w, b: F.layer_norm(x, (6,)), (5, 6), True),
    "without a bias": (lambda x, w, b: F.layer_norm(x, (6,), w), (5, 6), True),
    "of maps, channels last": (
        lambda x, w, b: F.layer_norm(x.permute(0, 2, 3, 1), (6,), w, b).permute(0, 3, 1, 2),
        (6, 3, 4),
        True,
    ),
    "root of mean square": (lambda x, w, b: F.rms_norm(x, (6,), w, 1e-3), (5, 6), False),
    "the same, its own eps": (lambda x, w, b: F.rms_norm(x, (6,)), (6,), False),
    "spelt over channels": (over_channels, (6, 3, 4), True),
    "spelt by a variance": (by_variance, (5, 6), True),
    "spelt by an inverse": (by_inverse, (5, 6), True),
    "spelt root of mean square": (
        lambda x, w, b: w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)) + b,
        (5, 6),
        False,
    ),
}


def examples(shape: Shape) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(0.5, 2, (3, *shape)).astype(np.float32)


def assert_same(graph: ir.Graph, wanted: ir.Array, shape: Shape, centred: bool) -> None:
    """Assert numbers, and that nothing is left beside one norm, with its ReLU, and moves."""
    ready = passes.optimise(graph)
    (norm,) = (op for op in ready.ops if op.kind == "channel_norm")
    assert isinstance(norm.attributes, OfPlace) and norm.attributes.centred == centred
    assert {op.kind for op in ready.ops} <= {"tanh", "transpose", "channel_norm", "relu"}
    for each in (graph, ready):
        found = ir.from_graph_layout(evaluate(each, ir.to_graph_layout(examples(shape))))
        np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-5)


def run(model: nn.Module, shape: Shape) -> ir.Array:
    with torch.no_grad():
        return np.asarray(model.eval()(torch.from_numpy(examples(shape))))


@pytest.mark.parametrize("name", NORMS)
def test_torch_models_have_one_norm(name: str) -> None:
    function, shape, centred = NORMS[name]
    model = WithNorm(function, 6)
    assert_same(from_torch.lower(model, shape), run(model, shape), shape, centred)


IN_FILES = ["of tokens", "spelt over channels", "spelt by an inverse", "of maps, channels last"]


@pytest.mark.parametrize("opset", [11, 17, 18])
@pytest.mark.parametrize("name", slow_but(IN_FILES[:2], IN_FILES))
def test_files_of_torchs_exporter_have_one_norm(name: str, opset: int) -> None:
    function, shape, centred = NORMS[name]
    model = WithNorm(function, 6)
    graph = from_onnx.lower(exported(model.eval(), shape, opset))
    assert_same(graph, run(model, shape), shape, centred)


def test_a_layer_norm_of_a_whole_example_is_a_group_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Tanh(), nn.LayerNorm((2, 3, 4)))
    nn.init.normal_(model[1].weight)  # type: ignore[arg-type]
    nn.init.normal_(model[1].bias)  # type: ignore[arg-type]
    wanted = run(model, (2, 3, 4))
    read = from_torch.lower(model, (2, 3, 4)), from_onnx.lower(exported(model, (2, 3, 4)))
    for graph in read:
        assert [op.kind for op in graph.ops] == ["tanh", "group_norm", "mul", "add"]
        found = evaluate(graph, ir.to_graph_layout(examples((2, 3, 4))))
        np.testing.assert_allclose(ir.from_graph_layout(found), wanted, rtol=1e-4, atol=1e-5)


def one_node(operator: str, opset: int, shape: Shape, **attributes: Any) -> bytes:
    port = helper.make_tensor_value_info
    scale = numpy_helper.from_array(np.linspace(-1, 2, shape[-1]).astype(np.float32), "scale")
    node = helper.make_node(operator, ["x", "scale"], ["y"], **attributes)
    ports = (
        [port("x", TensorProto.FLOAT, [1, *shape])],
        [port("y", TensorProto.FLOAT, [1, *shape])],
    )
    graph = helper.make_graph([node], "one", *ports, [scale])
    opsets = [helper.make_opsetid("", opset)]
    content: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=9
    ).SerializeToString()
    return content


@pytest.mark.parametrize("axis", [-1, 2, 1])
def test_nodes_are_read_as_onnxruntime_computes(axis: int) -> None:
    content = one_node("LayerNormalization", 17, (5, 6), axis=axis, epsilon=0.01)
    x = examples((5, 6))[:1]
    (wanted,) = onnxruntime.InferenceSession(content).run(None, {"x": x})
    graph = from_onnx.lower(content)
    assert graph.ops[0].kind == ("group_norm" if axis == 1 else "transpose")
    found = ir.from_graph_layout(evaluate(graph, ir.to_graph_layout(x))).reshape(wanted.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_an_rms_node_is_read_as_torch_computes() -> None:
    graph = from_onnx.lower(one_node("RMSNormalization", 23, (5, 6), epsilon=0.01))
    x = examples((5, 6))
    wanted = F.rms_norm(torch.from_numpy(x), (6,), torch.linspace(-1, 2, 6), 0.01)
    found = ir.from_graph_layout(evaluate(graph, ir.to_graph_layout(x))).reshape(x.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "two of three axes": (
        lambda x: F.layer_norm(x, x.shape[-2:]),
        r"a layer norm over \(4, 6\); the last axis, or a whole example, \(3, 4, 6\), can be",
    ),
    "spelt over height": (
        lambda x: x * torch.rsqrt(x.pow(2).mean(2, keepdim=True) + 1),
        r"a norm over dimensions \[2\]; the last, or channels, can be",
    ),
    "spelt without eps": (
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)),
        "rsqrt.default is not supported",
    ),
    "its variance is an output": (
        lambda x: torch.cat([_spread(x), x / _spread(x)], 1),
        "sqrt.default is not supported",
    ),
    "unbiased": (
        lambda x: (x - x.mean(-1, True)) / (x.var(-1, keepdim=True) + 1e-3).sqrt(),
        "var.dim is not supported",
    ),
    "without eps above 0": (
        lambda x: F.layer_norm(x, (6,), eps=0.0),
        "a norm with eps = 0.0; it must be above 0",
    ),
}


def _spread(x: Tensor) -> Tensor:
    return (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt().expand_as(x)


@pytest.mark.parametrize("name", REFUSED)
def test_other_norms_are_refused_by_name(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(ExportError, match=reason):
        from_torch.lower(WithNorm(lambda x, w, b: function(x), 1), (3, 4, 6))


def test_a_norm_of_weights_is_a_constant() -> None:
    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        unit = weight * torch.rsqrt(weight.pow(2).mean(-1, keepdim=True) + 1e-3)
        return x * unit

    model = WithNorm(function, 6)
    graph = from_torch.lower(model, (6,))
    assert [op.kind for op in graph.ops] == ["tanh", "affine", "relu"]
    found = evaluate(graph, examples((6,)))
    np.testing.assert_allclose(found, run(model, (6,)), rtol=1e-5, atol=1e-6)
