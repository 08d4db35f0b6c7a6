from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedkit.core.errors import FleetError, TaskError
from fedkit.engine.base import LocalTraining
from fedkit.engine.torch import TorchEngine
from fedkit.nn.zoo import build_model
from fedkit.sparse.state import ModelState
from fedkit.stats.moments import Moments
from fedkit.tasks.task import Examples, cross_entropy
from tests.naive.sparse import dense_topk

HOW = LocalTraining(epochs=2, batch_size=8, lr=0.1, momentum=0.9, weight_decay=1e-2)


def examples(count: int = 25) -> Examples:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((count, 1, 8, 8)).astype(np.float32)
    return Examples(inputs, rng.integers(0, 4, count))


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    torch.manual_seed(0)
    return TorchEngine(build_model("resnet8", (1, 8, 8), 4), cross_entropy)


@pytest.fixture(scope="module")
def sparse(engine: TorchEngine) -> ModelState:
    rng = np.random.default_rng(1)
    shapes = engine.layout.prunable_shapes
    return engine.initial_state().with_masks({n: rng.random(s) < 0.3 for n, s in shapes.items()})


def test_layout_names_convolutions_and_the_linear_layer(engine: TorchEngine) -> None:
    assert len(engine.layout.prunable) == 10  # 7 3x3, 2 shortcuts, 1 linear
    assert all(len(engine.layout.weights[name]) in (2, 4) for name in engine.layout.prunable)


def test_pruned_weights_stay_exactly_zero_and_kept_ones_move(
    engine: TorchEngine, sparse: ModelState
) -> None:
    trained, loss = engine.train(sparse, examples(), HOW, seed=1)
    assert np.isfinite(loss)
    for name, mask in sparse.masks.items():
        assert (trained.weights[name][~mask] == 0).all()
        assert (trained.weights[name][mask] != sparse.weights[name][mask]).mean() > 0.9


def test_training_is_a_pure_function_on_any_number_of_threads(
    engine: TorchEngine, sparse: ModelState
) -> None:
    first, _ = engine.train(sparse, examples(), HOW, seed=1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        second, _ = engine.train(sparse, examples(), HOW, seed=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    other, _ = engine.train(sparse, examples(), HOW, seed=2)
    assert all(np.array_equal(first.weights[n], second.weights[n]) for n in first.weights)
    assert any((first.weights[n] != other.weights[n]).any() for n in first.weights)


def test_the_initial_state_is_the_same_after_training(
    engine: TorchEngine, sparse: ModelState
) -> None:
    before = {name: weight.copy() for name, weight in engine.initial_state().weights.items()}
    engine.train(sparse, examples(), HOW, seed=1)
    after = engine.initial_state().weights
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_masked_sgd_equals_training_a_model_whose_pruned_weights_do_not_exist() -> None:
    """One linear layer, by hand: momentum and decay act on kept weights only."""
    torch.manual_seed(0)
    engine = TorchEngine(torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False)), cross_entropy)
    mask = np.array([[True, False, True], [False, True, True]])
    state = engine.initial_state().with_masks({"0.weight": mask})
    data = Examples(np.eye(3, dtype=np.float32), np.array([0, 1, 0]))
    how = LocalTraining(epochs=3, batch_size=3, lr=0.5, momentum=0.9, weight_decay=0.1)
    trained, _ = engine.train(state, data, how, seed=0)

    weight, velocity = state.weights["0.weight"].astype(np.float64), np.zeros((2, 3))
    for _ in range(3):
        logits = data.inputs @ weight.T
        probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        gradient = (probability - np.eye(2)[data.targets]).T @ data.inputs / 3
        velocity = 0.9 * velocity + (gradient * mask + 0.1 * weight)
        weight -= 0.5 * velocity
    np.testing.assert_allclose(trained.weights["0.weight"], weight, rtol=1e-5, atol=1e-6)


def test_top_gradients_are_those_of_the_whole_layer(
    engine: TorchEngine, sparse: ModelState
) -> None:
    data, name = examples(), engine.layout.prunable[3]
    found = engine.top_gradients(sparse, data, {name: 20})[name]
    model = engine.module(sparse).train()
    loss = cross_entropy(model(torch.from_numpy(data.inputs)), torch.from_numpy(data.targets))
    (gradient,) = torch.autograd.grad(loss, [dict(model.named_parameters())[name]])
    flat = np.where(sparse.masks[name], np.float32(0), gradient.numpy()).reshape(-1)
    assert found.indices.tolist() == dense_topk(flat, 20)
    assert np.array_equal(found.values, flat[found.indices])
    assert not sparse.masks[name].reshape(-1)[found.indices].any()


def test_gradients_of_kept_and_pruned_weights_by_hand() -> None:
    torch.manual_seed(0)
    engine = TorchEngine(torch.nn.Sequential(torch.nn.Linear(3, 2)), cross_entropy)
    mask = np.array([[True, False, True], [False, False, False]])
    state = engine.initial_state().with_masks({"0.weight": mask})
    data = Examples(examples(5).inputs.reshape(5, -1)[:, :3].copy(), np.array([0, 1, 0, 1, 1]))
    logits = data.inputs @ state.weights["0.weight"].T + state.weights["0.bias"]
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = (probability - np.eye(2)[data.targets]).T @ data.inputs / 5
    found = engine.gradients(state, data)
    assert list(found) == ["0.weight"]  # the bias is never pruned
    np.testing.assert_allclose(found["0.weight"], expected, rtol=1e-5, atol=1e-7)


def test_the_largest_gradients_are_those_of_all_gradients(
    engine: TorchEngine, sparse: ModelState
) -> None:
    whole = engine.gradients(sparse, examples())
    tops = engine.top_gradients(sparse, examples(), dict.fromkeys(engine.layout.prunable, 7))
    assert list(whole) == list(tops) == list(engine.layout.prunable)
    for name, top in tops.items():
        assert whole[name].shape == engine.layout.weights[name]
        assert whole[name].dtype == np.float32 and whole[name].flags.c_contiguous
        assert whole[name][sparse.masks[name]].any()
        flat = np.where(sparse.masks[name], np.float32(0), whole[name]).reshape(-1)
        assert top.indices.tolist() == dense_topk(flat, 7)
        assert np.array_equal(top.values, flat[top.indices])


def test_statistics_are_the_mean_over_the_last_epochs_batches(
    engine: TorchEngine, sparse: ModelState
) -> None:
    still = LocalTraining(epochs=3, batch_size=8, lr=1e-12, momentum=0.0, weight_decay=0.0)
    data = examples(16)
    trained, _ = engine.train(sparse, data, still, seed=0)
    rng = np.random.default_rng(0)
    order = [rng.permutation(16) for _ in range(3)][-1]
    parts = [engine.norm_moments(sparse, data.take(part))["0.1"] for part in (order[:8], order[8:])]
    mean = np.mean([part.mean for part in parts], axis=0)
    # torch stores the unbiased variance of each batch.
    variance = np.mean([part.m2 / (part.n - 1) for part in parts], axis=0)
    np.testing.assert_allclose(trained.stats["0.1.running_mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(trained.stats["0.1.running_var"], variance, rtol=1e-4)


def test_norm_moments_are_those_of_the_layers_input(
    engine: TorchEngine, sparse: ModelState
) -> None:
    data = examples(9)
    moments = engine.norm_moments(sparse, data)
    stem = torch.nn.functional.conv2d(
        torch.from_numpy(data.inputs), torch.from_numpy(sparse.weights["0.0.weight"]), padding=1
    )
    expected = Moments.of(stem.permute(0, 2, 3, 1).reshape(-1, 16).numpy())
    assert moments["0.1"].n == expected.n == 9 * 64
    np.testing.assert_allclose(moments["0.1"].mean, expected.mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(moments["0.1"].variance, expected.variance, rtol=1e-5)
    assert len(moments) == len(engine.layout.stats) // 2


def test_moments_and_losses_change_nothing(engine: TorchEngine, sparse: ModelState) -> None:
    outputs = engine.outputs(sparse, examples().inputs)
    engine.norm_moments(sparse, examples())
    engine.loss(sparse, examples())
    engine.top_gradients(sparse, examples(), {engine.layout.prunable[0]: 3})
    engine.gradients(sparse, examples())
    assert np.array_equal(engine.outputs(sparse, examples().inputs), outputs)


def test_loss_is_the_mean_over_all_examples(engine: TorchEngine, sparse: ModelState) -> None:
    data = examples(300)  # more than one evaluation batch
    logits = torch.from_numpy(engine.outputs(sparse, data.inputs))
    expected = cross_entropy(logits, torch.from_numpy(data.targets)).item()
    assert engine.loss(sparse, data) == pytest.approx(expected, rel=1e-5)


def test_a_diverging_loss_is_named(engine: TorchEngine, sparse: ModelState) -> None:
    how = LocalTraining(epochs=5, batch_size=8, lr=1e20, momentum=0.0, weight_decay=0.0)
    with pytest.raises(FleetError, match="lower lr"):
        engine.train(sparse, examples(), how, seed=0)
    huge = {name: np.full_like(weight, 1e30) for name, weight in sparse.weights.items()}
    with pytest.raises(FleetError, match="lower lr"):
        engine.gradients(replace(sparse, weights=huge), examples())


def test_a_model_without_prunable_layers_is_refused() -> None:
    with pytest.raises(TaskError, match="nothing to prune"):
        TorchEngine(torch.nn.Sequential(torch.nn.ReLU()), cross_entropy)
