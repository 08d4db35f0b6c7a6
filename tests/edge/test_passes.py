"""Where each rewrite applies and where it must not; `test_lower` sees that the numbers stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge import passes
from edge.passes import fold_bn, fold_flatten, fuse_relu
from fedkit.graph import ir
from fedkit.graph.from_torch import lower
from fedkit.graph.interpret import evaluate


class TwoReaders(nn.Module):
    """The convolution's result goes to a BatchNorm with a ReLU, and around them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (torch.relu(self.norm(x)) + x).mean((2, 3))


class NormThenBoth(nn.Module):
    """The value before the ReLU is used too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        return torch.relu(x) + x


def test_a_norm_is_not_folded_into_a_layer_that_others_read() -> None:
    graph = lower(TwoReaders(), (1, 5, 5))
    assert fold_bn.match(graph) is None
    kinds = [op.kind for op in passes.optimise(graph).ops]
    assert kinds == ["conv2d", "depthwise_conv2d", "add", "mean"]


def test_a_relu_is_not_fused_into_a_layer_that_others_read() -> None:
    graph = lower(NormThenBoth(), (4,))
    assert fuse_relu.match(graph) is None
    assert [op.kind for op in passes.optimise(graph).ops] == ["linear", "relu", "add"]


def test_a_second_relu_stays() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.ReLU6())
    ops = passes.optimise(lower(model, (4,))).ops
    assert [(op.kind, op.activation) for op in ops] == [("linear", "relu"), ("relu6", "none")]


def test_a_flatten_that_no_linear_layer_reads_stays() -> None:
    graph = lower(nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten()), (1, 3, 3))
    assert fold_flatten.match(graph) is None
    assert graph.ops[-1].kind == "flatten_nchw"


def test_folding_a_flatten_permutes_the_columns() -> None:
    linear = nn.Linear(12, 2)
    model = nn.Sequential(nn.Flatten(), linear)
    graph = passes.optimise(lower(model, (3, 2, 2)))
    found = graph.constant(graph.ops[-1].inputs[1])
    weight = linear.weight.detach().numpy().reshape(2, 3, 2, 2)
    assert np.array_equal(found, weight.transpose(0, 2, 3, 1).reshape(2, 12))


def test_a_norm_on_features_that_follows_no_layer_works_on_one_pixel() -> None:
    norm = nn.BatchNorm1d(3)
    norm.running_mean = torch.tensor([1.0, -2.0, 0.5])
    model = nn.Sequential(norm, nn.Linear(3, 2)).eval()
    graph = passes.optimise(lower(model, (3,)))
    assert [op.kind for op in graph.ops] == ["reshape", "depthwise_conv2d", "reshape", "linear"]
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    wanted = model(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(evaluate(graph, x), wanted, atol=1e-6)


def test_two_norms_fold_into_one_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.BatchNorm1d(2)).eval()
    assert [op.kind for op in passes.optimise(lower(model, (3,))).ops] == ["linear"]


def test_weights_that_two_layers_share_are_folded_apart() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)
            second = nn.BatchNorm2d(2)
            nn.init.constant_(second.weight, 3.0)
            self.norms = nn.ModuleList([nn.BatchNorm2d(2), second])

        def forward(self, x: Tensor) -> Tensor:
            for norm in self.norms:
                x = norm(self.conv(x))
            return x.mean((2, 3))

    model = Shared().eval()
    inputs = np.random.default_rng(0).standard_normal((2, 2, 3, 3)).astype(np.float32)
    graph = passes.optimise(lower(model, (2, 3, 3)))
    expected = model(torch.from_numpy(inputs)).detach().numpy()
    assert np.allclose(evaluate(graph, ir.to_graph_layout(inputs)), expected, atol=1e-6)


# Functions that a file spells out

SPELT: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * (x * x) * x)))
    ),
    "hard_swish": lambda x: x * F.relu6(x + 3) / 6,
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
}


class BetweenConvs(nn.Module):
    """A function between two convolutions."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.last(self.function(self.first(x))), 1)


def optimised(function: Callable[[Tensor], Tensor]) -> ir.Graph:
    """Return the graph of a function between convolutions, which computes what torch does."""
    torch.manual_seed(0)
    model = BetweenConvs(function).eval()
    graph = passes.optimise(lower(model, (2, 4, 4)))
    x = 6 * np.random.default_rng(0).standard_normal((5, 2, 4, 4)).astype(np.float32)
    wanted = model(torch.from_numpy(x)).detach().numpy()
    found = evaluate(graph, ir.to_graph_layout(x)).reshape(wanted.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    return graph


@pytest.mark.parametrize("kind", SPELT)
def test_a_function_that_is_spelt_out_gets_its_name(kind: str) -> None:
    kinds = [op.kind for op in optimised(SPELT[kind]).ops]
    assert kinds == ["conv2d", kind, "conv2d", "flatten_nchw"]


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "another slope": lambda x: x * torch.sigmoid(1.702 * x),
    "another value": lambda x: x * torch.sigmoid(F.relu(x)),
    "a channel apart": lambda x: x * torch.sigmoid(x * torch.tensor([1.0, 1, 1.1])[:, None, None]),
    "a gate": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "a square": lambda x: x * x,
    "a sum": lambda x: x + F.relu(x),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_not_quite_that_function_stays(case: str) -> None:
    kinds = {op.kind for op in optimised(OTHERS[case]).ops}
    assert kinds.isdisjoint(SPELT)


def test_what_else_is_read_of_a_function_that_is_spelt_out_stays() -> None:
    def both(x: Tensor) -> Tensor:
        power = F.softplus(x)
        bent = torch.tanh(power)
        return x * bent - bent

    kinds = [op.kind for op in optimised(both).ops]
    assert kinds == ["conv2d", "softplus", "tanh", "mish", "sub", "conv2d", "flatten_nchw"]
