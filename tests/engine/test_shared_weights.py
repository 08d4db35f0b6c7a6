"""Weights that a model uses several times: layers over steps, layers that are called again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedkit.core.errors import EngineError, PlanError
from fedkit.engine.base import GradientSums, LocalTraining
from fedkit.engine.flops import positions
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.plan import load_plan, save_plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.nn.layers import prunable_weights
from fedkit.nn.zoo import build_model
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples, cross_entropy

HOW = LocalTraining(epochs=2, batch_size=8, lr=0.1, momentum=0.9, weight_decay=0.0)
SHAPE, CLASSES = (3, 6), 4


def examples(count: int = 24) -> Examples:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((count, *SHAPE)).astype(np.float32)
    return Examples(inputs, rng.integers(0, CLASSES, count))


class Again(nn.Module):
    """One block that is called over and over, and norms of each call."""

    def __init__(self, calls: int = 3) -> None:
        super().__init__()
        self.block, self.logits = nn.Linear(6, 6), nn.Linear(18, CLASSES)
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(calls))

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = x + torch.relu(self.block(norm(x)))
        out: Tensor = self.logits(x.flatten(1))
        return out


class Tied(nn.Module):
    """Logits by the table that tokens are looked up in."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.mixed, self.logits = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9)
        self.logits.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.logits(self.mixed(self.tokens(x))).transpose(1, 2)
        return out


def gru() -> nn.Module:
    return build_model("har-gru", SHAPE, CLASSES)


def sparse(engine: TorchEngine, density: float = 0.3) -> ModelState:
    rng, shapes = np.random.default_rng(1), engine.layout.prunable_shapes
    masks = {name: rng.random(shape) < density for name, shape in shapes.items()}
    return engine.initial_state().with_masks(masks)


@pytest.mark.parametrize("make", [gru, Again])
def test_pruned_weights_stay_zero_and_kept_ones_move(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    engine = TorchEngine(make(), cross_entropy)
    state = sparse(engine)
    trained, loss = engine.train(state, examples(), HOW, seed=1)
    assert np.isfinite(loss) and engine.loss(trained, examples()) < engine.loss(state, examples())
    for name, mask in state.masks.items():
        assert (trained.weights[name][~mask] == 0).all()
        assert (trained.weights[name][mask] != state.weights[name][mask]).mean() > 0.9


def test_both_weights_of_each_layer_are_pruned() -> None:
    model = nn.Sequential(nn.LSTM(3, 4, 2, bidirectional=True), nn.Linear(8, 2))
    ends = ("l0", "l0_reverse", "l1", "l1_reverse")
    gates = [f"0.weight_{of}_{end}" for end in ends for of in ("ih", "hh")]
    assert prunable_weights(model) == (*gates, "1.weight")


def test_gradients_of_all_calls_are_summed() -> None:
    torch.manual_seed(0)
    engine = TorchEngine(Again(3), cross_entropy)
    state, data = sparse(engine, 1.0), examples(8)
    found = engine.gradients(state, data)["block.weight"]
    model = engine.module(state).train()
    blocks = [nn.Linear(6, 6) for _ in range(3)]  # one for each call
    for each in blocks:
        each.load_state_dict(model.get_submodule("block").state_dict())
    x = torch.from_numpy(data.inputs)
    norms = model.get_submodule("norms")
    assert isinstance(norms, nn.ModuleList)
    for block, norm in zip(blocks, norms, strict=True):
        x = x + torch.relu(block(norm(x)))
    logits = model.get_submodule("logits")(x.flatten(1))
    nn.functional.cross_entropy(logits, torch.from_numpy(data.targets)).backward()
    wanted = sum(np.asarray(each.weight.grad) for each in blocks)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_flops_of_steps_are_those_of_each_step() -> None:
    torch.manual_seed(0)
    model = gru()
    engine = TorchEngine(model, cross_entropy)
    masks = sparse(engine).masks
    found = positions(model, SHAPE)
    steps, kept = SHAPE[1], {name: int(mask.sum()) for name, mask in masks.items()}
    of_input, of_state = kept["steps.weight_ih_l0"], kept["steps.weight_hh_l0"]
    assert found.forward(masks) == 2 * (steps * (of_input + of_state) + kept["logits.weight"])
    # What the input alone is multiplied by passes nothing on.
    assert found.backward_inputs(masks) == 2 * (steps * of_state + kept["logits.weight"])


def test_flops_of_a_model_of_tokens() -> None:
    model = build_model("char-lstm", (6,), 11)
    masks = {n: np.ones(model.get_parameter(n).shape, np.bool_) for n in prunable_weights(model)}
    found = positions(model, (6,), tokens=True)
    assert found.forward(masks) == 2 * 6 * sum(mask.size for mask in masks.values())
    assert found.backward_inputs(masks) == found.forward(masks)  # tokens have vectors that learn


def test_flops_of_calls_are_those_of_each_call() -> None:
    model = Again(3)
    masks = {n: np.ones(model.get_parameter(n).shape, np.bool_) for n in prunable_weights(model)}
    assert positions(model, SHAPE).forward(masks) == 2 * (3 * 3 * 36 + 18 * CLASSES)


def test_a_table_that_makes_logits_too_is_one_weight_and_not_pruned() -> None:
    torch.manual_seed(0)
    tokens: Any = np.random.default_rng(0).integers(9, size=(16, 5))
    engine = TorchEngine(Tied(), cross_entropy)
    assert engine.layout.prunable == ("mixed.weight",)
    assert "logits.weight" not in engine.layout.weights
    trained, _ = engine.train(engine.initial_state(), Examples(tokens, tokens), HOW, seed=1)
    module = engine.module(trained)
    assert module.get_parameter("logits.weight") is module.get_parameter("tokens.weight")


class Otherwise(nn.Module):
    """A layer that is called with and without its offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(self.block(x), self.block.weight)
        return y.flatten(1)


REFUSED = {
    "calls that are not alike": (Otherwise, SHAPE, False, "block.weight: Parameter .2 ops use it"),
    "two modules": (Tied, (5,), True, "tokens.weight: Parameter .shared by 2 modules"),
    "steps": (gru, SHAPE, False, "steps.*a layer of GRU; a plan has none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_plans_refuse_it_by_name(name: str) -> None:
    make, shape, tokens, reason = REFUSED[name]
    with pytest.raises(PlanError, match=reason):
        capture(make(), shape, tokens=tokens)


# Without torch


def both() -> tuple[TorchEngine, SparseEngine]:
    torch.manual_seed(0)
    reference = TorchEngine(Again(3), cross_entropy)
    initial = reference.initial_state()
    return reference, SparseEngine(capture(reference.module(initial), SHAPE), initial)


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_the_sparse_engine_trains_as_torch_does(density: float) -> None:
    reference, engine = both()
    state = sparse(reference, density)
    one, other = (each.train(state, examples(), HOW, seed=1)[0] for each in (reference, engine))
    for name, weight in one.weights.items():
        np.testing.assert_allclose(other.weights[name], weight, atol=2e-5)
    moved = np.abs(one.weights["block.weight"] - state.weights["block.weight"]).max()
    assert moved > 0.01


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_gradients_of_pruned_weights_are_torchs(density: float) -> None:
    reference, engine = both()
    state, data = sparse(reference, density), examples(8)
    one, other = (each.gradients(state, data) for each in (reference, engine))
    for name, gradient in one.items():
        np.testing.assert_allclose(other[name], gradient, atol=1e-6)
    amounts = {"block.weight": 7, "logits.weight": 5}
    found = [each.top_gradients(state, data, amounts) for each in (reference, engine)]
    for name in amounts:
        one_place, other_place = (each[name].indices for each in found)
        np.testing.assert_array_equal(one_place, other_place)
    sums: tuple[GradientSums, GradientSums] = {}, {}
    reference.train(state, data, HOW, seed=1, gradient_sums=sums[0])
    engine.train(state, data, HOW, seed=1, gradient_sums=sums[1])
    np.testing.assert_allclose(sums[0]["block.weight"], sums[1]["block.weight"], atol=1e-4)


def test_threads_give_the_same_bits() -> None:
    reference, engine = both()
    state = sparse(reference)
    others = SparseEngine(engine.plan, threads=3)
    one, other = (each.train(state, examples(), HOW, seed=1)[0] for each in (engine, others))
    for name, weight in one.weights.items():
        np.testing.assert_array_equal(other.weights[name], weight)


def test_a_plan_of_it_comes_back_from_its_file(tmp_path: Path) -> None:
    _, engine = both()
    save_plan(engine.plan, tmp_path / "plan")
    assert load_plan(tmp_path / "plan") == engine.plan


def test_integers_refuse_it_by_name() -> None:
    _, engine = both()
    with pytest.raises(EngineError, match=r"uses block\.weight \(3 times\), block\.bias"):
        IntegerEngine(engine.plan)
