"""Linear attention, against the same with the weights of all tokens for all, and its exports."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edge.passes
from edge.api import check_artifact, export_model
from edge.passes import rewrite, rewrites
from edge.passes.rewrite import Given
from fedkit.config import make_config
from fedkit.core.errors import ConfigError, ExportError
from fedkit.graph import ir
from fedkit.graph.from_torch import lower
from fedkit.graph.interpret import evaluate
from fedkit.nn.linear_attention import NormAwareAttention, SimplifiedLinearAttention
from fedkit.nn.transformers import Sizes, TransformerBlock, blocks_of
from fedkit.nn.zoo import build_model
from fedkit.server.rounds import run_rounds
from sim.scenario import make_scenario
from tests.sets import slow

PLANE = (2, 3)
WIDTH, HEADS = 8, 2


def drawn(module: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def tokens() -> Tensor:
    return torch.randn(3, 6, WIDTH, generator=torch.Generator().manual_seed(1)).double()


def near(attention: Any, value: Tensor) -> Tensor:
    """The convolution over the map of the values."""
    pixels = value.reshape(len(value), *PLANE, WIDTH).permute(0, 3, 1, 2)
    return attention.depthwise(pixels).permute(0, 2, 3, 1).reshape(value.shape)


def by_all_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Weights q . k of each pair of tokens, of which those of a token sum up to 1; [n, t, size]."""
    weights = torch.einsum("nic,njc->nij", q, k)
    return torch.einsum("nij,njd->nid", weights / weights.sum(-1, keepdim=True).clamp(min=1e-6), v)


def simplified(attention: Any, x: Tensor) -> Tensor:
    size, value = WIDTH // HEADS, attention.value(x)
    q = torch.relu(attention.query(x))
    k = torch.relu(attention.key(x) + attention.places)
    heads = [slice(each * size, (each + 1) * size) for each in range(HEADS)]
    mixed = torch.cat([by_all_weights(q[..., h], k[..., h], value[..., h]) for h in heads], -1)
    return attention.out(mixed + near(attention, value))


def norm_aware(attention: Any, x: Tensor) -> Tensor:
    size, value = WIDTH // HEADS, attention.value(x)
    mixed = []
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        q, k, v = attention.query(x)[..., own], attention.key(x)[..., own] ** 3, value[..., own]
        length = (q**2).sum(-1, keepdim=True) ** 0.5
        power = 3 * (0.5 + torch.tanh(length))
        q = torch.cat([(sign * q).clamp(min=0) / length for sign in (1, -1)], -1)
        k = torch.cat([(sign * k).clamp(min=0) for sign in (1, -1)], -1)
        mixed.append(by_all_weights(torch.where(q > 0, q, 1) ** power * (q > 0), k, v))
    made = attention.norm(torch.cat(mixed, -1) + near(attention, value))
    gate = attention.gate(x)
    return attention.out(made * gate / (1 + torch.exp(-gate)))


@pytest.mark.parametrize(
    ("attention", "reference"),
    [
        (SimplifiedLinearAttention(WIDTH, HEADS, PLANE), simplified),
        (NormAwareAttention(WIDTH, HEADS, PLANE), norm_aware),
    ],
    ids=["simplified", "norm-aware"],
)
def test_linear_attention_is_that_of_all_pairs(attention: nn.Module, reference: Any) -> None:
    attention, x = drawn(attention), tokens().requires_grad_()
    found, wanted = attention(x), reference(attention, x)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-11)
    upstream, weights = torch.randn_like(found), [x, *attention.parameters()]
    for one, other in zip(
        torch.autograd.grad(found, weights, upstream),
        torch.autograd.grad(wanted, weights, upstream),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-8)


def test_a_token_without_any_weight_gets_what_is_near_it() -> None:
    attention = drawn(SimplifiedLinearAttention(WIDTH, HEADS, PLANE))
    nn.init.zeros_(attention.query.weight)
    nn.init.constant_(attention.query.bias, -1)
    x = tokens()
    found = attention(x)
    assert torch.allclose(found, attention.out(near(attention, attention.value(x))))
    found.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in attention.parameters())


class OfPixels(nn.Module):
    """Attention over the pixels of a map, and a linear layer of their mean."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.last = attention, nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(self.attention(x.flatten(2).transpose(1, 2)).mean(1))
        return made


def test_norm_aware_attention_is_refused_by_name_in_exports() -> None:
    model = OfPixels(NormAwareAttention(WIDTH, HEADS, PLANE))
    with pytest.raises(ExportError, match=r"module 'attention': fedkit\.directed\.default is not"):
        lower(model, (WIDTH, *PLANE))


@pytest.mark.parametrize("target", ["model.tflite", "model.onnx", slow("model-c99")])
def test_simplified_attention_is_exported_to_the_integer(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = OfPixels(SimplifiedLinearAttention(WIDTH, HEADS, PLANE))
    inputs = np.random.default_rng(0).standard_normal((60, WIDTH, *PLANE)).astype(np.float32)
    export_model(model, inputs, tmp_path / target)
    found = check_artifact(tmp_path / target, inputs, layers=True)
    assert found.mismatches == 0 and found.layers


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    for kind in (SimplifiedLinearAttention, NormAwareAttention):
        with pytest.raises(ConfigError, match="3 heads do not divide a width of 8"):
            kind(WIDTH, 3, PLANE)


def test_mix_ln_places_the_norms_of_the_first_blocks_behind() -> None:
    sizes = Sizes(8, 2, 16, 8, norm_first=True, biases=True, post_share=0.25)
    blocks = blocks_of(sizes)
    assert all(isinstance(block, TransformerBlock) for block in blocks)
    assert [block.norm_first for block in blocks] == [False] * 2 + [True] * 6
    assert all(block.norm_first for block in blocks_of(sizes._replace(post_share=0.0)))
    block: Any = blocks[0].eval()
    out = block(torch.randn(2, 3, 8))
    assert torch.allclose(out.mean(-1), torch.zeros(2, 3), atol=1e-6), "normalised behind"


# The model

ALLOWED = {
    *("conv2d", "depthwise_conv2d", "linear", "matmul", "div", "add", "gelu"),
    *("transpose", "reshape", "mean", "relu", "sum_pool2d", "take"),
}


def test_the_exported_model_has_no_norm_and_divides_in_attention_alone() -> None:
    model = build_model("slab-vit-tiny", (3, 16, 16), 10)
    for graph in (lower(model, (3, 16, 16)), edge.passes.optimise(lower(model, (3, 16, 16)))):
        kinds = Counter(op.kind for op in graph.ops)
        assert set(kinds) <= ALLOWED | {"affine"}
        assert kinds["div"] == 4
        assert {op.source for op in graph.ops if op.kind == "div"} == {
            f"blocks.{block}.attention" for block in range(4)
        }
    assert kinds["affine"] == 0


def test_a_rewrite_puts_its_norms_into_the_linear_layers_behind_them() -> None:
    torch.manual_seed(0)
    model = build_model("slab-vit-tiny", (1, 8, 8), 10)
    model.train()(torch.from_numpy(3 * images(20)))
    graph = lower(model, (1, 8, 8))
    (asked,) = (row for row in rewrites.asked(["affine_forward"]) if not row.always)
    made, done = rewrite.apply(graph, asked, Given(ir.to_graph_layout(images(4))))
    assert len(done.applied) == 8 and "mean of module" in dict(done.refused)["norm.rep"]
    x = images(6)
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(x)).numpy()
    found = evaluate(edge.passes.optimise(made), ir.to_graph_layout(x))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def images(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((count, 1, 8, 8)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["model.tflite", "model.onnx", "model-c99"])
def test_artifacts_of_the_model_are_their_definition(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model("slab-vit-tiny", (1, 8, 8), 10)
    model.train()(torch.from_numpy(3 * images(40)))
    export_model(model, images(40), tmp_path / target, accept_error=True)
    assert check_artifact(tmp_path / target, images(8), layers=True).mismatches == 0


def test_a_fleet_trains_it_on_torch() -> None:
    config = make_config(
        {
            **{"model": "slab-vit-tiny", "devices": 2, "rounds": 1, "epochs": 1},
            **{"examples_per_device": 30, "test_examples": 30, "server_epochs": 0},
            **{"method": "dense", "density": 1.0, "bn_merge": "exact-last"},
        }
    )
    scenario = make_scenario(config)
    assert "follows the round" in scenario.engine_notice
    reports = list(run_rounds(scenario.server(), scenario.local_fleet(), scenario.server_data))
    first, last = (report.state for report in (reports[0], reports[-1]))
    names = [n for n in last.stats if n.endswith("running_var")]
    assert len(names) == 9 and all((last.stats[n] != first.stats[n]).all() for n in names)
