"""Transformers, and what models add and multiply of their own, train as torch trains them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedkit
from fedkit.core.errors import EngineError, PlanError
from fedkit.engine.base import LocalTraining
from fedkit.engine.choose import make_engine
from fedkit.engine.flops import positions
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.plan import load_plan, save_plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.nn.layers import prunable_weights
from fedkit.nn.zoo import MODELS
from fedkit.sparse.state import ModelState
from fedkit.tasks.losses import CrossEntropy
from fedkit.tasks.task import Examples, Task, cross_entropy
from tests.engine.sparse.cases import pruned
from tests.sets import slow_but
from tests.tokens import ATTENTION, OwnHeads, made

CLASSES, TOKENS, SIZE = 3, 5, 6
STEPS = LocalTraining(epochs=5, batch_size=5, lr=0.05, momentum=0.9, weight_decay=1e-3)
"""Twenty steps over 19 examples."""


def data(shape: tuple[int, ...]) -> Examples:
    random = np.random.default_rng(1)
    inputs = random.standard_normal((19, *shape)).astype(np.float32)
    return Examples(inputs, random.integers(0, CLASSES, 19))


def assert_trains_as_torch(
    model: nn.Module, shape: tuple[int, ...], density: float = 1.0, near: float = 1e-4
) -> ModelState:
    """Train twenty steps, on one thread and on three, which give the same bits."""
    plan = capture(model, shape)
    theirs = TorchEngine(model, cross_entropy)
    state = pruned(theirs.initial_state(), density)
    wanted, loss = theirs.train(state, data(shape), STEPS, 0)
    one, three = (
        SparseEngine(plan, threads=threads).train(state, data(shape), STEPS, 0)
        for threads in (1, 3)
    )
    assert one[1] == pytest.approx(loss, rel=near) and one[1] == three[1]
    for name, value in wanted.weights.items():
        assert np.array_equal(one[0].weights[name], three[0].weights[name]), name
        scale = np.abs(value).max()
        assert np.abs(one[0].weights[name] - value).max() <= near * scale, name
        assert (value != state.weights[name]).any(), f"{name} does not learn"
    return one[0]


@pytest.mark.parametrize("density", [0.4, 1.0])
@pytest.mark.parametrize("kind", ATTENTION)
def test_models_with_attention_train_as_torch_trains_them(kind: str, density: float) -> None:
    assert_trains_as_torch(*made(kind), density)


@pytest.mark.parametrize("kind", ATTENTION)
def test_weights_of_all_places_with_all_are_stored_only_where_a_model_spells_them(
    kind: str,
) -> None:
    kinds = [op.kind for op in capture(*made(kind)).ops]
    if kind in ("fused heads", "own heads"):
        assert kinds.count("product") == 2 and kinds.count("softmax") == 1
    else:
        assert kinds.count("attention") == 1 and not {"product", "softmax"} & set(kinds)


@pytest.mark.parametrize(
    ("name", "shape"),
    slow_but([("vit-tiny", (1, 8, 8))], [("vit-tiny", (1, 8, 8)), ("kwt-1", (4, 6))]),
)
def test_transformers_of_the_zoo(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = MODELS[name].build(shape, CLASSES)
    assert not {"product", "softmax"} & {op.kind for op in capture(model, shape).ops}
    assert_trains_as_torch(model, shape, 0.5, near=1e-3 if name == "kwt-1" else 1e-4)


# Masks


class Masked(nn.Module):
    """Attention under a mask, in two heads."""

    def __init__(self, mask: Any = None, causal: bool = False) -> None:
        super().__init__()
        self.grow, self.head = nn.Linear(4, SIZE), nn.Linear(SIZE * TOKENS, CLASSES)
        self.causal = causal
        if isinstance(mask, nn.Parameter):
            self.mask: Any = mask
        else:
            self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grow(x).unflatten(-1, (2, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(x, x, x, self.mask, is_causal=self.causal)
        out: Tensor = self.head(mixed.transpose(1, 2).flatten(1))
        return out


LOWER = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
NEAR = LOWER & LOWER.mT.roll(2, 1).logical_or(torch.eye(TOKENS, dtype=torch.bool))

MASKS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "none": (lambda: Masked(), True),
    "causal": (lambda: Masked(causal=True), True),
    "lower triangle": (lambda: Masked(LOWER), True),
    "lower triangle of infinities": (
        lambda: Masked(nn.Transformer.generate_square_subsequent_mask(TOKENS)),
        True,
    ),
    "all seen": (lambda: Masked(torch.ones(TOKENS, TOKENS, dtype=torch.bool)), True),
    "some left out": (lambda: Masked(NEAR), False),
    "numbers": (lambda: Masked(torch.randn(2, TOKENS, TOKENS)), False),
    "learned": (lambda: Masked(nn.Parameter(torch.randn(2, TOKENS, TOKENS))), False),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks(kind: str) -> None:
    torch.manual_seed(3)
    make, is_one = MASKS[kind]
    model = make()
    if kind == "learned":
        with pytest.raises(PlanError, match="a mask is learned or computed from parameters"):
            capture(model, (TOKENS, 4))
        return
    assert ("attention" in [op.kind for op in capture(model, (TOKENS, 4)).ops]) == is_one
    assert_trains_as_torch(model, (TOKENS, 4))


class OwnCall(nn.Module):
    """torch's attention, called as a test says."""

    def __init__(self, call: Callable[[nn.MultiheadAttention, Tensor], Tensor], **how: Any) -> None:
        super().__init__()
        self.grow, self.head = nn.Linear(4, SIZE), nn.Linear(SIZE, CLASSES)
        self.layer = nn.MultiheadAttention(SIZE, 2, **{"batch_first": True, **how})
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.call(self.layer, self.grow(x)).mean(1))
        return out


def test_attention_to_others_has_a_weight_for_each() -> None:
    cross = OwnCall(lambda layer, x: layer(x[:, :2], x, x)[0])
    with pytest.raises(PlanError, match="its weights are not parameters of the model, but comp"):
        capture(cross, (TOKENS, 4))
    own = OwnCall(lambda layer, x: layer(x[:, :2], x, x)[0], kdim=SIZE, vdim=SIZE)
    own.layer._qkv_same_embed_dim = False  # as it is where keys have another size
    for name in ("q", "k", "v"):
        setattr(own.layer, f"{name}_proj_weight", nn.Parameter(torch.randn(SIZE, SIZE) / 2))
    own.layer.register_parameter("in_proj_weight", None)
    own.layer.in_proj_bias = None  # type: ignore[assignment]
    assert_trains_as_torch(own, (TOKENS, 4))


def test_dropout_of_weights_is_no_part_of_a_plan() -> None:
    dropping = OwnCall(lambda layer, x: layer(x, x, x)[0], dropout=0.2)
    with pytest.raises(
        PlanError, match=r"attention drops weights, p = 0\.2, training would be random"
    ):
        capture(dropping, (TOKENS, 4))


def test_every_weight_of_torchs_attention_is_pruned_and_counted() -> None:
    spelt = nn.Sequential(nn.Linear(4, SIZE), OwnHeads(SIZE, 2))
    layer = nn.Sequential(nn.Linear(4, SIZE), nn.TransformerEncoderLayer(SIZE, 2, 8))
    theirs, own = (positions(model, (TOKENS, 4)).positions for model in (layer, spelt))
    assert set(prunable_weights(layer)) == set(theirs)
    assert theirs["1.self_attn.in_proj_weight"] == own["1.query.weight"] == TOKENS
    assert theirs["1.self_attn.out_proj.weight"] == own["1.out.weight"] == TOKENS


def test_a_model_is_left_as_it_was() -> None:
    model, shape = made("layer")
    was = torch.backends.mha.get_fastpath_enabled()
    capture(model, shape)
    assert torch.backends.mha.get_fastpath_enabled() == was
    assert all("forward" not in vars(module) for module in model.modules())


# Parameters and numbers of a model's own


class Own(nn.Module):
    """Tokens, what a test makes of them, and logits."""

    def __init__(self, change: Callable[[Own, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.grow = nn.Linear(4, SIZE)
        self.own = nn.Parameter(torch.rand(shape) + 0.5)
        self.register_buffer("numbers", torch.randn(TOKENS, SIZE))
        self.change = change
        tokens = change(self, torch.zeros(2, TOKENS, SIZE)).shape[1]
        self.head = nn.Linear(tokens * SIZE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.change(self, self.grow(x)).tanh().flatten(1))
        return out


CHANGES: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "of places": (lambda m, x: x + m.own, (1, TOKENS, SIZE)),
    "of places, without examples": (lambda m, x: m.own + x, (TOKENS, SIZE)),
    "with a dimension for them": (lambda m, x: x + m.own.unsqueeze(0), (TOKENS, SIZE)),
    "indexed by none": (lambda m, x: x + m.own[None], (TOKENS, SIZE)),
    "in another shape": (lambda m, x: x + m.own.view(TOKENS, SIZE), (TOKENS * SIZE,)),
    "all of a slice": (lambda m, x: x + m.own[:, : x.shape[1]], (1, TOKENS, SIZE)),
    "of features": (lambda m, x: x * m.own, (SIZE,)),
    "of one place each": (lambda m, x: x * m.own, (TOKENS, 1)),
    "one number": (lambda m, x: x * m.own, ()),
    "one number in a row": (lambda m, x: m.own * x, (1,)),
    "taken off": (lambda m, x: x - m.own, (TOKENS, SIZE)),
    "less a value": (lambda m, x: m.own - x, (SIZE,)),
    "numbers of places": (lambda m, x: x * m.own + m.numbers, (SIZE,)),
    "divided by numbers": (lambda m, x: x * m.own / (m.numbers + 9), (SIZE,)),
    "a token in front": (
        lambda m, x: torch.cat([m.own.expand(x.shape[0], -1, -1), x], 1),
        (1, 1, SIZE),
    ),
    "tokens behind": (
        lambda m, x: torch.cat([x, m.own.repeat(x.shape[0], 1, 1)], 1),
        (1, 2, SIZE),
    ),
    "a token of two dimensions": (
        lambda m, x: torch.cat([m.own.expand(x.shape[0], 2, SIZE), x], 1),
        (2, SIZE),
    ),
    "zeros in front": (
        lambda m, x: torch.cat([torch.zeros(x.shape[0], 1, SIZE), x * m.own], 1),
        (SIZE,),
    ),
    "learned queries": (
        lambda m, x: F.scaled_dot_product_attention(m.own.expand(x.shape[0], -1, -1), x, x),
        (1, 2, SIZE),
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_parameters_beside_values(kind: str, tmp_path: Any) -> None:
    torch.manual_seed(2)
    change, shape = CHANGES[kind]
    model = Own(change, *shape)
    assert_trains_as_torch(model, (TOKENS, 4))
    plan = capture(model, (TOKENS, 4))
    save_plan(plan, tmp_path / "a.plan")
    assert load_plan(tmp_path / "a.plan") == plan


@pytest.mark.parametrize(
    ("shape", "own"), [((4, 6, 6), (4, 1, 1)), ((4, 6, 6), (6, 6)), ((4, 6, 6), (6,)), ((4,), (4,))]
)
def test_parameters_beside_maps_and_features(shape: tuple[int, ...], own: tuple[int, ...]) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Parameter(torch.rand(own) + 0.5)
            self.first = nn.Conv2d(4, 4, 3, 1, 1) if len(shape) == 3 else nn.Linear(4, 4)
            self.norm = nn.BatchNorm2d(4) if len(shape) == 3 else nn.BatchNorm1d(4)
            self.head = nn.Linear(4 if len(shape) == 1 else 144, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.first(x) * self.own).relu()
            out: Tensor = self.head((self.own + x).flatten(1))
            return out

    class Once(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.norm(self.first(x) * self.own).relu().flatten(1))
            return out

    with pytest.raises(PlanError, match=r"own: Parameter \(2 ops use it\)"):
        capture(Scaled(), shape)
    torch.manual_seed(0)
    assert_trains_as_torch(Once(), shape, near=1e-3)


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...], str]] = {
    "computed": (lambda m, x: x + 2 * m.own, (TOKENS, SIZE), "computed from parameters"),
    "turned": (lambda m, x: x + m.own.mT, (SIZE, TOKENS), "computed from parameters"),
    "part of it": (lambda m, x: x + m.own[:TOKENS], (9, SIZE), "computed from parameters"),
    "widens": (lambda m, x: x[:, :1] + m.own, (TOKENS, SIZE), "a parameter of shape"),
    "divides": (lambda m, x: x / m.own, (SIZE,), "a division by a parameter"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_parameter_beside_a_value_is_refused(kind: str) -> None:
    change, shape, reason = REFUSED[kind]
    with pytest.raises(PlanError, match=reason):
        capture(Own(change, *shape), (TOKENS, 4))


# A number without a dimension


class OneNumber(nn.Module):
    """A model whose values are multiplied by one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.grow, self.head = nn.Linear(4, SIZE), nn.Linear(SIZE, CLASSES)
        self.factor = nn.Parameter(torch.tensor(0.8))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head((self.grow(x) * self.factor).relu())
        return out


@pytest.mark.parametrize("engine", ["torch", "sparse"])
def test_a_number_without_a_dimension_is_trained_and_travels(engine: str) -> None:
    examples = data((4,))
    task = Task("one number", OneNumber, lambda: examples, lambda: examples)
    settings: dict[str, Any] = {"engine": engine, "density": 0.5, "batch_size": 4}
    found = fedkit.run(task, devices=2, rounds=2, partition="iid", **settings)
    factor = found.state.weights["factor"]
    assert factor.shape == () and factor != np.float32(0.8)


# Tokens


class Tokens(nn.Module):
    """An embedding, places by another one, and logits of each step."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(9, SIZE, **how), nn.Embedding(TOKENS, SIZE)
        self.head = nn.Linear(SIZE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        known = self.table(x) + self.places(torch.arange(x.shape[1]))
        out: Tensor = self.head(known.tanh()).transpose(1, 2)
        return out


def tokens_of(rows: int, length: int = TOKENS) -> Examples:
    random = np.random.default_rng(1)
    return Examples(random.integers(0, rows, (19, length)), random.integers(0, 3, (19, length)))


@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (Tokens, 9),
        (lambda: Tokens(padding_idx=2), 9),
        (lambda: MODELS["char-gpt"].build((TOKENS,), CLASSES), CLASSES),
    ],
)
def test_models_of_tokens(make: Callable[[], nn.Module], rows: int) -> None:
    torch.manual_seed(0)
    model, examples = make(), tokens_of(rows)
    plan = capture(model, (TOKENS,), CrossEntropy(), tokens=True)
    theirs = TorchEngine(model, F.cross_entropy)
    state = theirs.initial_state()
    wanted, loss = theirs.train(state, examples, STEPS, 0)
    for threads in (1, 3):
        found, own = SparseEngine(plan, threads=threads).train(state, examples, STEPS, 0)
        assert own == pytest.approx(loss, rel=1e-5)
        for name, value in wanted.weights.items():
            assert np.abs(found.weights[name] - value).max() <= 1e-4 * np.abs(value).max(), name


def test_tokens_that_no_row_is_for_are_refused() -> None:
    model = Tokens()
    engine = SparseEngine(capture(model, (TOKENS,), CrossEntropy(), tokens=True))
    state = TorchEngine(model, F.cross_entropy).initial_state()
    for wrong in (-1, 9):
        inputs = np.full((3, TOKENS), wrong)
        with pytest.raises(EngineError, match=rf"tokens of {wrong} to {wrong}; .* rows 0 to 8"):
            engine.outputs(state, inputs)
    with pytest.raises(EngineError, match=r"inputs are float32 .*; the plan takes .* int64"):
        engine.outputs(state, np.zeros((3, TOKENS), np.float32))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Tokens(scale_grad_by_freq=True), "scaled by frequency"),
        (lambda: Tokens(max_norm=1.0), "cannot be captured|cannot be traced"),
    ],
)
def test_embeddings_that_do_more_are_refused(make: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        capture(make(), (TOKENS,), CrossEntropy(), tokens=True)


def test_a_task_of_tokens_runs_without_torch() -> None:
    task = Task("steps", Tokens, lambda: tokens_of(9), lambda: tokens_of(9), CrossEntropy())
    engine, notice = make_engine(task, "", 0, "auto")
    assert isinstance(engine, SparseEngine), notice
    found = fedkit.run(task, devices=2, rounds=2, partition="iid", density=0.5, batch_size=4)
    assert np.isfinite(found.state.weights["table.weight"]).all()
