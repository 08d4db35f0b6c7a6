"""Products of activations, softmax over the last axis, and attention however it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge import passes
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_onnx import lower as lower_onnx
from fedkit.graph.from_torch import lower
from fedkit.graph.interpret import evaluate
from tests.calls import Calls
from tests.graph.exported import exported
from tests.tokens import ATTENTION, AttentionLayer, SmallTransformer, made

Function = Callable[[Tensor], Tensor]


def assert_same(graph: ir.Graph, model: nn.Module, shape: tuple[int, ...]) -> ir.Graph:
    """Assert that a graph gives torch's numbers, before and after the passes of an export."""
    x = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(x)).numpy()
    ready = passes.optimise(graph)
    for each in (graph, ready):
        found = ir.from_graph_layout(evaluate(each, ir.to_graph_layout(x))).reshape(wanted.shape)
        assert np.abs(found - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max())
    return ready


@pytest.mark.parametrize("kind", ATTENTION)
def test_models_of_people_move_each_head_once(kind: str) -> None:
    """Queries, keys and values go to heads, and what comes of them back."""
    model, shape = made(kind)
    counts = Counter(op.kind for op in assert_same(lower(model, shape), model, shape).ops)
    assert counts["matmul"] == 2 and counts["softmax"] == 1
    assert counts["transpose"] <= 4 + (kind == "encoder")
    assert not counts["affine"] and not counts["depthwise_conv2d"]  # a root of the size has folded


FILES = ["fused heads", "own heads", "one call"]


@pytest.mark.parametrize("symbolic", [True, False])
@pytest.mark.parametrize("kind", FILES)
def test_files_of_torchs_exporter(kind: str, symbolic: bool) -> None:
    model, shape = made(kind)
    graph = lower_onnx(exported(model.eval(), shape, symbolic=symbolic))
    counts = Counter(op.kind for op in assert_same(graph, model, shape).ops)
    assert counts["matmul"] == 2 and counts["softmax"] == 1


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, -1)).transpose(1, 2)


PRODUCTS: dict[str, tuple[Function, tuple[int, ...]]] = {
    "of tokens": (lambda x: x @ x.tanh().transpose(1, 2), (3, 4)),
    "of maps": (lambda x: torch.matmul(x, x.mT), (2, 3, 4)),
    "of batches": (lambda x: torch.bmm(x.mT, x), (3, 4)),
    "softmax of the last axis": (lambda x: F.softmax(x, -1), (3, 4)),
    "softmax of a map's last axis": (lambda x: x.softmax(3), (2, 3, 4)),
    "softmax of channels": (lambda x: x.softmax(1), (2, 3, 4)),
    "logarithm": (lambda x: x.log_softmax(2), (3, 4)),
    "one head": (lambda x: F.scaled_dot_product_attention(x, x, x), (3, 4)),
    "heads": (lambda x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x)), (3, 4)),
    "its own scale": (lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.3), (3, 4)),
    "a mask of numbers": (
        lambda x: F.scaled_dot_product_attention(x, x, x, torch.arange(9.0).view(3, 3)),
        (3, 4),
    ),
    "a mask for heads": (
        lambda x: F.scaled_dot_product_attention(
            heads(x), heads(x), heads(x), torch.arange(18.0).view(1, 2, 3, 3) / 9
        ),
        (3, 4),
    ),
    "a mask that leaves nothing out": (
        lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones(3, 3, dtype=torch.bool)),
        (3, 4),
    ),
    "causal": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), (3, 4)),
    "causal heads": (
        lambda x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x), is_causal=True),
        (5, 4),
    ),
    "a mask": (
        lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones(3, 3).tril().bool()),
        (3, 4),
    ),
    "a mask of infinities": (
        lambda x: F.scaled_dot_product_attention(
            x, x, x, torch.full((3, 3), float("-inf")).triu(1)
        ),
        (3, 4),
    ),
    "scores that are filled": (
        lambda x: (x @ x.mT).masked_fill(torch.ones(3, 3).triu(1) == 1, -1e9).softmax(-1) @ x,
        (3, 4),
    ),
    "scores and infinities": (
        lambda x: ((x @ x.mT) + torch.full((3, 3), float("-inf")).triu(1)).softmax(-1) @ x,
        (3, 4),
    ),
    "filled with zeros": (lambda x: x.masked_fill(torch.eye(3, 4).bool(), 0.0), (3, 4)),
    "one token, causal": (
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
        (1, 4),
    ),
    "a token before": (
        lambda x: torch.cat([torch.ones(1, 1, 4).expand(len(x), -1, -1), x], 1),
        (3, 4),
    ),
    "tokens around": (
        lambda x: torch.cat([torch.ones(len(x), 2, 4), x, torch.zeros(len(x), 1, 4)], 1),
        (3, 4),
    ),
    "steps behind": (lambda x: torch.cat([x, torch.ones(len(x), 3, 2)], -1), (3, 4)),
    "channels before a map": (lambda x: torch.cat([torch.ones(len(x), 1, 3, 4), x], 1), (2, 3, 4)),
    "rows behind a map": (lambda x: torch.cat([x, torch.ones(len(x), 2, 1, 4)], 2), (2, 3, 4)),
    "examples in the middle": (
        lambda x: x.unflatten(-1, (2, 2)).permute(2, 0, 1, 3)[1] * 2,
        (3, 4),
    ),
    "parts before examples": (
        lambda x: x.unflatten(-1, (2, 2)).permute(2, 0, 3, 1).unbind(0)[1] + 1,
        (3, 4),
    ),
    "split before examples": (
        lambda x: x.unflatten(-1, (2, 2)).permute(2, 0, 3, 1).split(1)[0].squeeze(0) + 1,
        (3, 4),
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_each_spelling(name: str) -> None:
    function, shape = PRODUCTS[name]
    model = nn.Sequential(nn.Tanh(), Calls(function))
    assert_same(lower(model, shape), model, shape)


REFUSED: dict[str, tuple[Function, tuple[int, ...], str]] = {
    "a mask that leaves a line nothing": (
        lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones(3, 3).tril(-1).bool()),
        (3, 4),
        "a mask that leaves out all places of a line",
    ),
    "a mask of a wrong shape": (
        lambda x: F.scaled_dot_product_attention(
            heads(x), heads(x), heads(x), torch.zeros(1, 1, 2, 3, 3)[0, :, [0, 1, 0]]
        ),
        (3, 4),
        "cannot trace|a mask of shape",
    ),
    "values filled with others": (
        lambda x: x.masked_fill(torch.ones(3, 4).tril().bool(), 3.0),
        (3, 4),
        "values filled with 3 where a mask says; 0 or -inf can be",
    ),
    "features": (lambda x: x @ x.T, (4,), "mixes"),
    "examples in a product": (lambda x: x.transpose(0, 1) @ x.transpose(0, 1).mT, (3, 4), "holds"),
    "heads of other numbers": (
        lambda x: x.unsqueeze(1) @ torch.cat([x.unsqueeze(1)] * 2, 1).mT,
        (3, 4),
        r"a product of matrices \(1, 3, 4\) and \(2, 4, 3\)",
    ),
    "a constant first": (lambda x: torch.ones(3, 3) @ x, (3, 4), "constant"),
    "softmax of rows": (lambda x: x.softmax(2), (2, 3, 4), "a softmax over dimension 2"),
    "one of examples": (lambda x: torch.cat([x, x], 0), (3, 4), "dimension 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_name(name: str) -> None:
    function, shape, reason = REFUSED[name]
    with pytest.raises(ExportError, match=reason):
        lower(nn.Sequential(nn.Tanh(), Calls(function)), shape)


def test_a_layer_that_mixes_examples_is_refused() -> None:
    model = SmallTransformer(lambda size, heads: AttentionLayer(size, heads))
    layer = model.get_submodule("attention.layer")
    assert isinstance(layer, nn.MultiheadAttention)
    layer.batch_first = False
    with pytest.raises(ExportError, match=r"which holds the examples|mixes them"):
        lower(model, (1, 8, 12))


def test_parts_of_a_layer_become_layers() -> None:
    def function(x: Tensor) -> Tensor:
        first, second, third = layer(x).chunk(3, 1)
        return first * second - third

    torch.manual_seed(0)
    layer = nn.Conv2d(2, 6, 1)
    ready = assert_same(lower(Calls(function), (2, 3, 4)), Calls(function), (2, 3, 4))
    assert Counter(op.kind for op in ready.ops) == {"conv2d": 3, "mul": 1, "sub": 1}


def test_a_layer_of_which_more_is_read_stays_one() -> None:
    def function(x: Tensor) -> Tensor:
        both = layer(x)
        return both[:, :3] * both[:, 2:5] - both.sum(1, keepdim=True)

    torch.manual_seed(0)
    layer = nn.Conv2d(2, 6, 1)
    ready = assert_same(lower(Calls(function), (2, 3, 4)), Calls(function), (2, 3, 4))
    assert Counter(op.kind for op in ready.ops)["conv2d"] == 1
