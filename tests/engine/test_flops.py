"""Costs against torch's counter on dense models, and against counting one by one on sparse ones."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedkit.core.errors import EngineError, TaskError
from fedkit.engine.base import Engine, LocalTraining
from fedkit.engine.flops import CountingEngine, WeightUses, memory_model, positions, unpruned_values
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.nn.layers import prunable_weights
from fedkit.nn.zoo import build_model
from fedkit.sparse.state import Masks, ModelState
from fedkit.tasks.task import Examples
from tests.engine.sparse.cases import engines, examples, pruned, zoo
from tests.naive import cost as naive
from tests.sets import slow_but

SHAPE = (1, 8, 8)
HOW = LocalTraining(epochs=3, batch_size=8, lr=0.05, momentum=0.9, weight_decay=1e-3)


def dense(model: nn.Module) -> Masks:
    weights = dict(model.named_parameters())
    return {n: np.ones(tuple(weights[n].shape), np.bool_) for n in prunable_weights(model)}


@contextmanager
def torchs_count() -> Iterator[list[int]]:
    """Yield a list that holds torch's count once the block is done."""
    total: list[int] = []
    with FlopCounterMode(display=False) as counter:
        yield total
    total.append(counter.get_total_flops())


# Dense models, by torch's own counter

ZOO = {
    "resnet8": (3, 32, 32),
    "resnet18": (3, 32, 32),
    "resnet18-w16": (3, 32, 32),
    "resnet18-gn-w16": (3, 32, 32),
    "vgg11": (3, 32, 32),
    "ds-cnn": (1, 49, 10),
    "mobilenetv2-w0.25": (3, 32, 32),
}


def overcounted(model: nn.Module, geometry: WeightUses) -> int:
    """Return what torch counts too much: gradients of grouped weights as if of a dense layer's."""
    return sum(
        2 * (layer.groups - 1) * geometry.positions[f"{name}.weight"] * layer.weight.numel()
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d)
    )


@pytest.mark.parametrize("name", slow_but(("resnet8", "ds-cnn"), ZOO))
def test_a_dense_model_costs_what_torch_counts(name: str) -> None:
    shape = ZOO[name]
    with torch.device("meta"):  # shapes alone, no arithmetic
        model = build_model(name, shape, 10)
        inputs = torch.zeros(2, *shape)
    geometry, masks = positions(model, shape), dense(model)
    with torchs_count() as forward:
        loss = model(inputs).sum()
    assert forward == [2 * geometry.forward(masks)]
    with torchs_count() as backward:
        loss.backward()
    excess = 2 * overcounted(model, geometry)
    assert (excess > 0) == (name in ("ds-cnn", "mobilenetv2-w0.25"))
    ours = 2 * (geometry.backward_inputs(masks) + geometry.backward_weights(masks))
    assert backward == [ours + excess]
    assert 2 * geometry.train_step(masks) == forward[0] + ours


def test_resnet18_costs_what_is_published() -> None:
    """0.56 G multiply-accumulates for an image of CIFAR."""
    model = build_model("resnet18", (3, 32, 32), 10)
    found = positions(model, (3, 32, 32)).forward(dense(model))
    assert found / 2e9 == pytest.approx(0.56, abs=0.005)


# Sparse models, one multiplication at a time


def small_net() -> nn.Sequential:
    """Stride, groups, a kernel and padding that are not square, and no norm in between."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2, bias=False),
        nn.Conv2d(4, 4, (3, 2), stride=(1, 2), padding=(0, 1), groups=4, bias=False),
        nn.Conv2d(4, 3, 1, bias=False),
        nn.Flatten(),
        nn.Linear(3 * 2 * 3, 5, bias=False),
    )


def run_by_layers(model: nn.Sequential, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Run one example; return inputs and outputs of the layers, which keep their gradients."""
    found = []
    for layer in model:
        x = layer(given := x)
        for tensor in (given, x):
            if tensor.requires_grad:
                tensor.retain_grad()
        if not isinstance(layer, nn.Flatten):
            found.append((given, x))
    return found


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 99))
def test_a_sparse_model_costs_what_counting_one_by_one_gives(density: float, seed: int) -> None:
    rng, model = np.random.default_rng(seed), small_net().double()
    masks = {n: rng.random(m.shape) < density for n, m in dense(model).items()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(torch.from_numpy(masks[name]))
    runs = run_by_layers(model, torch.from_numpy(rng.standard_normal((1, 2, 7, 9))))
    runs[-1][1].square().sum().backward()
    layers = [layer for layer in model if not isinstance(layer, nn.Flatten)]
    products = np.zeros(3, int)
    for (given_, out), layer, mask in zip(runs, layers, masks.values(), strict=True):
        assert isinstance(layer, nn.Conv2d | nn.Linear) and out.grad is not None
        work = work_of(layer, given_, out, mask)
        assert_computed(work, layer, given_, out, mask)
        products += work.products
        products[1] -= 0 if given_.requires_grad else work.products[1]
    geometry = positions(model, (2, 7, 9))
    parts = (geometry.forward, geometry.backward_inputs, geometry.backward_weights)
    assert [part(masks) for part in parts] == (2 * products).tolist()
    assert geometry.train_step(masks) == 2 * products.sum()


def work_of(
    layer: nn.Conv2d | nn.Linear, given: Tensor, out: Tensor, mask: naive.Array
) -> naive.Work:
    assert out.grad is not None
    x, weight = given.detach().numpy()[0], layer.weight.detach().numpy()
    gradient = out.grad.numpy()[0]
    if isinstance(layer, nn.Conv2d):
        stride, padding = layer.stride, layer.padding
        assert len(stride) == 2 and not isinstance(padding, str) and len(padding) == 2
        return naive.convolve(x, weight, mask, gradient, stride, padding, layer.groups)
    x, weight, mask, gradient = (a[..., None, None] for a in (x, weight, mask, gradient))
    return naive.convolve(x, weight, mask, gradient, (1, 1), (0, 0), 1)


def assert_computed(
    work: naive.Work, layer: nn.Conv2d | nn.Linear, given: Tensor, out: Tensor, mask: naive.Array
) -> None:
    """Check that the multiplications counted are those that torch's results consist of."""
    assert layer.weight.grad is not None
    expected = [
        (work.outputs, out.detach()[0].numpy()),
        (work.to_weight, layer.weight.grad.numpy() * mask),
    ]
    if given.grad is not None:
        expected.append((work.to_inputs, given.grad[0].numpy()))
    for found, reference in expected:
        np.testing.assert_allclose(found.reshape(reference.shape), reference, atol=1e-9)


def test_gradients_of_all_weights_are_dense_and_all_else_is_sparse() -> None:
    model = small_net()
    geometry, everything = positions(model, (2, 7, 9)), dense(model)
    masks = {n: np.arange(m.size).reshape(m.shape) % 5 == 0 for n, m in everything.items()}
    one, *others = masks
    below = geometry.forward(masks) + geometry.backward_inputs(masks)
    whole = geometry.backward_weights(everything)
    assert geometry.gradients(masks, masks) == below + whole
    assert geometry.gradients(masks, []) == geometry.train_step(masks)
    mixed = {one: everything[one]} | {name: masks[name] for name in others}
    assert geometry.gradients(masks, [one]) == below + geometry.backward_weights(mixed)
    assert geometry.train_step(masks) < geometry.gradients(masks, [one]) < below + whole


# Where weights are used


class Looped(nn.Module):
    """Calls one layer three times, another by keyword, and a third over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(2, 2, 3, padding=1)
        self.narrow = nn.Conv2d(2, 4, 3, stride=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.body(x)
        sequence = self.narrow(input=x).flatten(2).transpose(1, 2)
        out: Tensor = self.head(sequence).mean(1)
        return out


def test_a_layer_called_thrice_counts_thrice_and_a_sequence_by_its_length() -> None:
    found = positions(Looped(), (2, 5, 7))
    assert found.positions == {"body.weight": 3 * 35, "narrow.weight": 6, "head.weight": 6}
    assert found.inner == {"body.weight": 2 * 35, "narrow.weight": 6, "head.weight": 6}


def test_such_a_model_costs_what_torch_counts() -> None:
    model = Looped()
    geometry, masks = positions(model, (2, 5, 7)), dense(model)
    with torchs_count() as total:
        model(torch.zeros(1, 2, 5, 7)).sum().backward()
    assert total == [geometry.train_step(masks)]


def test_a_transposed_convolution_costs_what_torch_counts() -> None:
    """Its weights meet its inputs, however far those are apart in what it gives."""
    layers = nn.ConvTranspose2d(2, 6, 3, stride=2), nn.ConvTranspose2d(6, 4, 4, 3, 1)
    model = nn.Sequential(*layers)
    with torchs_count() as found:
        model(torch.zeros(1, 2, 5, 4)).sum().backward()
    assert found == [positions(model, (2, 5, 4)).train_step(dense(model))]


def test_layers_that_share_a_weight_count_under_its_one_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert positions(model, (4,)) == WeightUses({"0.weight": 2}, {"0.weight": 1})


def test_counting_leaves_the_model_as_it_was() -> None:
    model = build_model("resnet8", SHAPE, 4).train()
    model.get_submodule("0").eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():  # the caller may not want gradients
        found = positions(model, SHAPE)
    assert found.inner["7.weight"] == 1
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


class Bypassed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.read = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.used(x), self.read.weight)


def test_a_weight_that_no_call_uses_is_named() -> None:
    with pytest.raises(TaskError, match=r"^read\.weight of Bypassed: no call .* as a module"):
        positions(Bypassed(), (4,))


# The counting engine

Call = Callable[[Engine, ModelState, Examples], object]

CALLS: dict[str, Call] = {
    "train": lambda engine, state, data: engine.train(state, data, HOW, 1),
    "norm_moments": lambda engine, state, data: engine.norm_moments(state, data),
    "loss": lambda engine, state, data: engine.loss(state, data),
    "outputs": lambda engine, state, data: engine.outputs(state, data.inputs),
    "gradients": lambda engine, state, data: engine.gradients(state, data),
    "top_gradients": lambda engine, state, data: engine.top_gradients(
        state, data, dict.fromkeys(state.masks, 5)
    ),
}


@dataclass(frozen=True)
class Both:
    torch: TorchEngine
    sparse: SparseEngine
    geometry: WeightUses
    dense: ModelState


@pytest.fixture(scope="module")
def both() -> Both:
    reference, engine = engines(zoo("resnet8", SHAPE), SHAPE)
    state = reference.initial_state()
    return Both(reference, engine, positions(reference.module(state), SHAPE), state)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_on_a_dense_model_costs_what_torch_counts(name: str, both: Both) -> None:
    engine = CountingEngine(both.torch, both.geometry)
    with torchs_count() as total:
        CALLS[name](engine, both.dense, examples(19, SHAPE))  # three batches
    assert total == [engine.flops] and engine.flops > 0


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_passed_on_and_add_up(name: str, both: Both) -> None:
    engine, data = CountingEngine(both.sparse, both.geometry), examples(19, SHAPE)
    state = pruned(both.dense, 0.1)
    flops = []
    for _ in range(2):
        found = CALLS[name](engine, state, data)
        flops.append(engine.flops)
    assert pickle.dumps(found) == pickle.dumps(CALLS[name](both.sparse, state, data))
    assert flops[1] == 2 * flops[0]
    # At a tenth of the weights all but gradients of pruned ones cost about a tenth.
    whole = CountingEngine(both.sparse, both.geometry)
    CALLS[name](whole, both.dense, data)
    share = {"gradients": 0.4, "top_gradients": 0.4}.get(name, 0.1)
    assert flops[0] / whole.flops == pytest.approx(share, rel=0.15)


def test_largest_gradients_of_one_layer_cost_a_step_and_its_pruned_weights(both: Both) -> None:
    engine, state = CountingEngine(both.sparse, both.geometry), pruned(both.dense, 0.1)
    data, name = examples(9, SHAPE), "3.first.0.weight"
    engine.train(state, data, replace(HOW, epochs=1), 0)
    step, engine.flops = engine.flops, 0
    engine.top_gradients(state, data, {name: 4})
    lacking = np.sum(~state.masks[name])
    assert engine.flops - step == 9 * 2 * lacking * both.geometry.positions[name]


def test_the_rest_of_an_engine_is_the_inner_ones_and_free(both: Both) -> None:
    engine = CountingEngine(both.sparse, both.geometry)
    assert engine.initial_state() is both.dense and engine.layout is both.sparse.layout
    with pytest.raises(EngineError, match="absent cannot be pruned"):
        engine.top_gradients(both.dense, examples(9, SHAPE), {"absent": 1})
    assert engine.flops == 0


# Memory


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
def test_the_memory_model_counts_values_and_indices(density: float, both: Both) -> None:
    state = pruned(both.dense, density)
    state = state.with_masks({**state.masks, "7.weight": np.ones((5, 64), np.bool_)})
    expected = 77
    for name, weight in {**state.weights, **state.stats}.items():
        mask = state.masks.get(name, np.ones(weight.shape, np.bool_))
        for kept in mask.reshape(-1):
            expected += 4 * int(kept)
            expected += 4 * int(kept and not mask.all())
    values = unpruned_values(both.torch.layout)
    assert memory_model(state.masks, values, score_bytes=77) == expected


def test_a_dense_models_memory_is_that_of_its_arrays(both: Both) -> None:
    arrays = [*both.dense.weights.values(), *both.dense.stats.values()]
    found = memory_model(both.dense.masks, unpruned_values(both.torch.layout), 0)
    assert found == sum(array.nbytes for array in arrays)
