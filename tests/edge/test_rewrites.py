"""Rewrites of float graphs: what they must give, where they must refuse, and what that is worth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge import passes
from edge.passes import Rewritten, ln_affine_fold, rewritten
from edge.passes.affines import Floats
from edge.passes.rewrite import TOLERANCE, Done, Hints, Place, Rewrite, apply
from edge.passes.rewrites import REWRITES, asked
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_torch import lower
from fedkit.graph.interpret import evaluate_all
from fedkit.graph.ops.norms import OfPlace
from fedkit.nn.transformers import char_gpt, kwt1, vit_tiny
from tests.edge.random_floats import a_float_graph

FUSED = 1e-4
EXACT = [name for name, row in REWRITES.items() if row.exact]


def inputs(shape: Sequence[int], scale: float = 1.0, count: int = 6) -> ir.FloatArray:
    values = scale * np.random.default_rng(1).standard_normal((count, *shape))
    return values.astype(np.float32)


def outputs(graph: ir.Graph, x: ir.FloatArray) -> list[ir.FloatArray]:
    return evaluate_all(graph, {graph.inputs[0]: ir.to_graph_layout(x)})


def distance(model: nn.Module, graph: ir.Graph, shape: Sequence[int]) -> float:
    """By how much of its largest value an output of a graph differs from that of its model."""
    x = inputs(shape)
    with torch.no_grad():
        own = model(torch.from_numpy(x))
    own = own if isinstance(own, tuple) else (own,)
    worst = 0.0
    for wanted, found in zip(own, outputs(graph, x), strict=True):
        laid = ir.to_graph_layout(wanted.numpy()).reshape(found.shape)
        worst = max(worst, float(np.abs(found - laid).max() / np.abs(laid).max()))
    return worst


def rewrite(model: nn.Module, shape: Sequence[int], *names: str) -> Rewritten:
    """Rewrite a model; what is made gives what it does."""
    found = rewritten(lower(model.eval(), tuple(shape)), names)
    assert distance(model, found.graph, shape) <= FUSED
    return found


def became(found: Rewritten, name: str) -> Done:
    return next(done for done in found.done if done.kind == name)


def why_not(found: Rewritten, name: str) -> str:
    """The one reason why a rewrite was not applied anywhere."""
    done = became(found, name)
    assert done.applied == ()
    ((where, why),) = done.refused
    return f"{where}: {why}"


def kinds(graph: ir.Graph) -> list[str]:
    return [op.kind for op in graph.ops]


def jittered(model: nn.Module, spread: float = 0.3) -> nn.Module:
    """Give all norms of a model weights and biases of their own."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 1 - spread, 1 + spread)
            bias = getattr(module, "bias", None)
            if isinstance(bias, Tensor):
                nn.init.normal_(bias, std=spread)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.2
    return model


# Affine norms, whatever they are called


class SumRepNorm(nn.Module):
    """BatchNorm(x) + eta x."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.eta = norm, nn.Parameter(torch.tensor([0.7]))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) + self.eta * x


class Uncentred(nn.Module):
    """A Unified or Power norm in evaluation: x / sqrt(second moment + eps) * weight + bias."""

    def __init__(self, channels: int, dimensions: int, last: bool = False) -> None:
        super().__init__()
        shape = (channels,) if last else (channels, *(1,) * (dimensions - 1))
        self.weight, self.bias = (nn.Parameter(torch.randn(shape)) for _ in range(2))
        self.moment: Tensor
        self.register_buffer("moment", torch.rand(shape) + 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight / torch.sqrt(self.moment + 1e-5) + self.bias


def conv_net(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(5, 3, 1))


NORMS: dict[str, tuple[Callable[[], nn.Module], Sequence[int]]] = {
    "RepBN": (lambda: conv_net(SumRepNorm(jittered(nn.BatchNorm2d(5)))), (2, 6, 5)),
    "RepBN of features": (
        lambda: nn.Sequential(nn.Linear(4, 6), SumRepNorm(jittered(nn.BatchNorm1d(6)))),
        (4,),
    ),
    "RepBN twice": (
        lambda: conv_net(SumRepNorm(SumRepNorm(jittered(nn.BatchNorm2d(5))))),
        (2, 6, 5),
    ),
    "UN": (lambda: conv_net(Uncentred(5, 3)), (2, 6, 5)),
    "PowerNorm of tokens": (
        lambda: nn.Sequential(nn.Linear(4, 6), Uncentred(6, 1, last=True), nn.Linear(6, 3)),
        (7, 4),
    ),
    "UN of features": (lambda: nn.Sequential(nn.Linear(4, 6), Uncentred(6, 1)), (4,)),
    "RepBN of one channel": (
        lambda: nn.Sequential(nn.Conv2d(2, 1, 3), SumRepNorm(jittered(nn.BatchNorm2d(1)))),
        (2, 5, 5),
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_that_is_a_factor_and_an_offset_goes_into_its_layer(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NORMS[name]
    model = make().eval()
    graph = passes.optimise(lower(model, tuple(shape)))
    assert {*kinds(graph)} <= {"conv2d", "linear", "transpose", "relu"}
    layers = sum(isinstance(each, nn.Conv2d | nn.Linear) for each in model.modules())
    assert sum(kind in ("conv2d", "linear") for kind in kinds(graph)) == layers
    assert distance(model, graph, shape) <= FUSED


def test_a_rep_norm_whose_layer_others_read_is_one_op() -> None:
    class ReadElsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 3, 3), SumRepNorm(jittered(nn.BatchNorm2d(3)))

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return torch.relu(self.norm(x)) * torch.sigmoid(x)

    model = ReadElsewhere().eval()
    graph = passes.optimise(lower(model, (2, 5, 5)))
    assert kinds(graph) == ["conv2d", "depthwise_conv2d", "sigmoid", "mul"]
    assert distance(model, graph, (2, 5, 5)) <= FUSED


def test_a_difference_of_a_value_and_its_norm_is_one_factor_too() -> None:
    class LessItsNorm(SumRepNorm):
        def forward(self, x: Tensor) -> Tensor:
            return x - self.norm(x)

    model = conv_net(LessItsNorm(jittered(nn.BatchNorm2d(5)))).eval()
    graph = passes.optimise(lower(model, (2, 6, 5)))
    assert kinds(graph) == ["conv2d", "conv2d"]
    assert distance(model, graph, (2, 6, 5)) <= FUSED


# Forward


def test_a_norm_at_the_input_goes_into_all_layers_that_read_it() -> None:
    class Start(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = jittered(nn.BatchNorm2d(4))
            self.left = nn.Conv2d(4, 3, 3)
            self.right = nn.Conv2d(4, 8, 3, groups=4)
            self.grouped = nn.Conv2d(4, 6, 3, groups=2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            x = self.norm(x)
            return self.left(x), self.right(x), self.grouped(x)

    found = rewrite(Start(), (4, 5, 5), "affine_forward")
    assert became(found, "affine_forward").applied == ("norm",)
    assert kinds(found.graph) == ["conv2d", "depthwise_conv2d", "grouped_conv2d"]


def test_an_offset_does_not_go_into_what_pads_with_zeros() -> None:
    model = nn.Sequential(jittered(nn.BatchNorm2d(4)), nn.Conv2d(4, 3, 3, padding=1))
    found = rewrite(model, (4, 5, 5), "affine_forward")
    assert why_not(found, "affine_forward") == (
        "0: layer '1' pads with zeros, which would have to be another number at the border"
    )


def test_a_factor_alone_goes_into_what_pads_with_zeros() -> None:
    class ScaledInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.scale = nn.Conv2d(4, 3, 3, padding=1), torch.rand(4, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x * self.scale)

    found = rewrite(ScaledInput(), (4, 5, 5), "affine_forward")
    assert kinds(found.graph) == ["conv2d"]


def test_a_norm_goes_through_a_flatten_into_a_linear_layer() -> None:
    model = nn.Sequential(jittered(nn.BatchNorm2d(3)), nn.Flatten(), nn.Linear(60, 4))
    found = rewrite(model, (3, 4, 5), "affine_forward")
    assert kinds(found.graph) == ["reshape", "linear"]


class TwiceTheLayer(nn.Module):
    """A layer that reads a norm's result, and its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = jittered(nn.BatchNorm1d(4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(self.norm(x))))


def test_what_shares_its_weights_takes_nothing() -> None:
    found = rewrite(TwiceTheLayer(), (4,), "affine_forward")
    assert why_not(found, "affine_forward") == "norm: layer 'layer' shares its weights with 'layer'"


@pytest.mark.parametrize(
    ("reads", "reason"),
    [
        (lambda norm, layer, x: (layer(norm(x)), norm(x).relu()), "relu of module"),
        (lambda norm, layer, x: (layer(y := norm(x)), y), "is an output of the model"),
    ],
)
def test_what_is_read_elsewhere_does_not_go_forward(
    reads: Callable[..., tuple[Tensor, Tensor]], reason: str
) -> None:
    class BothOutputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = jittered(nn.BatchNorm1d(4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return reads(self.norm, self.layer, x)

    assert reason in "".join(
        why
        for _, why in became(
            rewrite(BothOutputs(), (4,), "affine_forward"), "affine_forward"
        ).refused
    )


# Residual branches


class ScaledBranch(nn.Module):
    """x + a F(x) of tokens, whose F ends in a layer and a move."""

    def __init__(self, factor: Tensor, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.layer = first or nn.Identity(), nn.Linear(6, 6)
        self.factor = nn.Parameter(factor)
        self.last: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x + self.factor * self.last(self.layer(x))


@pytest.mark.parametrize("factor", [torch.tensor(0.3), torch.tensor([0.3]), torch.randn(6)])
@pytest.mark.parametrize("shape", [(6,), (5, 6)])
def test_the_factor_of_a_branch_goes_into_its_last_layer(
    factor: Tensor, shape: tuple[int, ...]
) -> None:
    found = rewrite(ScaledBranch(factor), shape, "residual_scale_fold")
    done = became(found, "residual_scale_fold")
    assert len(done.applied) + len(became(found, "fold_bn").applied) == 1
    assert {*kinds(found.graph)} <= {"linear", "conv2d", "add", "transpose"}


def test_a_factor_goes_back_through_moves() -> None:
    class MovedBranch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.factor = nn.Conv2d(3, 4, 3, padding=1), nn.Parameter(torch.rand(20, 4))

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.layer(x).flatten(2).transpose(1, 2)
            places = x.sum(1, keepdim=True).flatten(2).transpose(1, 2)
            return torch.cat([places] * 4, 2) + self.factor[:1] * tokens

    found = rewrite(MovedBranch(), (3, 4, 5), "residual_scale_fold")
    assert became(found, "residual_scale_fold").applied == ("(model)",)
    assert kinds(found.graph).count("depthwise_conv2d") == 1  # the sum over channels


def test_places_that_are_scaled_otherwise_are_told() -> None:
    found = rewrite(ScaledBranch(torch.rand(5, 6)), (5, 6), "residual_scale_fold")
    assert "scales places of one channel of layer 'layer' otherwise" in why_not(
        found, "residual_scale_fold"
    )


def test_a_branch_that_ends_in_no_layer_is_told() -> None:
    model = ScaledBranch(torch.tensor(0.3))
    model.last = nn.GELU()
    found = rewrite(model, (6,), "residual_scale_fold")
    told = why_not(found, "residual_scale_fold")
    assert told == "(model): gelu of module 'last' writes it, not a convolution or linear layer"


# Layer norms to RMS norms


def centred(graph: ir.Graph) -> list[bool]:
    return [op.attributes.centred for op in graph.ops if isinstance(op.attributes, OfPlace)]


class PreNorm(nn.Module):
    """Pre-LN blocks of torch behind a linear layer, with a last norm."""

    def __init__(self, width: int = 8, inside: bool = False, norm_first: bool = True) -> None:
        super().__init__()
        self.tokens = nn.Linear(5, width)
        layer = nn.TransformerEncoderLayer(
            width, 2 if width % 2 == 0 else 1, 12, norm_first=norm_first, batch_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.logits, self.inside = nn.LayerNorm(width), nn.Linear(width, 3), inside

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        tokens = self.blocks(self.tokens(x))
        out: Tensor = self.logits(self.norm(tokens))
        return (out, tokens) if self.inside else out


PRE_NORM: dict[str, tuple[Callable[[], nn.Module], Sequence[int]]] = {
    "vit-tiny": (lambda: vit_tiny((1, 8, 8), 10), (1, 8, 8)),
    "torch's": (PreNorm, (7, 5)),
    "torch's, of odd width": (lambda: PreNorm(7), (7, 5)),
}


@pytest.mark.parametrize("name", PRE_NORM)
@pytest.mark.parametrize(
    "rewrites", [("ln_to_rms",), ("rms_to_crms",), ("ln_to_rms", "rms_to_crms")]
)
def test_layer_norms_of_a_pre_ln_model_become_rms_norms(
    name: str, rewrites: tuple[str, ...]
) -> None:
    make, shape = PRE_NORM[name]
    model = jittered(make())
    found = rewrite(model, shape, *rewrites)
    assert {*centred(found.graph)} == {False}
    assert len(centred(found.graph)) == sum(isinstance(m, nn.LayerNorm) for m in model.modules())
    assert distance(model, found.graph, shape) <= 1e-5
    for done in (became(found, name) for name in rewrites):
        assert len(done.applied) == 1
        assert done.refused == ()
        assert done.gap <= 1e-5


def as_tokens(model: nn.Module, graph: ir.Graph) -> float:
    """By how much of its largest logit a graph of a model of tokens differs from it."""
    tokens = np.random.default_rng(0).integers(11, size=(5, 8))
    with torch.no_grad():
        own = ir.to_graph_layout(model(torch.from_numpy(tokens)).numpy())
    (found,) = evaluate_all(graph, {graph.inputs[0]: tokens.astype(np.float32)})
    return float(np.abs(found.reshape(own.shape) - own).max() / np.abs(own).max())


@pytest.mark.parametrize("name", ["ln_to_rms", "rms_to_crms"])
def test_a_table_of_tokens_writes_a_stream(name: str) -> None:
    model = jittered(char_gpt((8,), 11)).eval()
    found = rewritten(lower(model, (8,), tokens=True), [name])
    assert became(found, name).applied == ("blocks.0.norm and 6 other norms",)
    assert {*centred(found.graph)} == {False}
    assert as_tokens(model, found.graph) <= 1e-5


def test_a_table_that_makes_the_logits_too_is_refused() -> None:
    model = char_gpt((8,), 11).eval()
    model.get_submodule("logits").weight = model.get_submodule("tokens").weight
    found = rewritten(lower(model, (8,), tokens=True), ["ln_to_rms"])
    assert "shares its weights with conv2d of module 'logits'" in why_not(found, "ln_to_rms")


def test_one_channel_goes_from_all_of_the_stream() -> None:
    graph = rewrite(jittered(PreNorm()), (7, 5), "rms_to_crms").graph
    norms = [op for op in graph.ops if op.kind == "channel_norm"]
    assert {graph.tensors[op.output].shape[-1] for op in norms} == {7}


def test_post_ln_is_refused_by_name() -> None:
    found = rewritten(lower(kwt1((10, 8), 4).eval(), (10, 8)), ["ln_to_rms"])
    done = became(found, "ln_to_rms")
    assert done.applied == ()
    assert done.refused[0][0] == "blocks.0.norm"
    assert all(why.startswith("Post-LN: ") for _, why in done.refused)
    assert len(done.refused) == 25


def test_post_ln_of_torch_is_refused_by_name() -> None:
    found = rewrite(jittered(PreNorm(norm_first=False)), (7, 5), "ln_to_rms", "rms_to_crms")
    for name in ("ln_to_rms", "rms_to_crms"):
        done = became(found, name)
        assert done.applied == ()
        assert all(why.startswith("Post-LN: ") for _, why in done.refused)


def test_mix_ln_is_refused_by_name() -> None:
    class MixLn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Linear(5, 8)
            self.post, self.pre = (
                nn.TransformerEncoderLayer(8, 2, 12, norm_first=first, batch_first=True)
                for first in (False, True)
            )
            self.norm, self.logits = nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.logits(self.norm(self.pre(self.post(self.tokens(x)))))
            return out

    done = became(rewrite(jittered(MixLn()), (7, 5), "ln_to_rms"), "ln_to_rms")
    assert done.applied == ()
    names = {where.split(" ")[0]: why.split(":")[0] for where, why in done.refused}
    assert names == {"post.norm1": "Post-LN", "post.norm2": "Post-LN", "pre.norm1": "Mix-LN"}


class OneStream(nn.Module):
    """A stream that is written and read in one way each."""

    def __init__(
        self,
        width: int = 6,
        start: nn.Module | None = None,
        inner: nn.Module | None = None,
        reads: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.start = start or nn.Linear(5, width)
        self.norm, self.grow = jittered(nn.LayerNorm(width)), nn.Linear(width, 9)
        self.shrink, self.inner = nn.Linear(9, width), inner or nn.Identity()
        self.last, self.logits = jittered(nn.LayerNorm(width)), nn.Linear(width, 3)
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.start(x)
        x = x + self.inner(self.shrink(torch.relu(self.grow(self.norm(x)))))
        out: Tensor = self.logits(self.last(x))
        return out if self.reads is None else (out, self.reads(x))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: OneStream(start=nn.Identity(), width=5), "begins at the input"),
        (lambda: OneStream(inner=nn.Tanh()), "tanh of module 'inner' writes the stream"),
        (lambda: OneStream(reads=lambda x: x), "of the stream is an output of the model"),
        (
            lambda: OneStream(reads=torch.relu),
            "relu of module '(model)' reads the stream without a norm",
        ),
        (lambda: OneStream(width=1), "one channel"),
    ],
)
def test_a_stream_that_cannot_lose_its_mean_is_refused(
    model: Callable[[], nn.Module], reason: str
) -> None:
    found = rewrite(model(), (5,), "ln_to_rms", "rms_to_crms")
    for name in ("ln_to_rms", "rms_to_crms"):
        assert reason in why_not(found, name) or name == "rms_to_crms"
        assert became(found, name).applied == ()


@pytest.mark.parametrize("width", [2, 3, 4, 7])
def test_streams_of_few_channels(width: int) -> None:
    found = rewrite(OneStream(width), (5,), "ln_to_rms", "rms_to_crms")
    assert became(found, "ln_to_rms").applied == ("norm and 1 other norm",)
    assert bool(became(found, "rms_to_crms").applied) == (width > 2)


def test_pruned_weights_are_not_filled() -> None:
    model = OneStream()
    with torch.no_grad():
        model.shrink.weight *= torch.rand_like(model.shrink.weight) < 0.3
    found = rewrite(model, (5,), "ln_to_rms", "rms_to_crms")
    kept = int(np.count_nonzero(model.shrink.weight.detach()))
    for name in ("ln_to_rms", "rms_to_crms"):
        assert f"layer 'shrink' is pruned to {kept} weights, and would have" in why_not(found, name)


def test_a_layer_that_writes_a_stream_and_something_else_is_refused() -> None:
    class SharedWriter(OneStream):
        def forward(self, x: Tensor) -> Tensor:
            x = x + torch.relu(self.start(x))
            return super().forward(x)  # type: ignore[return-value]

    found = rewrite(SharedWriter(width=5, start=nn.Linear(5, 5)), (5,), "ln_to_rms")
    assert "shares its weights" in why_not(found, "ln_to_rms")


def test_an_rms_norm_of_a_stream_with_a_mean_keeps_its_channels() -> None:
    model = OneStream()
    model.norm, model.last = (jittered(nn.RMSNorm(6, eps=1e-5)) for _ in range(2))
    found = rewrite(model, (5,), "ln_to_rms", "rms_to_crms")
    assert became(found, "ln_to_rms") == Done("ln_to_rms", True)
    assert "writes a mean, which the RMS norm 'norm' sees" in why_not(found, "rms_to_crms")


# Weight and bias of norms


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("shape", [(6,), (5, 6)])
def test_weight_and_bias_of_a_norm_go_into_its_readers(
    norm: Callable[[int], nn.Module], shape: tuple[int, ...]
) -> None:
    model = nn.Sequential(nn.Linear(6, 8), jittered(norm(8)), nn.Linear(8, 3))
    found = rewrite(model, shape, "ln_affine_fold")
    (op,) = (op for op in found.graph.ops if op.kind == "channel_norm")
    weight, bias = (found.graph.constant(name) for name in op.inputs[1:])
    assert (weight == 1).all()
    assert not bias.any()
    assert became(found, "ln_affine_fold").applied == ("1",)


def test_a_norm_with_a_relu_or_another_reader_keeps_its_weight() -> None:
    model = nn.Sequential(nn.Linear(6, 8), jittered(nn.LayerNorm(8)), nn.ReLU(), nn.Linear(8, 3))
    found = rewrite(model, (6,), "ln_affine_fold")
    assert "relu of module '2' reads it" in why_not(found, "ln_affine_fold")


def rounded(weight: Floats) -> Floats:
    """Weights [out, in] as int8 has them, a step per row."""
    step = np.abs(weight).max(1, keepdims=True) / 127
    return np.asarray(np.rint(weight / step) * step)


def test_growth_is_what_int8_weights_err_more() -> None:
    rng = np.random.default_rng(0)
    scale = np.exp(rng.normal(0, 1, 64))
    weight = rng.standard_normal((200, 64))
    values = rng.standard_normal((2000, 64))
    data = {
        "x": ir.Tensor("x", (1, 64)),
        "w": ir.Tensor("w", (200, 64), "float32", weight.astype(np.float32)),
        "b": ir.Tensor("b", (200,), "float32", np.zeros(200, np.float32)),
        "y": ir.Tensor("y", (1, 200)),
    }
    layer = ir.Op("linear", ("x", "w", "b"), ("y",))
    graph = ir.Graph(data, (layer,), ("x",), ("y",))
    before = (values * scale) @ (rounded(weight) - weight).T
    after = values @ (rounded(weight * scale) - weight * scale).T
    measured = np.sqrt(np.square(after).mean() / np.square(before).mean())
    assert ln_affine_fold.growth(graph, layer, scale) == pytest.approx(measured, rel=0.1)
    assert measured > ln_affine_fold.MOST_GROWTH


def test_a_weight_that_would_harm_int8_stays() -> None:
    norm = nn.LayerNorm(32)
    with torch.no_grad():
        norm.weight[0] = 30.0
    model = nn.Sequential(nn.Linear(6, 32), norm, nn.Linear(32, 3))
    found = rewrite(model, (6,), "ln_affine_fold")
    assert "int8 weights of layer '2' would err" in why_not(found, "ln_affine_fold")


# Layers that become one


class Convs(nn.Module):
    def __init__(self, *layers: nn.Module, inside: bool = False) -> None:
        super().__init__()
        self.layers, self.inside = nn.Sequential(*layers), inside

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        first: Tensor = self.layers[0](x)
        last: Tensor = self.layers[1:](first)
        return (last, first) if self.inside else last


MERGED: dict[str, tuple[Callable[[], nn.Module], Sequence[int]]] = {
    "linear layers": (lambda: Convs(nn.Linear(6, 40), nn.Linear(40, 5)), (6,)),
    "layers of tokens": (lambda: Convs(nn.Linear(6, 40), nn.Linear(40, 5)), (7, 6)),
    "one pixel behind": (
        lambda: Convs(nn.Conv2d(2, 40, 3, 2, 1, 2), nn.Conv2d(40, 3, 1)),
        (2, 11, 9),
    ),
    "one pixel behind, with a stride": (
        lambda: Convs(nn.Conv2d(2, 60, 3, 2, 1), nn.Conv2d(60, 3, 1, 2)),
        (2, 11, 10),
    ),
    "one pixel before": (lambda: Convs(nn.Conv2d(2, 40, 1), nn.Conv2d(40, 3, 3)), (2, 6, 6)),
    "one pixel before, without bias": (
        lambda: Convs(nn.Conv2d(2, 40, 1, bias=False), nn.Conv2d(40, 3, 3, padding=1)),
        (2, 6, 6),
    ),
    "three": (lambda: Convs(nn.Linear(6, 40), nn.Linear(40, 40), nn.Linear(40, 5)), (6,)),
    "width one": (lambda: Convs(nn.Linear(1, 1), nn.Linear(1, 1)), (1,)),
}


@pytest.mark.parametrize("name", MERGED)
def test_two_layers_become_one(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MERGED[name]
    found = rewrite(make(), shape, "lowrank_merge")
    assert sum(kind in ("conv2d", "linear") for kind in kinds(found.graph)) == 1
    first, last = found.sizes[-2:]
    assert last.kept <= first.kept
    assert last.kept_macs <= first.kept_macs


REFUSED: dict[str, tuple[Callable[[], nn.Module], Sequence[int], str]] = {
    "what is of low rank": (
        lambda: Convs(nn.Linear(30, 3), nn.Linear(3, 30)),
        (30,),
        "it and what reads it have 180 weights that are not zero; merged 900",
    ),
    "a ReLU between": (
        lambda: Convs(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.Linear(40, 40)),
        (6,),
        "merged",
    ),
    "two windows": (
        lambda: Convs(nn.Conv2d(2, 40, 3), nn.Conv2d(40, 3, 3)),
        (2, 9, 9),
        "both have windows, it and layer 'layers.1'",
    ),
    "biases that are not padded": (
        lambda: Convs(nn.Conv2d(2, 40, 1), nn.Conv2d(40, 3, 3, padding=1)),
        (2, 6, 6),
        "pads what it writes with zeros, not with its biases",
    ),
    "a padded pixel": (
        lambda: Convs(nn.Conv2d(2, 40, 3), nn.Conv2d(40, 3, 1, padding=1)),
        (2, 6, 6),
        "pads what it writes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_become_one_is_told(name: str) -> None:
    make, shape, reason = REFUSED[name]
    if name == "a ReLU between":
        found = rewrite(make(), shape, "lowrank_merge")
        assert sum(kind == "linear" for kind in kinds(found.graph)) == 2
        return
    assert reason in why_not(rewrite(make(), shape, "lowrank_merge"), "lowrank_merge")


def test_a_layer_that_is_an_output_too_stays() -> None:
    model = Convs(nn.Linear(6, 40), nn.Linear(40, 5), inside=True)
    found = rewrite(model, (6,), "lowrank_merge")
    assert "is an output of the model" in why_not(found, "lowrank_merge")


def test_pruned_layers_are_merged_by_what_is_left_of_them() -> None:
    first, second = nn.Linear(8, 40), nn.Linear(40, 8)
    with torch.no_grad():
        for each in (first, second):
            each.weight *= torch.rand_like(each.weight) < 0.04
    found = rewrite(Convs(first, second), (8,), "lowrank_merge")
    assert len(became(found, "lowrank_merge").applied) == 1
    assert found.sizes[-1].kept < found.sizes[-2].kept


# Any graph


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_give_what_they_gave(seed: int) -> None:
    graph = a_float_graph(np.random.default_rng(seed))
    before = passes.optimise(graph)
    names = EXACT if seed % 2 else [EXACT[seed // 2 % len(EXACT)]]
    found = rewritten(graph, names)
    x = inputs(ir.from_graph_layout(np.zeros((1, *graph.tensors["x"].shape[1:]))).shape[1:])
    for was, is_now in zip(outputs(before, x), outputs(found.graph, x), strict=True):
        assert np.abs(is_now - was).max() <= 2 * TOLERANCE * np.abs(was).max()
    assert found.graph.outputs == before.outputs


def test_random_graphs_have_something_to_rewrite() -> None:
    counts = dict.fromkeys(EXACT, 0)
    for seed in range(120):
        for done in rewritten(a_float_graph(np.random.default_rng(seed)), EXACT).done:
            counts[done.kind] += len(done.applied)
    rare = {"rms_to_crms", "ln_to_rms"}  # most random streams begin or end otherwise
    assert all(count for name, count in counts.items() if name not in rare), counts


# The engine of rewrites


def doubles(places: Callable[[ir.Graph, Hints], object]) -> Rewrite:
    """A rewrite that claims to be exact, and doubles the first layer."""

    def transform(graph: ir.Graph, op: ir.Op) -> ir.Graph:
        weight = graph.tensors[op.inputs[1]]
        assert weight.data is not None
        twice = ir.Tensor(weight.name, weight.shape, "float32", weight.data * 2)
        return ir.Graph(
            {**graph.tensors, weight.name: twice}, graph.ops, graph.inputs, graph.outputs
        )

    return Rewrite("doubles", "", "", True, places, transform)  # type: ignore[arg-type]


def test_a_rewrite_that_changes_the_probe_is_not_kept() -> None:
    graph = lower(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), (3,))

    def places(graph: ir.Graph, given: Hints):  # type: ignore[no-untyped-def]
        yield from (
            Place(op.output, op.source, found=op) for op in graph.ops if op.kind == "linear"
        )

    same, done = apply(graph, doubles(places), Hints())
    assert same is graph
    assert done.applied == ()
    assert [where for where, _ in done.refused] == ["0", "2"]
    assert all("the probe differs by" in why for _, why in done.refused)


def test_names_of_rewrites_are_checked() -> None:
    with pytest.raises(ExportError, match="'ln_to_rns'; give some of exact, merge_affines"):
        asked(["ln_to_rns"])
    assert [row.kind for row in asked(["exact"])] == [
        row.kind for row in REWRITES.values() if row.exact and not row.opt_in
    ]
    always = [row.kind for row in REWRITES.values() if row.always]
    assert [row.kind for row in asked([])] == always


def test_no_pair_of_rewrites_undoes_another() -> None:
    model = jittered(PreNorm()).eval()
    graph = lower(model, (7, 5))
    for pair in itertools.combinations(EXACT, 2):
        found = rewritten(graph, pair)
        assert distance(model, found.graph, (7, 5)) <= FUSED
        assert rewritten(found.graph, pair).sizes[-1] == found.sizes[-1]
