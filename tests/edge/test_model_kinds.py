"""Models as people have them: what is exported computes the model, or it is refused by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from edge.export import float_graph, int8_graph
from edge.quantize.truth import ExportWarning
from fedkit.core.errors import ExportError
from fedkit.graph import from_torch
from fedkit.graph.interpret import evaluate

Floats = NDArray[np.float32]


def inputs() -> Floats:
    return np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))


def changed(change: Callable[[Any], Any]) -> nn.Module:
    """Return an MLP whose first layer something was done to."""
    model = mlp()
    change(model[0])
    return model


def pruned_and_run() -> nn.Module:
    model = changed(lambda layer: prune.l1_unstructured(layer, "weight", 0.5))
    model(torch.zeros(1, 5))  # the masked weight becomes what cannot be copied
    return model


class Shared(nn.Module):
    """Two layers with one weight, and a module that nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.never = nn.Linear(5, 5), nn.Linear(5, 5), nn.LSTM(5, 5)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(F.relu(self.a(x)))
        return y


class Training(nn.Module):
    """Does more in training than in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.drop = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x))
        if self.training:
            x = x + torch.randn_like(x)
        y: Tensor = self.drop(F.relu(x))
        return y


class Own(nn.Module):
    """A linear layer, and a function of what it gives."""

    def __init__(self, then: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.then = nn.Linear(5, 3), then

    def forward(self, x: Tensor) -> Any:
        return self.then(self.layer(x))


EQUAL: dict[str, Callable[[], nn.Module]] = {
    "pruned": lambda: changed(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
    "pruned and run": pruned_and_run,
    "weight norm": lambda: changed(parametrizations.weight_norm),
    "spectral norm": lambda: changed(parametrizations.spectral_norm),
    "frozen": lambda: changed(lambda layer: layer.requires_grad_(False)),
    "observed": lambda: changed(lambda layer: layer.register_forward_hook(lambda *_: None)),
    "shared": Shared,
    "in training": lambda: Training().train(),
    "double": lambda: mlp().double(),
    "half": lambda: mlp().half(),
    "in a dictionary": lambda: Own(lambda y: {"logits": y}),
    "in a tuple": lambda: Own(lambda y: (y,)),
    "a loop": lambda: Own(lambda y: F.relu(F.relu(y) + y) + y),
    "twice": lambda: Own(lambda y: torch.cat([y, y], 1)),
}


@pytest.mark.parametrize("kind", EQUAL)
def test_the_graph_computes_the_model(kind: str) -> None:
    model, x = EQUAL[kind](), inputs()
    was = model.training
    found = evaluate(float_graph(model, (5,)), x)
    assert model.training == was
    with torch.no_grad():
        wanted = model.double().eval()(torch.from_numpy(x).double())
    if isinstance(wanted, dict | tuple):
        (wanted,) = wanted.values() if isinstance(wanted, dict) else wanted
    assert np.abs(found - wanted.numpy()).max() <= 1e-5 * np.abs(wanted.numpy()).max() + 1e-6
    int8_graph(model.float(), x)


def counting() -> Callable[[Tensor], Tensor]:
    """Return what doubles every value from its second call on, as code with a state does."""
    calls = iter([1] + [2] * 100)
    return lambda y: F.relu(y) if next(calls) == 1 else F.relu(y) + F.relu(y)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "outputs by name": (
        lambda: Own(lambda y: {"a": y, "b": y + y}),
        "returns a dict of 2 tensors.*return a tuple",
    ),
    "random": (lambda: Own(lambda y: y + torch.rand(3)), "'[(]model[)]'.*draws random numbers"),
    "numpy's": (lambda: Own(lambda y: y + np.random.rand()), "Own draws random numbers"),
    "python's": (lambda: Own(lambda y: y + random.random()), "Own draws random numbers"),
    "dropout": (lambda: Own(lambda y: F.dropout(y, 0.5, True)), "draws random numbers"),
    "by data": (lambda: Own(lambda y: y if y.sum() > 0 else -y), "control flow that depends"),
    "a state": (lambda: Own(counting()), "gives outputs that differ from the model's own"),
    "a changing hook": (
        lambda: changed(lambda layer: layer.register_forward_hook(lambda m, x, y: torch.sin(y))),
        "module '0': aten.sin",
    ),
    "a function": (lambda: F.relu, "the model is a .*function.*; give a torch.nn.Module"),
    "nothing": (nn.Identity, "computes nothing"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_graph_computes_is_refused_by_name(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(ExportError, match=message):
        int8_graph(make(), inputs())


@pytest.mark.parametrize("draw", [torch.rand, np.random.rand, lambda _: random.random()])
def test_a_thread_that_draws_during_the_trace_is_not_the_model(
    draw: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the heartbeat of Flower does, from Python's generator."""
    traced = from_torch._traced

    def beside_a_thread(*args: Any) -> Any:
        draw(1)
        return traced(*args)

    monkeypatch.setattr(from_torch, "_traced", beside_a_thread)
    assert int8_graph(mlp(), inputs()).ops


def magnifying() -> nn.Module:
    """Return what divides what is left of almost equal values by next to nothing.

    They are 1 and some roundings of float32, as behind a layer of which nearly all is pruned.
    """
    torch.manual_seed(0)
    first, norm = nn.Linear(5, 5), nn.BatchNorm1d(5)
    assert norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        first.weight.mul_(3e-7)
        first.bias.fill_(1)
        norm.running_mean.fill_(1)
        norm.running_var.fill_(0)
        norm.weight.fill_(1e4)
    return nn.Sequential(first, norm, nn.ReLU(), nn.Linear(5, 3))


def test_a_model_that_magnifies_roundings_is_exported_and_told_of() -> None:
    with pytest.warns(ExportWarning, match="depend by .* on how float32 is rounded"):
        int8_graph(magnifying(), inputs(), accept_error=True)


def test_what_differs_by_more_than_roundings_is_refused_in_such_a_model_too() -> None:
    calls = iter([1] + [2] * 100)

    class Counting(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x)
            return y if next(calls) == 1 else y + 1e6

    with pytest.raises(ExportError, match="differ from the model's own"):
        int8_graph(Counting(magnifying()), inputs(), accept_error=True)


class Words(nn.Module):
    """Looks words up."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 4), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.words(x).flatten(1))
        return y


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (Words(), (3,), r"module 'words' \(Embedding\) reads whole numbers"),
        (nn.Conv2d(3, 4, 3), (32, 30, 3), r"look like \(height, width, channels\).*np\.moveaxis"),
        (nn.Conv1d(3, 4, 3), (30, 3), r"look like \(length, channels\).*np\.moveaxis"),
    ],
)
def test_inputs_that_do_not_fit_show_the_way_out(
    model: nn.Module, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        float_graph(model, shape)


def test_a_transformer_whose_tokens_see_nothing_is_refused_in_few_lines() -> None:
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.patches = nn.Conv2d(3, 8, 4, 4)
            self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            mask = torch.full((4, 4), float("-inf"))
            y: Tensor = self.head(self.blocks(tokens, mask, is_causal=False).mean(1))
            return y

    with pytest.raises(ExportError, match=r"\d+ op\(s\).*cannot be exported") as refused:
        float_graph(Blind(), (3, 8, 8))
    lines = str(refused.value).splitlines()
    assert len(lines) <= 10 and any("self_attn" in line and "other" in line for line in lines)
