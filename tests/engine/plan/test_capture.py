from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkit.core.errors import PlanError
from fedkit.engine.ops.add import Add
from fedkit.engine.ops.copy import Copy
from fedkit.engine.ops.pool import Pool
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.plan import load_plan, save_plan
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.nn.norm import L1BatchNorm2d, L1LayerNorm
from fedkit.nn.zoo import MODELS, build_model
from fedkit.tasks.task import cross_entropy
from tests.engine.sparse.cases import layered, mobile
from tests.naive import plan as naive
from tests.sets import slow_but

TOLERANCE = 1e-9
ZERO = 1e-12
"""Where a gradient is 0 by calculus, like that of a bias before a norm, both only round."""


class Net(nn.Module):
    """Layers by name, and a forward that is written as a function of them and x."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def conv(cin: int, cout: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 3, padding=1, **options)


def head(features: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 5))


# Models


def pre_activation() -> nn.Module:
    def block(net: Any, x: Tensor) -> Tensor:
        before = F.relu(net.first_norm(x))
        return net.second(F.relu(net.second_norm(net.first(before)))) + x

    layers = {"first": conv(4, 4), "second": conv(4, 4)}
    norms = {"first_norm": nn.BatchNorm2d(4), "second_norm": nn.BatchNorm2d(4)}
    return nn.Sequential(conv(3, 4), Net(block, **layers, **norms), nn.BatchNorm2d(4), head(4))


def dense_block() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = torch.cat([x, net.first(F.relu(net.first_norm(x)))], dim=1)
        z = torch.cat((y, net.second(F.relu(net.second_norm(y))), x), 1)
        return net.head(F.relu(net.last_norm(z)))

    return Net(
        forward,
        stem=conv(3, 4),
        first_norm=nn.BatchNorm2d(4),
        first=conv(4, 2),
        second_norm=nn.BatchNorm2d(6),
        second=conv(6, 2),
        last_norm=nn.BatchNorm2d(12),
        head=head(12),
    )


def lenet() -> nn.Module:
    features = [nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU()]
    classifier = [nn.Linear(8 * 16, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 5)]
    return nn.Sequential(*features, nn.Flatten(), *classifier)


def pools() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.conv(x)
        x = F.avg_pool2d(x, 3, stride=2, padding=1) + F.max_pool2d(x, (3, 3), 2, padding=(1, 1))
        x = net.max_pool(net.avg_pool(x))
        ends = [x.mean((2, 3)), x.mean(dim=[-1, -2], keepdim=True).flatten(1)]
        ends += [F.adaptive_max_pool2d(x, 1).view(x.size(0), -1), torch.mean(x, (2, 3))]
        ends += [F.adaptive_avg_pool2d(x, (1, 1)).reshape(x.shape[0], -1)]
        ends += [torch.flatten(net.global_max(x), 1), torch.flatten(F.avg_pool2d(x, 2, 1), 1)]
        ends += [F.max_pool2d(x, 2).flatten(1), F.avg_pool2d(x, (3, 1)).flatten(1)]
        return net.fc(torch.cat(ends, -1))

    return Net(
        forward,
        conv=nn.Conv2d(3, 4, (3, 1), padding=(2, 0), stride=(1, 2), dilation=(2, 1)),
        avg_pool=nn.AvgPool2d((2, 1), stride=1, padding=(1, 0)),
        max_pool=nn.MaxPool2d(3, stride=(2, 1), padding=1),
        global_max=nn.AdaptiveMaxPool2d(1),
        fc=nn.Linear(104, 5),
    )


def functional() -> Net:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.first(torch.relu(F.relu6(x)))
        x += net.second(net.drop(x).relu())
        x = torch.add(x, F.dropout(x, 0.0, net.training)).add(x)
        x = net.norm(torch.relu_(net.third(x)))
        x = x.contiguous().view(-1, 4 * 15 * 15)
        return F.relu_(net.fc(x))

    return Net(
        forward,
        first=nn.Conv2d(3, 4, 3, padding="same", groups=1),
        second=conv(4, 4, groups=4, bias=False),
        third=nn.Conv2d(4, 4, 2, padding="valid"),
        norm=nn.BatchNorm2d(4, affine=False),
        drop=nn.Dropout(0.0),
        fc=nn.Linear(900, 5),
    )


def used_twice() -> nn.Module:
    """Each way in which a value that must stay raw for one reader is changed for another."""

    def forward(net: Any, x: Tensor) -> Tensor:
        a = net.first(x)
        b = net.first_norm(a) + F.relu(a) + F.relu6(a) + a
        c = net.nothing(b)
        d = net.second_norm(c) + b
        e = net.third_norm(F.relu(d)) + F.relu6(F.relu(d)) + (d + d)
        return net.head(net.l1(e))

    return Net(
        forward,
        first=conv(3, 4),
        first_norm=nn.BatchNorm2d(4),
        nothing=nn.Identity(),
        second_norm=nn.BatchNorm2d(4, eps=0.1),
        third_norm=nn.BatchNorm2d(4),
        l1=L1BatchNorm2d(4, eps=1e-3),
        head=nn.Sequential(head(4), nn.BatchNorm1d(5)),
    )


def chains() -> nn.Module:
    """A norm after a norm, and activations after each other where each of them matters."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.second_norm(net.first_norm(net.conv(x)))
        return net.head(F.relu(F.relu6(x + x + x + x)))

    layers = {"conv": conv(3, 4), "first_norm": nn.BatchNorm2d(4), "head": head(4)}
    return Net(forward, **layers, second_norm=L1BatchNorm2d(4, eps=0.1))


def norm_and_activation_on_the_input() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.cat([net.norm(x), F.relu(x), x], 1))

    return Net(forward, norm=nn.BatchNorm2d(3), head=head(9))


def twice_flattened() -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.conv(x)
        y = net.norm(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        z = F.adaptive_max_pool2d(x, 1)
        return net.fc(torch.cat([y, z.flatten(1), F.relu(z.flatten(1))], 1))

    return Net(forward, conv=conv(3, 4), norm=nn.BatchNorm1d(4), fc=nn.Linear(12, 5))


def turned_and_flattened() -> nn.Module:
    """Rows and columns changed places before they are counted; both ways that a plan has."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.conv(x)
        y = x.transpose(2, 3).flatten(1)
        z = x.permute(0, 3, 1, 2).reshape(x.shape[0], 2, 5, 8)
        return net.fc(y) + net.other(F.relu(z).flatten(1))

    return Net(forward, conv=conv(3, 4), fc=nn.Linear(80, 5), other=nn.Linear(80, 5))


def mlp() -> nn.Module:
    hidden = [nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU6(), nn.Dropout(0.0)]
    return nn.Sequential(*hidden, nn.Linear(8, 5, bias=False))


def layer_norms() -> nn.Module:
    """Layer norms before and behind all that may be attached to a tensor."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.first(net.before(x))
        y = net.batch(net.second(x)) + F.relu(net.third(F.relu6(x)))
        return net.features(net.fc(y.flatten(1)))

    images = {"before": nn.LayerNorm((3, 5, 4)), "second": L1LayerNorm((4, 5, 4), bias=False)}
    return Net(
        forward,
        first=conv(3, 4),
        **images,
        third=L1LayerNorm([4, 5, 4], eps=0.1),
        batch=nn.BatchNorm2d(4),
        fc=nn.Linear(80, 5),
        features=nn.LayerNorm(5, elementwise_affine=False),
    )


HAND_MADE: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (pre_activation, (3, 16, 16)),
    (dense_block, (3, 16, 16)),
    (lenet, (3, 16, 16)),
    (pools, (3, 16, 16)),
    (functional, (3, 16, 16)),
    (used_twice, (3, 16, 16)),
    (chains, (3, 16, 16)),
    (twice_flattened, (3, 16, 16)),
    (norm_and_activation_on_the_input, (3, 5, 4)),
    (turned_and_flattened, (3, 5, 4)),
    (mlp, (12,)),
    (layer_norms, (3, 5, 4)),
    (layered(nn.LayerNorm, (3, 5, 4)), (3, 5, 4)),
    (layered(L1LayerNorm, (3, 5, 4)), (3, 5, 4)),
    (mobile((3, 9, 7)), (3, 9, 7)),
    (lambda: nn.Linear(4, 5), (4,)),
]


def randomised(model: nn.Module) -> nn.Module:
    """Give statistics and norm parameters values as after training."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.dim() == 1:
            positive = name.endswith(("weight", "running_var"))
            value.data = torch.rand_like(value) + 0.5 if positive else torch.randn_like(value) / 3
    return model


def assert_close(found: Tensor, expected: Tensor, what: str) -> None:
    error, size = (found - expected).abs().max(), expected.abs().max()
    assert error <= TOLERANCE * size + ZERO, f"{what} differs by {error:.1e} of {size:.1e}"


def assert_same(model: nn.Module, plan: Plan, count: int) -> None:
    """Compare logits in both modes, and in training the gradient of every parameter."""
    model = copy.deepcopy(model).double()
    shape = plan.tensors[0].shape
    inputs = torch.randn(count, *shape, dtype=torch.float64)
    theirs = inputs if shape[1:] != (1, 1) else inputs.flatten(1)
    weights, stats = dict(model.named_parameters()), dict(model.named_buffers())
    for training in (False, True):
        found = naive.run(plan, weights, stats, inputs, training)
        expected = model.train(training)(theirs.clone())
        assert_close(found, expected, f"outputs with training={training}")
    direction = torch.randn_like(expected)
    for name, ours, torchs in zip(
        weights,
        torch.autograd.grad(found, list(weights.values()), direction),
        torch.autograd.grad(expected, list(weights.values()), direction),
        strict=True,
    ):
        assert_close(ours, torchs, f"gradient of {name}")


def check(model: nn.Module, shape: tuple[int, ...], count: int = 4) -> Plan:
    plan = capture(randomised(model), shape)
    layout = TorchEngine(copy.deepcopy(model), cross_entropy).layout
    assert plan.layout == layout
    assert (list(plan.weights), list(plan.stats)) == (list(layout.weights), list(layout.stats))
    assert_same(model, plan, count)
    return plan


IMAGE_MODELS = [
    name for name, row in MODELS.items() if (row.takes, row.returns) == ("maps", "logits")
]


@pytest.mark.parametrize("name", slow_but(("resnet8", "ds-cnn"), IMAGE_MODELS))
def test_zoo_model(name: str, tmp_path: Path) -> None:
    side = max(16, MODELS[name].smallest)
    plan = check(build_model(name, (3, side, side), 5), (3, side, side), count=2)
    assert not any(isinstance(op, Copy) for op in plan.ops)
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(("model", "shape"), HAND_MADE)
def test_hand_made_model(
    model: Callable[[], nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    plan = check(model(), shape)
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


def test_a_model_of_l1_norms() -> None:
    model = build_model("resnet8", (1, 8, 8), 5)
    for layer in list(model.modules()):
        for name, child in layer.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(layer, name, L1BatchNorm2d(child.num_features))
    plan = check(model, (1, 8, 8))
    assert {t.norm.kind for t in plan.tensors if t.norm is not None} == {"l1-batch"}


def test_copies_are_made_only_where_a_value_has_other_readers() -> None:
    block = check(pre_activation(), (3, 8, 8))
    assert [op.source for op in block.ops if isinstance(op, Copy)] == [1]  # the shortcut's value
    concatenated = check(dense_block(), (3, 8, 8))
    assert [op.channel for op in concatenated.ops if isinstance(op, Copy)] == [0, 0, 4, 0, 0, 6, 8]


def test_what_a_layer_becomes() -> None:
    plan = capture(lenet(), (3, 16, 16))
    convolution, linear = plan.ops[0], plan.ops[-1]
    assert convolution == Conv(
        *(0, 1, "0.weight", "0.bias", (5, 5), (1, 1), (0, 0), (1, 1)), groups=1
    )
    assert isinstance(linear, Conv) and plan.weights[linear.weight] == (5, 20)
    assert plan.tensors[1].activation == "relu"
    assert [t.shape for t in plan.tensors[4:7]] == [(128, 1, 1), (20, 1, 1), (5, 1, 1)]
    whole = capture(head(2), (2, 6, 4)).ops[0]
    assert whole == Pool(0, 1, (6, 4), (6, 4), (0, 0), "mean")


def test_the_model_stays_as_it_was() -> None:
    model = functional()
    model.train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    names, modes = list(vars(model)), [module.training for module in model.modules()]
    with pytest.raises(PlanError):
        capture(model, (4, 16, 16))
    model.norm.train()
    capture(model, (3, 16, 16))
    model.norm.eval()
    assert [module.training for module in model.modules()] == modes
    assert list(vars(model)) == names
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# What is refused


def diagnostics(model: nn.Module, shape: tuple[int, ...] = (4, 8, 8)) -> list[str]:
    with pytest.raises(PlanError) as caught:
        capture(model, shape)
    first, *listed, last = str(caught.value).splitlines()
    assert first == f"{len(listed)} part(s) of {type(model).__name__} cannot be captured:"
    assert last.startswith("replace them by Conv2d, Conv1d, Linear")
    return [line.strip() for line in listed]


LAYERS: list[tuple[nn.Module, str]] = [
    (nn.LogSoftmax(1), "log_softmax: a plan has no such op"),
    (
        nn.Conv2d(4, 4, (3, 2), padding="same"),
        "conv2d: padding (1, 1, 0, 1) at (top, bottom, left, right) is uneven; it must be the same "
        "on both sides",
    ),
    (nn.BatchNorm2d(4, track_running_stats=False), "batch norm without running statistics"),
    (nn.Dropout(0.5), "p = 0.5, training would be random; only p = 0 can be captured"),
    (
        nn.AvgPool2d(4, 4, 1, ceil_mode=True),
        "an average that counts padding, and whose last window ends beyond it (ceil_mode)",
    ),
    (nn.AvgPool2d(2, divisor_override=3), "avg_pool2d with divisor_override = 3"),
    (
        L1LayerNorm((8, 8), elementwise_affine=False),
        "a layer norm over (8, 8); the last axis, or a whole example, (4, 8, 8), can be",
    ),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("layer", "expected"), LAYERS, ids=lambda value: str(value)[:40])
def test_a_layer_is_refused_with_its_reason(layer: nn.Module, expected: str) -> None:
    model = Net(lambda net, x: net.end(net.layer(x)), layer=layer, end=head(4))
    assert diagnostics(model) == [f"module 'layer': {expected}"]


CALLS: list[tuple[Callable[[Any, Tensor], Any], str]] = [
    (lambda _, x: torch.log_softmax(x, 1), "log_softmax: a plan has no such op"),
    (
        lambda _, x: x.transpose(0, 1).relu().transpose(0, 1),
        "it moves along dimension 0, which holds",
    ),
    (lambda net, x: x + 2 * net.start.bias.view(4, 1, 1), "an operand is computed from parameters"),
    (lambda net, x: torch.add(x, net.start.bias.view(4, 1, 1), alpha=2), "a parameter times alpha"),
    (
        lambda _, x: x * F.avg_pool2d(x, (8, 1)),
        "mul: combines (4, 8, 8) and (4, 1, 8); the shapes must be equal, or one have a single "
        "pixel per channel",
    ),
    (lambda _, x: torch.cat([x, x]), "a concat over dimension 0, that of the examples; each"),
    (
        lambda _, x: x + x.mean(0, keepdim=True),
        "a mean over dimensions [0], which mixes the examples",
    ),
    (
        lambda _, x: F.dropout2d(x, 0.1),
        "p = 0.1, training would be random; only p = 0 can be captured",
    ),
    (lambda _, x: x.roll(1), "it moves along several dimensions at once; each must be by itself"),
    (
        lambda _, x: x.view(-1, 2, 2, 8, 8).relu(),
        "only [n, c, h, w], [n, c, length] and [n, features] exist here",
    ),
    (
        lambda _, x: x.view(-1, 4, 4, 4),
        "a value of shape (8, 4, 4, 4) of 2 examples, which mixes them",
    ),
    (lambda net, x: x / net.start.bias.view(4, 1, 1), "a division by a parameter"),
    (lambda net, x: F.conv2d(x, net.start.weight * 2, padding=1), "computed from them"),
    (lambda net, x: F.max_pool2d(x, 3, 1, 1, return_indices=True)[1] + x, "not supported"),
]


@pytest.mark.parametrize(("call", "expected"), CALLS)
def test_a_call_is_refused_with_its_reason(
    call: Callable[[Any, Tensor], Any], expected: str
) -> None:
    model = Net(lambda net, x: net.end(call(net, net.start(x))), start=conv(4, 4), end=head(4))
    found = diagnostics(model)[0]
    assert found.startswith("module '(model)'") and expected in found


ACCEPTED: list[Callable[[Any, Tensor], Any]] = [
    lambda net, x: F.relu_(x) + x,
    lambda net, x: F.relu(x, inplace=True) + x,
    lambda net, x: x.add_(x) + x,
    lambda net, x: (F.relu(x), x)[1],
    lambda net, x: F.max_pool2d(x, 2, ceil_mode=True),
    lambda net, x: F.max_pool2d(x, 3, 1, 1, ceil_mode=True),
    lambda net, x: (
        F.max_pool2d(x, 3, 2, ceil_mode=True) - F.max_pool2d(x, 2, 2, dilation=3, padding=1)
    ),
    lambda net, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False, ceil_mode=True),
    lambda net, x: F.adaptive_avg_pool2d(x, 2),
    lambda net, x: F.adaptive_avg_pool2d(x, 3) - F.adaptive_max_pool2d(x, 3),
    lambda net, x: F.layer_norm(x, (4, 8, 8)),
    lambda net, x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 2),
    lambda net, x: x.clamp(0, 6) + x.clamp(min=0) + F.hardtanh(x, 0, 6),
    lambda net, x: x.reshape(len(x), 4, 8, 8).clone(),
    lambda net, x: torch.sigmoid(x) * F.silu(x) - torch.tanh(x),
    lambda net, x: x * x + x.square() - x.mean((2, 3), keepdim=True) * x,
    lambda net, x: x.mean((2, 3), keepdim=True) + x,
    lambda net, x: F.gelu(x) + F.gelu(x, approximate="tanh") + F.mish(x) + F.logsigmoid(x),
    lambda net, x: F.elu(x, 0.5) + F.selu(x) + F.celu(x, 2.0) + F.leaky_relu(x, 0.2),
    lambda net, x: F.hardsigmoid(x) + F.hardswish(x) + F.softplus(x, 2, 1),
    lambda net, x: x.clamp(-0.5, 0.75) + x.clamp(max=0.3) + F.hardtanh(x) + x.clamp(min=-0.1),
    lambda net, x: torch.erf(x) + x.abs().exp(),
    lambda net, x: torch.sigmoid(F.relu(x)).relu(),
    lambda net, x: (1 - 2 * F.relu(x)) / 4 + torch.add(x, x, alpha=0.5),
    lambda net, x: (x - torch.arange(4.0).view(4, 1, 1)) * torch.tensor([0.0]) + x,
]


@pytest.mark.parametrize("call", ACCEPTED)
def test_a_call_is_what_torch_does(call: Callable[[Any, Tensor], Any]) -> None:
    model = Net(lambda net, x: net.end(call(net, net.start(x))), start=conv(4, 4), end=head(4))
    assert check(model, (4, 8, 8)).ops


def test_everything_unsupported_is_listed_at_once() -> None:
    model = nn.Sequential(
        nn.ConstantPad2d(1, 2.0),
        nn.Sequential(nn.Softshrink(), nn.Dropout(0.2)),
        nn.AvgPool2d(2, divisor_override=3),
        head(4),
    )
    assert diagnostics(model) == [
        "module '0': constant padding with 2.0; zeros can be",
        "module '1.0': aten.softshrink.default is not supported",
        "module '1.1': p = 0.2, training would be random; only p = 0 can be captured",
        "module '2': avg_pool2d with divisor_override = 3",
    ]


def test_shared_frozen_unused_and_double_parameters() -> None:
    model = Net(
        lambda net, x: net.end(net.b(net.a(x)) + net.twice(net.twice(x))),
        a=conv(4, 4),
        b=conv(4, 4),
        twice=nn.GroupNorm(2, 4),
        spare=nn.Linear(2, 2, bias=False),
        spare_norm=nn.BatchNorm2d(4, affine=False),
        end=head(4),
    )
    model.b.weight = model.a.weight
    model.a.bias.requires_grad_(False)
    assert diagnostics(model) == [
        "a.weight: Parameter (shared by 2 modules)",
        "a.bias: Parameter (requires_grad is False)",
        "twice.weight, twice.bias: Parameter (2 ops use it)",
        "spare.weight: Parameter (no op uses it)",
        "spare_norm: BatchNorm2d (it is never called)",
    ]
    found = diagnostics(head(4).double())
    assert found == ["2.weight, 2.bias: Parameter (it is torch.float64, not torch.float32)"]


def test_a_deep_model_repeats_no_diagnostic() -> None:
    def twice(net: Any, x: Tensor) -> Tensor:
        for block in net.blocks:
            x = block(torch.sin(torch.sin(x)))
        return net.end(x)

    blocks = nn.Sequential(*(nn.Sequential(conv(4, 4), nn.Softshrink()) for _ in range(6)))
    assert diagnostics(Net(twice, blocks=blocks, end=head(4))) == [
        "module '(model)' and 11 others: aten.sin.default is not supported",
        "module 'blocks.0.1' and 5 others: aten.softshrink.default is not supported",
    ]


def test_computed_weights_hooks_and_frozen_norms() -> None:
    hooked = head(4)
    nn.utils.spectral_norm(hooked[2])
    assert "2: Linear (it has forward hooks)" in diagnostics(hooked)
    parametrised = head(4)
    nn.utils.parametrizations.weight_norm(parametrised[2])
    computed = "linear: its weights are not parameters of the model, but computed from them"
    assert f"module '2': {computed}" in diagnostics(parametrised)

    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self[0].eval()
            return self

    assert diagnostics(Frozen(nn.BatchNorm2d(4), head(4))) == [
        "module '0': a batch norm that stays in evaluation mode when the model is trained"
    ]


def test_other_outputs() -> None:
    must = (
        "a plan returns (n, features), (n, channels, length) or (n, channels, height, width); "
        "what returns others or tuples trains on torch"
    )
    one = Net(lambda net, x: net.a(x)[:, 0], a=head(4))
    assert diagnostics(one) == [f"(model): output (of shape (n, ); {must})"]
    two = Net(lambda net, x: (net.a(x), net.b(x)), a=head(4), b=head(4))
    assert diagnostics(two) == [f"(model): output (that is not a single tensor; {must})"]


@pytest.mark.parametrize(
    ("model", "given", "shape"),
    [
        (lambda: conv(4, 4), (4, 8, 8), (4, 8, 8)),
        (lambda: nn.Sequential(conv(4, 4), nn.BatchNorm2d(4), nn.ReLU()), (4, 1, 1), (4, 1, 1)),
        (lambda: nn.Conv1d(4, 3, 1), (4, 7), (3, 7)),
        (lambda: nn.Sequential(nn.Conv1d(4, 3, 1), nn.AdaptiveAvgPool1d(1)), (4, 7), (3, 1)),
        (lambda: nn.Sequential(nn.Conv2d(4, 3, 1), nn.Flatten(2)), (4, 2, 3), (3, 6)),
        (lambda: nn.Linear(4, 2), (4,), (2,)),
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3))), (4,), (2, 3)),
    ],
)
def test_outputs_are_features_series_or_maps(
    model: Callable[[], nn.Module], given: tuple[int, ...], shape: tuple[int, ...], tmp_path: Path
) -> None:
    made = model()
    plan = capture(made, given)
    assert plan.output_shape == shape == made(torch.zeros(2, *given)).shape[1:]
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    state = TorchEngine(made, cross_entropy).initial_state()
    inputs = np.random.default_rng(0).standard_normal((5, *given)).astype(np.float32)
    found = SparseEngine(plan).outputs(state, inputs)
    wanted = made.eval()(torch.from_numpy(inputs)).detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_model_without_prunable_layers() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert diagnostics(model) == [
        "(model): no Conv2d, Conv1d or Linear, so there is nothing to prune"
    ]


def test_a_sum_in_place_on_a_value_still_in_use_is_what_torch_does() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = z = net.start(x)
        y += net.middle(x)
        return net.end(z + y)

    model = Net(forward, start=conv(4, 4), middle=conv(4, 4), end=head(4))
    assert any(isinstance(op, Add) for op in check(model, (4, 8, 8)).ops)


def test_a_norm_that_averages_over_all_batches() -> None:
    norms = [nn.BatchNorm2d(4, momentum=None), L1BatchNorm2d(4, momentum=None)]
    model = nn.Sequential(conv(4, 4), *norms, head(4))
    assert check(model, (4, 8, 8)).stats
    assert [norm.momentum for norm in norms] == [None, None]


class ByOthers(nn.Module):
    """Centres each value by the other examples of its batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.detach().mean(0, keepdim=True) if len(x) > 2 else x


def test_examples_that_change_each_other_are_noticed() -> None:
    model = nn.Sequential(conv(4, 4), ByOthers(), head(4))
    with pytest.raises(PlanError, match="which other examples are in the batch"):
        capture(model, (4, 8, 8))


OTHERWISE_IN_TRAINING: list[Callable[[Any, Tensor], Any]] = [
    lambda net, x: x + x if net.training else x,
    lambda net, x: F.relu(x) if net.training else F.relu6(x),
    lambda net, x: F.avg_pool2d(x, 2) if net.training else F.max_pool2d(x, 2),
    lambda net, x: F.avg_pool2d(x, 2 if net.training else 4),
    lambda net, x: F.conv2d(x, net.start.weight * (2.0 if net.training else 1.0), padding=1),
    lambda net, x: F.conv2d(x, torch.full((4, 4, 1, 1), 2.0 if net.training else 1.0)),
    lambda net, x: x + torch.relu(x) if net.training else torch.relu(x) + x.clone(),
    lambda net, x: x.mul_(2) if net.training else x.mul_(1),
    lambda net, x: F.layer_norm(x, (4, 8, 8), eps=1e-3 if net.training else 1e-5),
]
"""Some are other sums of the same calls, some the same calls of other constants."""


@pytest.mark.parametrize("call", OTHERWISE_IN_TRAINING)
def test_what_is_called_in_training_alone_is_noticed(call: Callable[[Any, Tensor], Any]) -> None:
    model = Net(lambda net, x: net.end(call(net, net.start(x))), start=conv(4, 4), end=head(4))
    with pytest.raises(PlanError) as caught:
        capture(model, (4, 8, 8))
    named = [line for line in str(caught.value).splitlines() if line.startswith("  module")]
    assert named or "other layers in training" in str(caught.value)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), L1BatchNorm2d(4)])
def test_a_frozen_norm_is_named(norm: nn.Module) -> None:
    model = Net(
        lambda net, x: net.end(net.norm.eval()(net.start(x))), start=conv(4, 4), end=head(4)
    )
    model.norm = norm
    assert diagnostics(model) == [
        "module 'norm': a batch norm that stays in evaluation mode when the model is trained"
    ]


DROPOUTS = ("dropout", "dropout2d", "alpha_dropout", "feature_alpha_dropout")


@pytest.mark.parametrize(
    ("name", "p"),
    slow_but(
        [*((name, 0.1) for name in DROPOUTS), ("alpha_dropout", 1.0)],
        itertools.product(DROPOUTS, (0.1, 1.0)),
    ),
)
def test_dropout_that_is_on_is_refused_and_one_that_is_off_is_nothing(name: str, p: float) -> None:
    def dropping(p: float, is_on: bool | None = None) -> nn.Module:
        def call(net: Any, x: Tensor) -> Any:
            training = net.training if is_on is None else is_on
            return net.end(getattr(F, name)(net.start(x), p, training=training))

        return Net(call, start=conv(4, 4), end=head(4))

    (found,) = diagnostics(dropping(p))
    assert f"p = {p}, training would be random" in found
    for model in (dropping(0.0), dropping(p, is_on=False)):
        check(model, (4, 8, 8))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda net, x: net.end(x if x.sum() > 0 else -x), "control flow"),
        (lambda net, x: net.end(x) if net.training else net.end(x + x), "other layers in training"),
    ],
)
def test_a_model_that_cannot_be_traced(call: Callable[[Any, Tensor], Any], reason: str) -> None:
    with pytest.raises(PlanError, match=rf"Net cannot be traced: .*{reason}"):
        capture(Net(call, end=head(4)), (4, 8, 8))


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(PlanError, match=r"cannot be run on 3 examples of shape \(5, 8, 8\): "):
        capture(head(4), (5, 8, 8))
    fixed = Net(lambda net, x: net.end(x.view(2, -1)), end=nn.Linear(4, 5))
    with pytest.raises(PlanError, match=r"cannot be run on 3 examples of shape \(4,\): "):
        capture(fixed, (4,))
    mixing = Net(lambda net, x: net.end(x).mean((2, 3)).view(2, -1), end=conv(4, 4))
    with pytest.raises(PlanError, match="which other examples are in the batch"):
        capture(mixing, (4, 8, 8))
    for shape in ((4,) * 4, (), (4, 0, 8), (4, 0)):
        with pytest.raises(PlanError, match=r"must be \(channels, height, width\), \(channels,"):
            capture(head(4), shape)
