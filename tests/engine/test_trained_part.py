"""Training some weights alone: as a plain loop of torch with the others frozen, in all engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedkit.engine.base import Engine, GradientSums, LocalTraining
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.own_loop import OwnLoopEngine
from fedkit.engine.plan.capture import capture
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples, cross_entropy

HOW = LocalTraining(epochs=2, batch_size=7, lr=0.05, momentum=0.9, weight_decay=1e-2)
SHAPE, CLASSES, COUNT = (2, 5, 3), 3, 14


class Block(nn.Module):
    """Every kind of norm, a branch, a convolution in groups and a layer that runs dense."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.deep = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.gn = nn.GroupNorm(2, 4)
        self.late = nn.Conv2d(4, 6, (3, 1), stride=2)
        self.plain = nn.BatchNorm2d(6, affine=False)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.gn(self.deep(x)) + x)
        x = torch.relu(self.plain(self.late(x)))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


def model() -> nn.Module:
    torch.manual_seed(0)
    made = Block()
    with torch.no_grad():
        for norm in (made.bn, made.gn):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
    return made


def data() -> Examples:
    rng = np.random.default_rng(1)
    return Examples(
        rng.standard_normal((COUNT, *SHAPE), np.float32), rng.integers(0, CLASSES, COUNT)
    )


def state_of(engine: Engine) -> ModelState:
    """Half of every layer but the last, which stays dense."""
    rng = np.random.default_rng(2)
    shapes = engine.layout.prunable_shapes
    masks = {n: rng.random(s) < (1.0 if n == "fc.weight" else 0.6) for n, s in shapes.items()}
    return engine.initial_state().with_masks(masks)


def plain_loop(state: ModelState, trained: frozenset[str]) -> dict[str, NDArray[np.float32]]:
    """SGD on the named weights, as anybody writes it; masks are laid over after every step."""
    net = model()
    names = dict(net.named_parameters())
    with torch.no_grad():
        for name, value in state.weights.items():
            names[name].copy_(torch.from_numpy(value.copy()))
    for name, parameter in names.items():
        parameter.requires_grad_(name in trained)
    sgd = torch.optim.SGD(
        [p for p in net.parameters() if p.requires_grad],
        lr=HOW.lr,
        momentum=HOW.momentum,
        weight_decay=HOW.weight_decay,
    )
    examples, order = data(), np.random.default_rng(3)
    for _ in range(HOW.epochs):
        for part in np.array_split(order.permutation(COUNT), COUNT // HOW.batch_size):
            sgd.zero_grad()
            outputs = net(torch.from_numpy(examples.inputs[part]))
            F.cross_entropy(outputs, torch.from_numpy(examples.targets[part])).backward()
            sgd.step()
            with torch.no_grad():
                for name, mask in state.masks.items():
                    names[name].mul_(torch.from_numpy(mask))
    return {name: parameter.detach().numpy() for name, parameter in names.items()}


def own_loop(net: nn.Module) -> float:
    """The same by a user, who knows nothing of what is trained."""
    sgd = torch.optim.SGD(
        [p for p in net.parameters() if p.requires_grad],
        lr=HOW.lr,
        momentum=HOW.momentum,
        weight_decay=HOW.weight_decay,
    )
    examples, order, losses = data(), np.random.default_rng(3), []
    for _ in range(HOW.epochs):
        for part in np.array_split(order.permutation(COUNT), COUNT // HOW.batch_size):
            sgd.zero_grad()
            outputs = net(torch.from_numpy(examples.inputs[part]))
            loss = F.cross_entropy(outputs, torch.from_numpy(examples.targets[part]))
            loss.backward()
            sgd.step()
            losses.append(loss.item())
    return float(np.mean(losses))


def torch_engine() -> TorchEngine:
    return TorchEngine(model(), cross_entropy)


def planned(make: Callable[..., Engine], **how: object) -> Callable[[], Engine]:
    return lambda: make(capture(model(), SHAPE), torch_engine().initial_state(), **how)


ENGINES: dict[str, Callable[[], Engine]] = {
    "torch": torch_engine,
    "own loop": lambda: OwnLoopEngine(model(), cross_entropy, own_loop),
    "sparse": planned(SparseEngine),
    "sparse, 2 threads": planned(SparseEngine, threads=2),
    "sparse, plain C": planned(SparseEngine, simd="plain"),
    "integer": planned(IntegerEngine),
    "integer, numpy": planned(IntegerEngine, backend="numpy"),
}
FLOATS = [name for name in ENGINES if not name.startswith("integer")]

ALL = frozenset(name for name, _ in model().named_parameters())
TRAINED = {
    "norms": frozenset({"bn.weight", "bn.bias", "gn.weight", "gn.bias"}),
    "head": frozenset({"fc.weight", "fc.bias"}),
    "first layer": frozenset({"stem.weight"}),
    "a bias": frozenset({"deep.bias"}),
    "half of a norm": frozenset({"gn.bias", "bn.weight", "late.weight"}),
    "all": ALL,
}


@pytest.mark.parametrize("which", TRAINED)
@pytest.mark.parametrize("name", FLOATS)
def test_as_a_plain_loop_with_the_rest_frozen(name: str, which: str) -> None:
    engine = ENGINES[name]()
    state, trained = state_of(engine), TRAINED[which]
    found, _ = engine.train(state, data(), replace(HOW, trained=trained), seed=3)
    expected = plain_loop(state, trained)
    for weight, value in found.weights.items():
        if weight in trained:
            np.testing.assert_allclose(value, expected[weight], rtol=2e-4, atol=2e-5)
        else:
            assert value.tobytes() == state.weights[weight].tobytes(), weight


@pytest.mark.parametrize("which", TRAINED)
@pytest.mark.parametrize("name", ENGINES)
def test_what_is_not_trained_keeps_its_bits_and_the_rest_moves(name: str, which: str) -> None:
    engine = ENGINES[name]()
    state, trained = state_of(engine), TRAINED[which]
    found, loss = engine.train(state, data(), replace(HOW, trained=trained), seed=3)
    assert np.isfinite(loss)
    for weight, value in found.weights.items():
        same = value.tobytes() == state.weights[weight].tobytes()
        assert same == (weight not in trained), weight
    assert all((value != state.stats[n]).any() for n, value in found.stats.items())


@pytest.mark.parametrize("name", ENGINES)
def test_to_name_all_is_to_name_none(name: str) -> None:
    engine = ENGINES[name]()
    state = state_of(engine)
    one, _ = engine.train(state, data(), HOW, seed=3)
    named, _ = engine.train(state, data(), replace(HOW, trained=ALL), seed=3)
    assert all(one.weights[n].tobytes() == named.weights[n].tobytes() for n in ALL)
    assert all(one.stats[n].tobytes() == named.stats[n].tobytes() for n in one.stats)


@pytest.mark.parametrize("name", [n for n in ENGINES if n != "own loop"])
def test_gradients_of_all_weights_do_not_depend_on_what_is_trained(name: str) -> None:
    """One step, in which no weight has moved yet."""
    engine, sums = ENGINES[name](), list[GradientSums]()
    for trained in (None, TRAINED["norms"]):
        sums.append({})
        how = replace(HOW, epochs=1, batch_size=COUNT, trained=trained)
        state, _ = engine.train(state_of(engine), data(), how, 3, sums[-1])
        if trained:
            still = engine.layout.weights.keys() - trained
            assert all((state.weights[n] == state_of(engine).weights[n]).all() for n in still)
    assert sums[0].keys() == set(engine.layout.prunable)
    assert all(sums[0][n].tobytes() == sums[1][n].tobytes() for n in sums[0])


def test_engines_agree_which_parameters_are_norms() -> None:
    expected = TRAINED["norms"]
    assert all(ENGINES[name]().norm_parameters == expected for name in ENGINES)


def test_where_nothing_needs_a_gradient_backward_ends() -> None:
    """A frozen backbone costs no backward pass, and no memory for one."""
    engine = SparseEngine(capture(model(), SHAPE), torch_engine().initial_state())
    state = state_of(engine)
    memory = {
        which: engine.program(state, "train", COUNT, trained).memory.activations
        for which, trained in (("head", TRAINED["head"]), ("all", None))
    }
    assert memory["head"] < memory["all"]
