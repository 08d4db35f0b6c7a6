"""The lowered graph computes what the torch module computes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from edge import passes
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_torch import lower, read
from fedkit.graph.interpret import evaluate, evaluate_all
from fedkit.nn.norm import L1BatchNorm2d, L1LayerNorm
from fedkit.nn.zoo import build_model
from tests.calls import Calls
from tests.sets import drawn, slow_but

Images = NDArray[np.float32]


def images(*shape: int) -> Images:
    return np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)


def assert_same_numbers(model: nn.Module, inputs: Images, tolerance: float = 1e-5) -> ir.Graph:
    """Compare the plain and the optimised graph with torch; return the optimised one."""
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(inputs)).numpy()
    lowered = lower(model, inputs.shape[1:])
    optimised = passes.optimise(lowered)
    for graph in (lowered, optimised):
        found = evaluate(graph, ir.to_graph_layout(inputs))
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    return optimised


ZOO = [
    ("resnet8", (3, 8, 8)),
    ("resnet18-w16", (1, 9, 9)),
    ("ds-cnn", (1, 12, 10)),
    ("vgg11", (3, 32, 32)),
    ("mobilenetv2-w0.25", (3, 8, 8)),
]


@pytest.mark.parametrize(("name", "shape"), slow_but(ZOO[:1], ZOO))
def test_zoo_model(
    name: str, shape: tuple[int, int, int], randomise: Callable[[nn.Module], nn.Module]
) -> None:
    graph = assert_same_numbers(randomise(build_model(name, shape, 7)), images(*shape))
    assert not {op.kind for op in graph.ops} & {"affine", "relu", "flatten_nchw"}


class Functional(nn.Module):
    """Functional spellings, in-place ops, reuse of a module, and a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding="same")
        self.fc = nn.Linear(6 * 4 * 5, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        y = self.second(y) + torch.relu(y)
        y = F.dropout(F.max_pool2d(y, 2), training=self.training)
        y = F.relu6(self.second(y))
        return self.fc(y.view(y.size(0), -1))


class InPlace(nn.Module):
    """The shortcut reads a tensor that was changed in place after it was taken."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        shortcut = y
        y = F.relu(y, inplace=True) + shortcut
        y += shortcut
        return self.fc(y.mean((2, 3)))


class Head(nn.Module):
    """Pools in the given way and classifies."""

    def __init__(self, pool: Callable[[Tensor], Tensor], features: int = 3) -> None:
        super().__init__()
        self.pool = pool
        self.fc = nn.Linear(features, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(x).flatten(1))


def test_functional_spellings() -> None:
    graph = assert_same_numbers(Functional(), images(3, 8, 10))
    assert "flatten_nchw" not in {op.kind for op in graph.ops}


def test_tensors_changed_in_place_have_their_new_value_everywhere() -> None:
    assert_same_numbers(InPlace(), images(3, 6, 6))


def test_an_in_place_op_on_a_flattened_view_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(48, 2))
    with pytest.raises(ExportError, match=r"'1'.*set inplace=False"):
        lower(model, (3, 4, 4))


def with_l1_statistics() -> nn.Module:
    norms = L1BatchNorm2d(4, eps=0.1), L1BatchNorm2d(4, affine=False)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), norms[0], nn.ReLU(), norms[1], Head(nn.AdaptiveAvgPool2d(1), 4)
    ).train()
    with torch.no_grad():
        for _ in range(20):
            model(3 * torch.randn(8, 3, 9, 9) + 1)
    return model.eval()


def test_an_l1_norm_leaves_as_what_it_computes_in_evaluation() -> None:
    graph = assert_same_numbers(with_l1_statistics(), images(3, 9, 9))
    assert {op.kind for op in graph.ops}.isdisjoint({"affine", "l1_batch_norm"})


def test_an_exported_program_of_torchs_computes_l1_norms_too() -> None:
    model, x = with_l1_statistics(), torch.randn(2, 3, 9, 9)
    found = torch.export.export(model, (x,)).module()(x)
    assert torch.equal(found, model(x))
    layer = L1LayerNorm((3, 9, 9))
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), layer(x))


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_read_as_it_trains(training: bool) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.ReLU(), L1BatchNorm2d(6)]
    model = nn.Sequential(
        *layers, nn.LayerNorm((6, 5, 4)), L1LayerNorm((6, 5, 4)), Head(nn.AdaptiveAvgPool2d(1), 6)
    )
    for value in model.parameters():
        value.data = torch.rand_like(value) + 0.5
    x = torch.randn(2, 4, 7, 6)
    reading = read(model, x, training)
    assert reading.reasons == [] and reading.graph is not None
    kinds = [op.kind for op in reading.graph.ops]
    assert kinds[:4] == ["grouped_conv2d", "batch_norm", "relu", "l1_batch_norm"]
    assert {each.parameter for each in reading.graph.tensors.values()} >= set(
        model.state_dict()
    ) - {
        "1.num_batches_tracked",
        "3.num_batches_tracked",
    }
    found = evaluate(reading.graph, ir.to_graph_layout(x.numpy()))
    expected = model.eval()(x).detach().numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_mlp(randomise: Callable[[nn.Module], nn.Module]) -> None:
    layers = [nn.Linear(9, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3)]
    graph = assert_same_numbers(randomise(nn.Sequential(*layers)), images(9))
    assert [op.kind for op in graph.ops] == ["linear", "linear"]


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "adaptive to 1": nn.AdaptiveAvgPool2d(1),
    "adaptive to 1x2": nn.AdaptiveAvgPool2d((1, 2)),
    "adaptive to 3x2": nn.AdaptiveAvgPool2d((3, 2)),
    "mean": lambda x: x.mean((2, 3)),
    "mean, dimensions kept": lambda x: x.mean((-1, -2), keepdim=True),
    "average": nn.AvgPool2d(2),
    "average, padded": nn.AvgPool2d(3, 2, padding=1),
    "average, padding not counted": nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "maximum": nn.MaxPool2d((3, 2)),
    "maximum, padded": nn.MaxPool2d(3, 2, padding=1),
    "maximum, rounded up": nn.MaxPool2d(4, 3, ceil_mode=True),
    "maximum, dilated": nn.MaxPool2d((2, 3), (1, 2), (1, 1), (3, 2)),
    "adaptive to 4x3": nn.AdaptiveAvgPool2d((4, 3)),
    "adaptive to 7x9": nn.AdaptiveAvgPool2d((7, 9)),
    "adaptive maximum to 4x3": nn.AdaptiveMaxPool2d((4, 3)),
    "average, rounded up": nn.AvgPool2d((4, 3), 3, ceil_mode=True),
    "average, padded and rounded up": nn.AvgPool2d(4, 3, 1, True, False),
    "zero padding": nn.ZeroPad2d((1, 2, 3, 0)),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling(name: str) -> None:
    inputs = images(3, 6, 8)
    features = POOLS[name](torch.from_numpy(inputs)).flatten(1).shape[1]
    assert_same_numbers(Head(POOLS[name], features), inputs)


@st.composite
def pools(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, int]]:
    """Draw any legal pooling, and height and width of what it reads."""
    size = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    if draw(st.booleans()):
        kind = draw(st.sampled_from([nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d]))
        return kind((draw(st.integers(1, 9)), draw(st.integers(1, 9)))), size
    pair = st.tuples(st.integers(1, 4), st.integers(1, 4))
    kernel, stride, dilation, ceil = draw(pair), draw(pair), draw(pair), draw(st.booleans())
    padding = draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))
    if draw(st.booleans()):
        return nn.AvgPool2d(kernel, stride, padding, ceil, draw(st.booleans())), size
    return nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil), size


@settings(max_examples=drawn(150), deadline=None)
@given(pools())
def test_any_pooling_is_computed_or_refused(drawn_pool: tuple[nn.Module, tuple[int, int]]) -> None:
    pool, size = drawn_pool
    inputs = images(2, *size)
    try:
        expected = pool(torch.from_numpy(inputs)).flatten(1)
    except RuntimeError:
        assume(False)  # torch itself has no result
    assume(expected.isfinite().all())
    try:
        graph = lower(nn.Sequential(pool, nn.Flatten()), inputs.shape[1:])
    except ExportError as error:
        assert "counts padding" in str(error)
        assert isinstance(pool, nn.AvgPool2d) and pool.ceil_mode and pool.count_include_pad
        return
    found = evaluate(graph, ir.to_graph_layout(inputs))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_max_pooling_ignores_its_padding_below_zero() -> None:
    conv = nn.Conv2d(3, 3, 1)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, -50.0)
    model = Head(nn.Sequential(conv, nn.MaxPool2d(3, 2, 1)), 3 * 3 * 4)
    assert_same_numbers(model, images(3, 6, 8))


def test_a_norm_that_cannot_be_folded_becomes_depthwise(
    randomise: Callable[[nn.Module], nn.Module],
) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), Head(nn.AdaptiveAvgPool2d(1)))
    graph = assert_same_numbers(randomise(model), images(3, 5, 5))
    assert (graph.ops[0].kind, graph.ops[0].activation) == ("depthwise_conv2d", "relu")


def test_masks_and_reparametrised_weights_become_constants() -> None:
    conv = nn.Conv2d(3, 4, 3)
    prune.l1_unstructured(conv, "weight", 0.5)
    fc = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc)
    graph = assert_same_numbers(model, images(3, 6, 6))
    assert (graph.constant(graph.ops[0].inputs[1]) == 0).mean() == 0.5


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, tuple[int, int, int]]:
    """Draw any legal Conv2d that the exporter claims to take, and an input for it."""
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    depthwise, cin = draw(st.booleans()), draw(st.integers(1, 4))
    kernel, dilation = draw(pair), draw(pair)
    height, width = draw(st.integers(4, 10)), draw(st.integers(4, 10))
    cout = cin * draw(st.integers(1, 2)) if depthwise else draw(st.integers(1, 5))
    stride = draw(pair)
    any_padding = st.tuples(st.integers(0, 3), st.integers(0, 3))
    padding = draw(st.one_of(any_padding, st.sampled_from(["same", "valid"])))
    assume(padding != "same" or stride == (1, 1))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    assume(reach[0] <= height and reach[1] <= width)
    groups = cin if depthwise else 1
    conv = nn.Conv2d(cin, cout, kernel, stride, padding, dilation, groups, draw(st.booleans()))
    return conv, (cin, height, width)


class Sum(nn.Module):
    """A convolution whose every output value counts."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1)


@settings(max_examples=drawn(30), deadline=None)
@given(convolutions())
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's own run
def test_any_convolution(drawn: tuple[nn.Conv2d, tuple[int, int, int]]) -> None:
    conv, shape = drawn
    graph = assert_same_numbers(Sum(conv), images(*shape))
    window = graph.ops[0].window
    assert window is not None and min(window.padding) >= 0


def test_the_model_is_left_as_it_was() -> None:
    model = build_model("resnet8", (1, 8, 8), 3).train()
    norm = model.get_submodule("0.1").eval()
    before = copy.deepcopy(model.state_dict())
    lower(model, (1, 8, 8))
    assert model.training and not norm.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


class UnsupportedOps(nn.Module):
    """Four ops that no target here can compute."""

    def __init__(self) -> None:
        super().__init__()
        self.cos = Calls(torch.cos)
        self.act = nn.Sequential(nn.Softshrink(), nn.Hardshrink())
        self.norm = nn.LayerNorm((5, 5))
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.act(self.cos(x))).mean((2, 3)))


def test_all_unsupported_ops_are_listed_at_once_by_module() -> None:
    with pytest.raises(ExportError) as caught:
        lower(UnsupportedOps(), (4, 5, 5))
    message = str(caught.value)
    assert message.startswith("4 op(s)")
    for module in ("'cos'", "'act.0'", "'act.1'", "'norm'"):
        assert f"module {module}" in message
    assert "'fc'" not in message


REFUSED: list[tuple[nn.Module, tuple[int, ...], str]] = [
    (nn.AvgPool2d(3, 3, 1, ceil_mode=True), (1, 6, 6), "ceil_mode"),
    (nn.AvgPool2d(2, divisor_override=3), (1, 4, 4), "divisor_override = 3"),
    (nn.BatchNorm2d(1, track_running_stats=False), (1, 4, 4), "without running statistics"),
    (nn.ConstantPad2d(1, 2.0), (1, 4, 4), "zeros can be"),
    (nn.RNN(3, 2), (3,), "not supported"),
]


@pytest.mark.parametrize(
    ("model", "shape", "reason"), REFUSED, ids=[type(model).__name__ for model, *_ in REFUSED]
)
def test_refusals_say_why(model: nn.Module, shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        lower(model, shape)


class ByData(nn.Module):
    """Control flow that depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Pair(nn.Module):
    """Two outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.relu(x), F.relu6(x)


def test_a_tuple_is_read_in_its_order() -> None:
    x = np.array([[-1, 3, 9]], np.float32)
    graph = lower(Pair(), (3,))
    relu, relu6 = evaluate_all(graph, {graph.inputs[0]: x})
    assert (relu.tolist(), relu6.tolist()) == ([[0, 3, 9]], [[0, 3, 6]])


class Constant(nn.Module):
    """An output that ignores the input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(1, 2)


@pytest.mark.parametrize(
    ("model", "shape", "reason"),
    [
        (ByData(), (3,), "cannot trace ByData"),
        (nn.Linear(3, 2), (4,), "cannot trace Linear"),
        (Constant(), (3,), "does not depend on its input"),
    ],
)
def test_models_that_are_no_classifiers_are_refused(
    model: nn.Module, shape: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(ExportError, match=reason):
        lower(model, shape)


def test_nan_weights_are_refused_by_name() -> None:
    model = nn.Linear(3, 2)
    nn.init.constant_(model.bias, float("nan"))
    with pytest.raises(ExportError, match=r"linear\.bias.*NaN"):
        lower(model, (3,))
