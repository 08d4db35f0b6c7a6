from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fedkit.engine.torch import TorchEngine
from fedkit.nn.norm import L1BatchNorm2d, L1LayerNorm, with_l1_norms
from fedkit.tasks.task import cross_entropy


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_one_channel_by_hand() -> None:
    norm = L1BatchNorm2d(1, eps=0.5).double()
    nn.init.constant_(norm.weight, 3)
    nn.init.constant_(norm.bias, 7)
    found = norm(torch.tensor([1.0, 2, 3, 6], dtype=torch.float64).reshape(2, 1, 1, 2))
    sigma = math.sqrt(math.pi / 2) * (2 + 1 + 0 + 3) / 4 + 0.5
    expected = [7 + 3 * d / sigma for d in (-2, -1, 0, 3)]
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-14)


def test_gradients() -> None:
    norm = L1BatchNorm2d(3).double()
    nn.init.normal_(norm.weight)
    inputs = images(3, 3, 2, 2).requires_grad_()
    parameters = (norm.weight.detach().requires_grad_(), norm.bias.detach().requires_grad_())

    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, x)

    assert torch.autograd.gradcheck(forward, (inputs, *parameters))


def test_the_gradient_is_the_derived_one() -> None:
    norm = L1BatchNorm2d(2, eps=0.1, affine=False).double()
    x, g = images(4, 2, 3, 3).requires_grad_(), images(4, 2, 3, 3)
    xhat = norm(x)
    (found,) = torch.autograd.grad(xhat, x, g)
    k, xhat = math.sqrt(math.pi / 2), xhat.detach()

    def mean(values: torch.Tensor) -> torch.Tensor:
        return values.mean((0, 2, 3), keepdim=True)

    d = (x - mean(x)).detach()
    sigma, s = k * mean(d.abs()) + 0.1, d.sign()
    expected = (g - mean(g) - k * (s - mean(s)) * mean(g * xhat)) / sigma
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_on_normal_inputs_it_is_close_to_batch_norm_in_both_modes() -> None:
    l1, l2 = L1BatchNorm2d(4, momentum=None).double(), nn.BatchNorm2d(4, momentum=None).double()
    x = 3 * images(64, 4, 8, 8) + 1
    assert torch.allclose(l1(x), l2(x), atol=0.1)
    assert torch.allclose(l1.eval()(x), l2.eval()(x), atol=0.1)


@pytest.mark.parametrize("momentum", [None, 0.25])
def test_running_statistics_average_mean_and_squared_deviation(momentum: float | None) -> None:
    norm = L1BatchNorm2d(2, momentum=momentum).double()
    batches = [images(3, 2, 4, 4) for _ in range(3)]
    mean, var = torch.zeros(2).double(), torch.ones(2).double()
    for number, batch in enumerate(batches, start=1):
        norm(batch)
        factor = 1 / number if momentum is None else momentum
        centre = batch.mean((0, 2, 3))
        deviation = (batch - centre[:, None, None]).abs().mean((0, 2, 3))
        mean = (1 - factor) * mean + factor * centre
        var = (1 - factor) * var + factor * math.pi / 2 * deviation**2
    assert norm.running_mean is not None and norm.running_var is not None
    assert torch.allclose(norm.running_mean, mean, rtol=1e-12)
    assert torch.allclose(norm.running_var, var, rtol=1e-12)
    assert norm.num_batches_tracked == 3


def test_evaluation_repeats_training_on_the_same_batch_and_changes_nothing() -> None:
    norm = L1BatchNorm2d(2, momentum=None).double()
    x = images(3, 2, 4, 4)
    expected = norm(x)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    assert torch.allclose(norm.eval()(x), expected, rtol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_without_running_statistics_evaluation_uses_the_batch() -> None:
    norm = L1BatchNorm2d(2, track_running_stats=False).double()
    x = images(3, 2, 4, 4)
    assert torch.equal(norm(x), norm.eval()(x))


def test_only_images_are_taken() -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        L1BatchNorm2d(2)(torch.zeros(3, 2))


def test_one_row_by_hand() -> None:
    norm = L1LayerNorm(4, eps=0.5).double()
    nn.init.constant_(norm.weight, 3)
    nn.init.constant_(norm.bias, 7)
    sigma = math.sqrt(math.pi / 2) * (2 + 1 + 0 + 3) / 4 + 0.5
    found = norm(torch.tensor([[1.0, 2, 3, 6], [5, 5, 5, 5]], dtype=torch.float64))
    assert found[0].tolist() == pytest.approx(
        [7 + 3 * d / sigma for d in (-2, -1, 0, 3)], rel=1e-14
    )
    assert found[1].tolist() == [7] * 4


def test_gradients_over_two_axes() -> None:
    norm = L1LayerNorm((2, 3)).double()
    inputs = images(4, 2, 3).requires_grad_()
    parameters = (images(2, 3).requires_grad_(), images(2, 3).requires_grad_())

    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, x)

    assert torch.autograd.gradcheck(forward, (inputs, *parameters))


def test_on_normal_inputs_it_is_close_to_layer_norm() -> None:
    x = 3 * images(8, 4000) + 1
    l1, l2 = L1LayerNorm(4000, bias=False).double(), nn.LayerNorm(4000).double()
    assert torch.allclose(l1(x), l2(x), atol=0.1)
    assert torch.equal(l1(x), L1LayerNorm(4000, elementwise_affine=False)(x))


@pytest.mark.parametrize("shape", [(3, 4), (2,), ()])
def test_rows_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected input \[..., 2, 3\]"):
        L1LayerNorm((2, 3))(torch.zeros(shape))


def test_norms_become_l1_ones_with_the_same_parameters() -> None:
    layers = [nn.LayerNorm((2, 3, 3), eps=0.5), nn.LayerNorm(3, bias=False)]
    layers.append(nn.LayerNorm(3, elementwise_affine=False))
    model = nn.Sequential(nn.BatchNorm2d(2, eps=0.1), nn.Sequential(*layers), nn.Linear(3, 3))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    found = with_l1_norms(model)
    assert isinstance(found, nn.Sequential) and isinstance(found[1], nn.Sequential)
    expected = [L1BatchNorm2d, *[L1LayerNorm] * 3, nn.Linear]
    assert [type(layer) for layer in (found[0], *found[1], found[2])] == expected
    assert [norm.eps for norm in (found[0], *found[1])] == [0.1, 0.5, 1e-5, 1e-5]
    assert list(found.state_dict()) == list(model.state_dict())
    for name, value in found.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert type(layers[0]) is nn.LayerNorm
    x = 2 * torch.randn(4, 2, 3, 3) + 1
    assert not torch.allclose(found(x), model(x))


def test_the_torch_engine_finds_its_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), L1BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    layout = TorchEngine(model, cross_entropy).layout
    assert list(layout.stats) == ["1.running_mean", "1.running_var"]
