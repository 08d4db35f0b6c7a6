"""Models as people have them: each engine trains them as a plain loop of torch does, or refuses.

A case says what a model has that the usual ones have not. The loop that results are compared with
knows nothing of fedkit: it is what anybody would write.
"""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from fedkit.config import make_config
from fedkit.core.errors import EngineError, FedkitError, PlanError, TaskError
from fedkit.engine.base import Engine, GradientSums, LocalTraining, even_batches
from fedkit.engine.choose import make_engine
from fedkit.engine.plan import capture as capturing
from fedkit.engine.plan.capture import capture
from fedkit.engine.torch import TorchEngine
from fedkit.engine.trial import try_task
from fedkit.server.rounds import run_rounds
from fedkit.tasks.task import Examples, Task, cross_entropy
from sim.scenario import make_scenario
from tests.sets import slow_but

HOW = LocalTraining(epochs=3, batch_size=7, lr=0.05, momentum=0.9, weight_decay=1e-3)
FEATURES, CLASSES = 6, 3


def data(count: int = 14, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((count, FEATURES)).astype(np.float32)
    targets = (inputs.sum(1) > 0) + (inputs[:, 0] > 0.5).astype(np.int64)
    return Examples(inputs, targets)


def task_of(factory: Callable[[], nn.Module]) -> Task:
    return Task("people", factory, data, lambda: data(8, 1))


def plain_loop(model: nn.Module, examples: Examples, seed: int = 0) -> dict[str, Tensor]:
    """Train by SGD in the order of examples that every engine takes; return all parameters."""
    sgd = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=HOW.lr,
        momentum=HOW.momentum,
        weight_decay=HOW.weight_decay,
    )
    model.train()
    rng = np.random.default_rng(seed)
    for _ in range(HOW.epochs):
        for part in np.array_split(rng.permutation(len(examples)), -(-len(examples) // 7)):
            sgd.zero_grad()
            outputs = model(torch.from_numpy(examples.inputs[part]))
            F.cross_entropy(outputs, torch.from_numpy(examples.targets[part])).backward()
            sgd.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Mlp(nn.Module):
    """Two layers; what cases change."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(torch.relu(self.one(x)))
        return out


def plain() -> nn.Module:
    return Mlp()


def frozen_layer() -> nn.Module:
    model = Mlp()
    model.one.requires_grad_(False)
    return model


def frozen_bias() -> nn.Module:
    model = Mlp()
    model.two.bias.requires_grad_(False)
    return model


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.head = nn.Linear(FEATURES, CLASSES)
        self.down.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.down(torch.relu(self.up(x)))))
        return out


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.inner(torch.relu(self.inner(x)))))
        return out


class NeverCalled(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(4, 4)


class Scaled(Mlp):
    """A parameter that belongs to no layer, and a buffer that stays what it is."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((FEATURES,), 0.7))
        self.register_buffer("offset", torch.linspace(-1, 1, FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.scale + self.offset)


def not_contiguous() -> nn.Module:
    model = Mlp()
    model.one.weight = nn.Parameter(model.one.weight.detach().t().contiguous().t())
    assert not model.one.weight.is_contiguous()
    return model


def forward_hook() -> nn.Module:
    model = Mlp()
    model.one.register_forward_hook(lambda module, args, output: output * 2)
    return model


def halved(module: nn.Module, given: Any, taken: Any) -> Any:
    return (given[0] * 0.5,)


def backward_hook() -> nn.Module:
    model = Mlp()
    model.two.register_full_backward_hook(halved)
    return model


def gradient_hook() -> nn.Module:
    model = Mlp()
    model.two.weight.register_hook(lambda gradient: gradient * 0.25)
    return model


def replaced_forward() -> nn.Module:
    model = Mlp()
    layer = model.one
    vars(layer)["forward"] = lambda x: F.linear(x, layer.weight) * 0.5
    return model


@dataclass(frozen=True)
class ModelCase:
    """A model, whether engines that run a plan take it, and which op that of integers lacks."""

    factory: Callable[[], nn.Module]
    planned: bool = False
    reason: str = ""
    lacks_integers: str = ""


TRAINED = {
    "plain": ModelCase(plain, planned=True),
    "not contiguous": ModelCase(not_contiguous, planned=True),
    "frozen layer": ModelCase(
        frozen_layer, reason="one.weight, one.bias: Parameter .requires_grad is False"
    ),
    "frozen bias": ModelCase(frozen_bias, reason="two.bias: Parameter .requires_grad is False"),
    "tied": ModelCase(Tied, reason="shared by 2 modules"),
    "called twice": ModelCase(
        CalledTwice,
        planned=True,
        lacks_integers=r"uses inner.weight .2 times., inner.bias .2 times., and",
    ),
    "never called": ModelCase(
        NeverCalled, reason="spare.weight, spare.bias: Parameter .no op uses it"
    ),
    "own parameter": ModelCase(Scaled, planned=True),
    "forward hook": ModelCase(forward_hook, reason="one: Linear .it has forward hooks"),
    "backward hook": ModelCase(backward_hook, reason="two: Linear .it has backward hooks"),
    "gradient hook": ModelCase(gradient_hook, reason="two.weight: Parameter .it has hooks"),
    "replaced forward": ModelCase(replaced_forward, reason="one: Linear .its forward was replaced"),
}


ENGINES = ("torch", "auto", "sparse", "integer")


def made(factory: Callable[[], nn.Module], engine: str) -> tuple[Engine, str]:
    task = task_of(factory)
    if engine == "integer":
        return make_engine(task, "", 3, "auto", "int8")
    return make_engine(task, "", 3, engine)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", slow_but(("torch", "auto", "integer"), ENGINES))
@pytest.mark.parametrize("name", TRAINED)
def test_training_is_that_of_a_plain_loop_or_refused(name: str, engine: str) -> None:
    case = TRAINED[name]
    if engine in ("sparse", "integer") and not case.planned:
        with pytest.raises(PlanError, match=case.reason):
            made(case.factory, engine)
        return
    if engine == "integer" and case.lacks_integers:
        with pytest.raises(EngineError, match=f"{case.lacks_integers} the integer engine"):
            made(case.factory, engine)
        return
    engine_made, told = made(case.factory, engine)
    assert case.planned or engine == "torch" or "the sparse engine cannot run this" in told
    expected = plain_loop(task_of(case.factory).build_model(3), data())
    found, _ = engine_made.train(engine_made.initial_state(), data(), HOW, 0)
    frozen = set(expected) - set(found.weights)
    constant = dict(task_of(case.factory).build_model(3).named_parameters())
    assert all(not constant[name].requires_grad for name in frozen)
    assert all(torch.equal(expected[name], constant[name]) for name in frozen)
    near = 0.03 if engine == "integer" else 1e-5
    for weight, value in found.weights.items():
        assert value == pytest.approx(expected[weight].numpy(), abs=near), weight


@pytest.mark.parametrize("name", [n for n in TRAINED if "frozen" in n])
def test_what_is_frozen_stays_in_the_module_that_leaves(name: str) -> None:
    factory = TRAINED[name].factory
    engine = TorchEngine.for_task(task_of(factory), "", 3)
    before = {n: p.clone() for n, p in task_of(factory).build_model(3).named_parameters()}
    state, _ = engine.train(engine.initial_state(), data(), HOW, 0)
    masks = {n: np.random.default_rng(0).random(m.shape) < 0.5 for n, m in state.masks.items()}
    left = dict(engine.module(state.with_masks(masks)).named_parameters())
    for weight, parameter in left.items():
        if not parameter.requires_grad:
            assert weight not in engine.layout.weights
            assert torch.equal(parameter, before[weight])


def test_gradients_of_what_is_never_called_are_zero() -> None:
    engine = TorchEngine(NeverCalled(), cross_entropy)
    state = engine.initial_state()
    assert not engine.gradients(state, data())["spare.weight"].any()
    sums: GradientSums = {}
    engine.train(state, data(), HOW, 0, sums)
    assert not sums["spare.weight"].any() and sums["one.weight"].any()


# Refused by all, before training


def with_prune() -> nn.Module:
    model = Mlp()
    prune.l1_unstructured(model.one, "weight", 0.5)
    return model


def with_parametrization(which: Callable[[nn.Module], nn.Module]) -> nn.Module:
    model = Mlp()
    which(model.one)
    return model


def of_type(dtype: torch.dtype) -> nn.Module:
    return Mlp().to(dtype)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(CLASSES))


def empty_layer() -> nn.Module:
    with warnings.catch_warnings(action="ignore"):  # torch has nothing to draw
        return nn.Sequential(nn.Linear(FEATURES, 4), nn.Linear(4, 0), nn.Linear(0, CLASSES))


class WritesBuffer(Mlp):
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.detach().mean(0)
        return super().forward(x - self.seen)


class TwoOutputs(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x), x  # type: ignore[return-value]


class AuxiliaryOutput(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return (out, x) if self.training else out  # type: ignore[return-value]


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "prune": (with_prune, r"one computes its weight from other parameters.*prune\.remove"),
    "weight norm": (
        lambda: with_parametrization(parametrizations.weight_norm),
        r"one computes its weight.*remove_parametrizations",
    ),
    "spectral norm": (
        lambda: with_parametrization(parametrizations.spectral_norm),
        "one computes its weight",
    ),
    "orthogonal": (
        lambda: with_parametrization(parametrizations.orthogonal),
        "one computes its weight",
    ),
    "double": (lambda: of_type(torch.float64), r"one.weight is torch.float64.*\.float\(\)"),
    "half": (lambda: of_type(torch.float16), "one.weight is torch.float16"),
    "bfloat16": (lambda: of_type(torch.bfloat16), "one.weight is torch.bfloat16"),
    "lazy": (lazy, r"0.weight is lazy; run the model on an example"),
    "empty layer": (empty_layer, r"1.weight has shape \(0, 4\), without any number"),
    "empty model": (lambda: nn.Sequential(), "nothing to prune"),
    "all frozen": (lambda: Mlp().requires_grad_(False), "nothing to prune"),
    "writes a buffer": (WritesBuffer, "a forward pass of WritesBuffer changes seen"),
    "two outputs": (TwoOutputs, "TwoOutputs returns a tuple; it must return one tensor"),
    "auxiliary output": (AuxiliaryOutput, "AuxiliaryOutput returns a tuple"),
    "tracking instance norm": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (2, 3)),
            nn.InstanceNorm1d(2, track_running_stats=True),
            nn.Flatten(),
            nn.Linear(FEATURES, CLASSES),
        ),
        "changes 1.running_mean, 1.running_var",
    ),
}


@pytest.mark.parametrize("engine", ["torch", "auto", "sparse", "integer"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_no_engine_can_train_is_refused_by_name(name: str, engine: str) -> None:
    factory, reason = REFUSED[name]
    with pytest.raises(TaskError, match=f"(?s){reason}"):
        made(factory, engine)


class Mixes(Mlp):
    """What it gives for an example depends on the others of the batch."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(self.how(x))
        return out


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x - x.mean(0, keepdim=True),
    "softmax": lambda x: torch.softmax(x, 0),
    "sort": lambda x: x.sort(0).values,
    "first": lambda x: x + x[:1],
    "view": lambda x: torch.cumsum(x.view(1, -1), 1).view(-1, FEATURES),
    "transposed": lambda x: x.t().reshape(-1, FEATURES),
    "largest": lambda x: x / x.abs().max(),
}


@pytest.mark.parametrize("engine", slow_but(("torch", "integer"), ENGINES))
@pytest.mark.parametrize("how", MIXING)
def test_a_model_that_mixes_the_examples_of_a_batch_is_refused(how: str, engine: str) -> None:
    with pytest.raises(TaskError, match=r"mixes the examples of a batch: .* its outputs for one"):
        made(lambda: Mixes(MIXING[how]), engine)
    with pytest.raises(PlanError):
        capture(Mixes(MIXING[how]), (FEATURES,))


def test_a_model_that_takes_no_example_alone_is_refused() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 8), nn.Unflatten(1, (1, 8)))

    class Squeezes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = model, nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.body(x).squeeze())
            return out

    class Sorts(Squeezes):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, [2, 0, 1]]

    with pytest.raises(TaskError, match="takes 5 inputs, but not one alone, of shape"):
        made(Sorts, "torch")
    with pytest.raises(TaskError, match=r"mixes .* of shape \(3,\), are others"):
        made(Squeezes, "torch")


@pytest.mark.parametrize(
    "how",
    [
        lambda x: x.view(1, -1).view(-1, FEATURES),  # back again
        lambda x: torch.softmax(x, 1),
        lambda x: F.batch_norm(x, torch.zeros(FEATURES), torch.ones(FEATURES)),
        lambda x: F.dropout(x, 0.5, training=True),  # another each time, whatever the batch
    ],
)
def test_a_model_that_keeps_examples_apart_is_taken(how: Callable[[Tensor], Tensor]) -> None:
    assert made(lambda: Mixes(how), "torch")[1] == "torch"


# Randomness


class StochasticDepth(nn.Module):
    """Skips its middle layer by chance."""

    def __init__(self, skips: Callable[[], bool]) -> None:
        super().__init__()
        self.one, self.middle = nn.Linear(FEATURES, 8), nn.Linear(8, 8)
        self.two, self.skips = nn.Linear(8, CLASSES), skips

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        if not (self.training and self.skips()):
            x = x + torch.relu(self.middle(x))
        out: Tensor = self.two(x)
        return out


RNG = np.random.default_rng(0)


class NamesAGlobal(StochasticDepth):
    def forward(self, x: Tensor) -> Tensor:
        if RNG.random() < 0.01:
            x = x * 2
        return super().forward(x)


class HoldsAGenerator(StochasticDepth):
    def __init__(self) -> None:
        super().__init__(lambda: False)
        self.rng = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * (1.0 if self.rng.random() < 0.99 else 0.5))


class Counts(StochasticDepth):
    def __init__(self) -> None:
        super().__init__(lambda: False)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x * (1.0 if self.calls < 1000 else 0.5))


class Grows(StochasticDepth):
    def __init__(self) -> None:
        super().__init__(lambda: False)
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(1)
        return super().forward(x)


class WritesData(StochasticDepth):
    """Changes a buffer without x, so that no node of the trace shows it."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__(lambda: False)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return super().forward(x)


ALTERNATING = iter([False, True] * 1000)

IMPURE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "torch": (lambda: StochasticDepth(lambda: torch.rand(()).item() < 0.01), "torch's generator"),
    "numpy": (lambda: StochasticDepth(lambda: bool(np.random.rand() < 0.01)), "numpy's generator"),
    "python": (lambda: StochasticDepth(lambda: random.random() < 0.01), "Python's generator"),
    "a global": (lambda: NamesAGlobal(lambda: False), "draws random numbers from the global RNG"),
    "an attribute": (HoldsAGenerator, "draws random numbers from rng"),
    "out of sight": (
        lambda: StochasticDepth(lambda: next(ALTERNATING)),
        "computes something else in one pass than in the next",
    ),
    "a counter": (Counts, "its forward changes calls"),
    "a list": (Grows, "its forward changes sizes"),
}


@pytest.mark.parametrize("name", IMPURE)
def test_a_pass_that_differs_from_the_next_is_not_planned(name: str) -> None:
    factory, reason = IMPURE[name]
    with pytest.raises(PlanError, match=f"(?s)cannot be (traced|captured): ?.*{reason}"):
        made(factory, "sparse")
    engine, told = made(factory, "auto")
    assert isinstance(engine, TorchEngine) and reason in told


DRAWS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.rand(()),
    "numpy": lambda: np.random.rand(),
    "python": random.random,
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("at", [1, 4, 8])
def test_a_thread_that_draws_in_one_of_the_passes_is_not_the_model(
    name: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the heartbeat of Flower does, every 20 s, from Python's generator."""
    run, calls = capturing._Capture._run, itertools.count(1)

    def beside_a_thread(self: capturing._Capture, inputs: Tensor) -> Tensor:
        if next(calls) == at:
            DRAWS[name]()
        return run(self, inputs)

    monkeypatch.setattr(capturing._Capture, "_run", beside_a_thread)
    capture(nn.Linear(FEATURES, CLASSES), (FEATURES,))
    assert next(calls) == 9


def test_a_buffer_written_without_a_node_is_refused() -> None:
    with pytest.raises(TaskError, match="changes count"):
        made(WritesData, "auto")


@pytest.mark.parametrize("seed", slow_but(range(6), range(20)))
def test_stochastic_depth_is_never_taken_for_deterministic(seed: int) -> None:
    torch.manual_seed(seed)
    engine, told = made(lambda: StochasticDepth(lambda: torch.rand(()).item() < 0.5), "auto")
    assert isinstance(engine, TorchEngine) and "random numbers" in told


def numpy_state() -> str:
    return repr(np.random.get_state(legacy=False)["state"]["key"].tolist())


def test_looking_at_a_model_leaves_it_and_all_generators_alone() -> None:
    counts, draws = (
        Counts(),
        StochasticDepth(lambda: torch.rand(()).item() < np.random.rand() + random.random()),
    )
    states = torch.get_rng_state(), numpy_state(), random.getstate()
    for model in (counts, draws):
        with pytest.raises(PlanError):
            capture(model, (FEATURES,))
    assert counts.calls == 0
    assert torch.equal(torch.get_rng_state(), states[0])
    assert numpy_state() == states[1]
    assert random.getstate() == states[2]


def dropout_model() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.Dropout(0.5), nn.Linear(16, CLASSES))


def test_what_a_model_draws_depends_on_the_seed_alone() -> None:
    engine = TorchEngine.for_task(task_of(dropout_model), "", 3)
    state = engine.initial_state()

    def trained(seed: int, disturbance: int) -> NDArray[np.float32]:
        torch.manual_seed(disturbance)
        return engine.train(state, data(), HOW, seed)[0].weights["0.weight"]

    assert np.array_equal(trained(1, 2), trained(1, 3))
    assert not np.array_equal(trained(1, 2), trained(2, 2))


# Data


@pytest.mark.parametrize("engine", ["torch", "sparse", "integer"])
@pytest.mark.parametrize("target", [-100, -1, CLASSES, 255])
def test_targets_that_are_no_classes_are_refused_by_all(engine: str, target: int) -> None:
    made_engine, _ = made(plain, engine)
    state, good = made_engine.initial_state(), data()
    bad = Examples(good.inputs, np.where(np.arange(len(good)) == 3, target, good.targets))
    calls: list[Callable[[], object]] = [
        lambda: made_engine.train(state, bad, HOW, 0),
        lambda: made_engine.loss(state, bad),
        lambda: made_engine.gradients(state, bad),
        lambda: made_engine.top_gradients(state, bad, {"one.weight": 1}),
    ]
    for call in calls:
        with pytest.raises(EngineError, match=f"{target}.*{CLASSES} classes, counted from 0"):
            call()


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)
    )


@pytest.mark.parametrize("engine", ["torch", "sparse", "integer"])
def test_one_example_under_a_norm_is_refused_by_all(engine: str) -> None:
    made_engine, _ = made(normed, engine)
    state, one = made_engine.initial_state(), data(1)
    for call in (
        lambda: made_engine.train(state, one, HOW, 0),
        lambda: made_engine.gradients(state, one),
        lambda: made_engine.norm_moments(state, one),
    ):
        with pytest.raises(EngineError, match="norm '1' sees one value per channel"):
            call()
    assert np.isfinite(made_engine.loss(state, one))


def few() -> Examples:
    """One device's only example, and two devices' others."""
    made = data(20)
    return Examples(made.inputs, made.targets, np.array(["a"] + ["b"] * 10 + ["c"] * 9))


FEW = Task("few", normed, few, lambda: data(8, 1))


@pytest.mark.parametrize("engine", ["torch", "sparse"])
def test_the_device_that_has_one_example_is_named(engine: str) -> None:
    config = make_config(
        {
            "task": f"{__name__}:FEW",
            "engine": engine,
            "devices": 3,
            "partition": "natural-id",
            "single_class": "allow",
            "server_share": 0,
            "density": 0.5,
            "rounds": 1,
            "epochs": 1,
        }
    )
    scenario = make_scenario(config)
    with pytest.raises(EngineError, match=r"device \d, 1 example.*norm '1' sees one value"):
        list(run_rounds(scenario.server(), scenario.local_fleet(), None))


@pytest.mark.parametrize("engine", ["torch", "sparse", "integer"])
def test_batches_that_leave_one_example_alone_are_refused_before_the_run(engine: str) -> None:
    """Three examples in batches of two."""
    built, _ = made(normed, engine)
    task, how = task_of(normed), replace(HOW, batch_size=2, epochs=1)
    parts = [data(8, 1), data(4), data(3)]
    with pytest.raises(TaskError, match=r"of 2 leave 1 of a device's 3 .*--batch-size 3 or more"):
        try_task(task, built, parts, how)
    try_task(task, built, [data(8, 1), data(4), data(6)], how)
    try_task(task, built, parts, replace(how, batch_size=3))
    with pytest.raises(EngineError, match="leaves one over where their number is odd"):
        built.train(built.initial_state(), data(3), how, 0)


@pytest.mark.parametrize("size", [3, 4, 7, 32])
def test_no_batch_of_more_than_two_leaves_one_over(size: int) -> None:
    for count in range(2, 200):
        batches = even_batches(np.arange(count), size)
        assert [index for batch in batches for index in batch] == list(range(count))
        assert 2 <= min(map(len, batches)) <= max(map(len, batches)) <= size


def test_no_error_here_is_one_of_the_engines_own() -> None:
    """What a model's own code raises stays what it is."""

    class Broken(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("out of order")

    engine = TorchEngine(Broken(), cross_entropy)
    with pytest.raises(ValueError, match="out of order") as caught:
        engine.train(engine.initial_state(), data(1), HOW, 0)
    assert not isinstance(caught.value, FedkitError)
