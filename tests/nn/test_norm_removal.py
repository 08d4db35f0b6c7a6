"""Layer norms that a model loses while it is fine-tuned."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from edge.export import int8_graph
from edge.quantize import guard
from fedkit.core.errors import ConfigError
from fedkit.graph import ir
from fedkit.nn.norms.frozen import FrozenLayerNorm, freeze
from fedkit.nn.norms.removal import LayerNormRemoval
from fedkit.nn.transformers import Sizes, TokenClassifier
from fedkit.tasks import load_task

LARGEST_LOSS = 0.01


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 6), nn.LayerNorm(6)
    )


def names_of(model: nn.Sequential) -> list[str]:
    return [type(module).__name__ for module in model]


def test_norms_go_one_after_another() -> None:
    model = net()
    removal = LayerNormRemoval(model, every=3)
    told = []
    for _ in range(8):
        model(torch.randn(16, 4))
        told.append(removal.step())
    assert told == ["", "", "1", "", "", "4", "", ""]
    assert removal.left == []
    assert names_of(model) == ["Linear", "FrozenLayerNorm", "ReLU", "Linear", "FrozenLayerNorm"]


def test_a_norm_is_frozen_at_its_mean_deviation_with_its_own_parameters() -> None:
    model = net()
    weight, seen = model.get_parameter("1.weight"), []
    removal = LayerNormRemoval(model, every=100, names=["1"])
    for _ in range(100):
        x = torch.randn(64, 4)
        seen.append(model[0](x).std(-1, correction=0).mean().item())
        model(x)
        removal.step()
    frozen = model[1]
    assert isinstance(frozen, FrozenLayerNorm)
    assert frozen.weight is weight
    assert float(frozen.running_var.sqrt()) == pytest.approx(np.mean(seen), rel=0.05)
    assert names_of(model)[4] == "LayerNorm"


def test_an_optimiser_goes_on_with_a_frozen_norm() -> None:
    model = net()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    removal = LayerNormRemoval(model, every=1)
    for _ in range(3):
        optimiser.zero_grad()
        model(torch.randn(16, 4)).square().sum().backward()
        before = model.get_parameter("1.weight").detach().clone()
        optimiser.step()
        removal.step()
        assert not torch.equal(before, model.get_parameter("1.weight"))


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_fast_path_of_torchs_layer_does_not_skip_frozen_norms(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=norm_first, batch_first=True).eval()
    freeze(layer, "norm1", 9.0)
    x = torch.randn(3, 5, 8)
    with_gradients = layer(x).detach()
    with torch.no_grad():
        assert torch.allclose(layer(x), with_gradients, atol=1e-5)
        assert torch.allclose(copy.deepcopy(layer)(x), with_gradients, atol=1e-5)


def test_examples_in_evaluation_do_not_count() -> None:
    model = net()
    model.eval()
    removal = LayerNormRemoval(model, every=1)
    model(torch.randn(16, 4))
    with pytest.raises(ConfigError, match="'1' has seen no batch in training mode"):
        removal.step()


def test_what_has_no_layer_norm_is_refused() -> None:
    with pytest.raises(ConfigError, match="every is 0"):
        LayerNormRemoval(net(), every=0)
    with pytest.raises(ConfigError, match="'0' is no layer norm over the last axis"):
        LayerNormRemoval(net(), every=1, names=["0"])
    with pytest.raises(ConfigError, match="Linear has no layer norm"):
        LayerNormRemoval(nn.Linear(3, 3), every=1)


# A small task


def trained(
    model: nn.Module, epochs: int, rate: float, seed: int, removal: LayerNormRemoval | None = None
) -> nn.Module:
    data = load_task("digits").examples("train")
    inputs, targets = torch.from_numpy(data.inputs), torch.from_numpy(np.asarray(data.targets))
    draws = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    steps = epochs * -(-len(inputs) // 64)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0.05, steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs), generator=draws).split(64):
            optimiser.zero_grad()
            cross_entropy(model(inputs[batch]), targets[batch].long()).backward()
            optimiser.step()
            schedule.step()
            if removal is not None:
                removal.step()
    return model.eval()


def accuracy(model: nn.Module) -> float:
    test = load_task("digits").examples("test")
    with torch.no_grad():
        found = model(torch.from_numpy(test.inputs)).argmax(1).numpy()
    return float((found == np.asarray(test.targets)).mean())


@pytest.mark.slow
def test_digits_lose_no_point_with_their_norms_and_guards_see_other_digits() -> None:
    losses = []
    for seed in range(3):
        torch.manual_seed(seed)
        sizes = Sizes(32, 4, 64, 2, norm_first=True, biases=True)
        model = TokenClassifier(nn.Conv2d(1, 32, 2, 2), 16, sizes, 10)
        trained(model, 15, 3e-3, seed)
        kept = trained(copy.deepcopy(model), 10, 1e-3, 10 + seed)
        removal = LayerNormRemoval(model, every=12)
        trained(model, 10, 1e-3, 10 + seed, removal)
        assert removal.left == []
        losses.append(accuracy(kept) - accuracy(model))
    assert np.mean(losses) <= LARGEST_LOSS

    task = load_task("digits")
    test = task.examples("test").inputs
    graph = int8_graph(model, task.examples("train").inputs[:256], rewrites=("lowrank_merge",))
    assert "channel_norm" not in {op.kind for op in graph.ops}
    assert graph.origin is not None
    floats = graph.origin.floats
    assert len(floats.guards) == 5
    assert guard.told(guard.look(floats, ir.to_graph_layout(test))) == ""
    shifted = guard.look(floats, ir.to_graph_layout(10 * test + 5))
    assert "norms without a deviation of their own saw others" in guard.told(shifted)
