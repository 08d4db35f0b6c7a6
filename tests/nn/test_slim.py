"""A slimmed model is smaller and computes the same."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge.cost import cost
from edge.export import float_graph
from edge.passes.slim import slim as slim_graph
from edge.quantize.to_int8 import quantize
from fedkit.core.errors import ConfigError
from fedkit.graph import ir
from fedkit.nn.layers import prunable_weights
from fedkit.nn.slim import Slimmed, slim
from fedkit.nn.zoo import build_model
from fedkit.sparse.state import Masks
from tests.sets import slow, slow_but

ZOO = {
    "resnet8": (3, 16, 16),
    "resnet18-w16": (3, 16, 16),
    "ds-cnn": (1, 20, 20),
    "mobilenetv2-w0.25": (3, 16, 16),
}
Randomise = Callable[[nn.Module], nn.Module]


class Net(nn.Module):
    """A concat, a residual, a depthwise layer and a flatten before the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grow = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.deep = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.mix, self.head = nn.Conv2d(10, 10, 1), nn.Linear(10 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.cat([x, torch.relu(self.grow(x))], 1)
        x = torch.relu(x + self.mix(torch.relu(self.deep(x))))
        y: Tensor = self.head(torch.max_pool2d(x, 2).flatten(1))
        return y


def random_masks(model: nn.Module, density: float, seed: int = 0) -> dict[str, NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    shapes = {name: tuple(model.get_parameter(name).shape) for name in prunable_weights(model)}
    return {name: rng.random(shape) < density for name, shape in shapes.items()}


def masked(model: nn.Module, masks: Masks) -> nn.Module:
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(torch.from_numpy(mask))
    return model


def assert_computes_the_same(
    model: nn.Module, masks: Masks, shape: tuple[int, ...], seed: int = 0
) -> Slimmed:
    found = slim(model, masks, shape)
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        expected, actual = masked(model, masks).double()(x), found.model.double()(x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
    assert found.parameters == sum(p.numel() for p in found.model.parameters())
    return found


@pytest.mark.parametrize("density", [0.01, slow(0.05)])
@pytest.mark.parametrize("name", slow_but(("resnet8", "ds-cnn"), ZOO))
def test_a_sparse_model_loses_channels_and_keeps_its_outputs(
    name: str, density: float, randomise: Randomise
) -> None:
    model = randomise(build_model(name, ZOO[name], 10))
    before = copy.deepcopy(model.state_dict())
    found = assert_computes_the_same(model, random_masks(model, density), ZOO[name])
    assert found.macs <= found.macs_before and found.parameters <= found.parameters_before
    if density == 0.01:
        assert found.macs < found.macs_before
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("seed", range(12))
def test_what_stands_and_falls_together(seed: int) -> None:
    torch.manual_seed(seed)
    model = Net()
    masks = random_masks(model, 0.1, seed)
    assert assert_computes_the_same(model, masks, (2, 8, 8), seed).parameters < 2000


@pytest.mark.parametrize("affine", [True, False])
def test_a_group_norm_keeps_its_channels(affine: bool) -> None:
    norm = nn.GroupNorm(2, 8, affine=affine)
    layers = [nn.Conv2d(2, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(4 * 36, 3))
    masks = random_masks(model, 1.1)
    masks["0.weight"][3:6] = False
    masks["3.weight"][:, 3:6] = False
    masks["3.weight"][1] = False
    found = assert_computes_the_same(model, masks, (2, 8, 8)).model
    assert [layer.out_channels for layer in found.children() if isinstance(layer, nn.Conv2d)] == [
        8,
        3,
    ]


def test_channels_that_nobody_reads_or_that_are_zero_go() -> None:
    model = Net()
    masks = random_masks(model, 1.1)
    masks["grow.weight"][1] = False  # made by nobody; its bias is cut off by the ReLU
    masks["head.weight"][:, 16 * 7 : 16 * 8] = False
    masks["mix.weight"][7] = False
    masks["mix.weight"][:, 7] = False
    with torch.no_grad():
        model.get_parameter("grow.bias")[1] = -1.0
    found = assert_computes_the_same(model, masks, (2, 8, 8)).model
    names = ("stem", "grow", "mix", "head")
    shapes = [tuple(found.get_parameter(f"{name}.weight").shape) for name in names]
    assert [shape[:2] for shape in shapes] == [(6, 2), (3, 6), (9, 9), (3, 144)]


def test_a_dense_model_stays_and_an_empty_one_keeps_a_channel_everywhere() -> None:
    model = Net()
    dense = slim(model, random_masks(model, 1.1), (2, 8, 8))
    assert dense.parameters == dense.parameters_before and dense.macs == dense.macs_before
    empty = assert_computes_the_same(model, random_masks(model, 0.0), (2, 8, 8))
    assert 0 < empty.parameters < 0.2 * empty.parameters_before


@pytest.mark.parametrize("name", ["resnet8", slow("ds-cnn")])
def test_the_integer_graph_witnesses_it(name: str, randomise: Randomise) -> None:
    model, shape = randomise(build_model(name, ZOO[name], 10)), ZOO[name]
    masks = random_masks(model, 0.01)
    inputs = np.random.default_rng(0).standard_normal((16, *shape)).astype(np.float32)

    def slimmed(each: nn.Module) -> ir.Graph:
        graph = quantize(float_graph(each, shape), ir.to_graph_layout(inputs))
        return slim_graph(graph)

    found = slim(model, masks, shape)
    whole = float_graph(masked(model, masks), shape)
    assert cost(slimmed(masked(model, masks))) == cost(slimmed(found.model))
    assert cost(float_graph(found.model, shape)).channels < cost(whole).channels


# Layers that tie channels which torch-pruning does not show to stand and fall together


class Shared(nn.Module):
    """Two grouped layers whose sum is read: their groups of channels stand together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.one, self.two = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.last, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.one(x) + self.two(x) + x)
        y: Tensor = self.head(torch.relu(self.last(x)).mean((2, 3)))
        return y


class Tokens(nn.Module):
    """Linear layers over the last of three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean(1))
        return y


def chain(middle: nn.Module, channels: int = 8, after: int = 8) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(2, channels, 3, padding=1), nn.ReLU(), copy.deepcopy(middle), nn.ReLU()),
            *(nn.Conv2d(after, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(6, 3),
        )

    return build


TIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "groups of 4": (chain(nn.Conv2d(8, 8, 3, padding=1, groups=2)), (2, 6, 6)),
    "groups of 2 to 3": (chain(nn.Conv2d(8, 12, 1, groups=4), after=12), (2, 6, 6)),
    "depthwise": (chain(nn.Conv2d(8, 8, 3, padding=1, groups=8)), (2, 6, 6)),
    "depthwise with a multiplier": (chain(nn.Conv2d(8, 16, 1, groups=8), after=16), (2, 6, 6)),
    "two channels to each of one": (chain(nn.Conv2d(8, 4, 1, groups=4), after=4), (2, 6, 6)),
    "shared groups": (Shared, (2, 6, 6)),
    "group norm": (chain(nn.GroupNorm(2, 8)), (2, 6, 6)),
    "layer norm": (chain(nn.LayerNorm([8, 6, 6])), (2, 6, 6)),
    "instance norm": (chain(nn.InstanceNorm2d(8, affine=True)), (2, 6, 6)),
    "slopes per channel": (chain(nn.PReLU(8)), (2, 6, 6)),
    "transposed": (chain(nn.ConvTranspose2d(8, 8, 3, padding=1)), (2, 6, 6)),
    "tokens": (Tokens, (5, 6)),
    "series": (
        lambda: nn.Sequential(
            *(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=2), nn.ReLU()),
            *(nn.Conv1d(8, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 6, 3)),
        ),
        (2, 10),
    ),
}


@pytest.mark.parametrize("density", [0.02, 0.3])
@pytest.mark.parametrize("name", TIES)
def test_layers_that_tie_channels_keep_them(name: str, density: float) -> None:
    build, shape = TIES[name]
    model = build()
    assert_computes_the_same(model, random_masks(model, density), shape)


@pytest.mark.parametrize("name", TIES)
def test_what_lies_behind_such_a_layer_still_goes(name: str) -> None:
    build, shape = TIES[name]
    model = build()
    masks = random_masks(model, 1.1)
    layer = next(n for n in reversed(masks) if masks[n].shape[0] == 6)
    masks[layer][:5] = False
    with torch.no_grad():
        model.get_parameter(layer.replace("weight", "bias")).fill_(-1.0)
    found = assert_computes_the_same(model, masks, shape)
    assert found.model.get_parameter(layer).shape[0] == 1


def test_a_model_that_would_compute_something_else_is_refused() -> None:
    class Softmax(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x, 1)

    model = chain(Softmax())()
    masks = random_masks(model, 1.1)
    masks["4.weight"][:, :3] = False  # nobody reads these, but the softmax did
    with pytest.raises(ConfigError, match="computes something else without the channels"):
        slim(model, masks, (2, 6, 6))


def test_wrong_masks_and_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    masks = random_masks(model, 0.5)
    for wrong in (
        {**masks, "mix.weight": masks["mix.weight"][1:]},
        {**masks, "other.weight": masks["mix.weight"]},
        {name: mask for name, mask in masks.items() if name != "stem.weight"},
    ):
        with pytest.raises(ConfigError, match="masks are not those of the model"):
            slim(model, wrong, (2, 8, 8))
    with pytest.raises(ConfigError, match="torch-pruning cannot follow Net for inputs of shape"):
        slim(model, masks, (3, 8, 8))
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedkit\[slim\]'"):
        slim(model, masks, (2, 8, 8))
