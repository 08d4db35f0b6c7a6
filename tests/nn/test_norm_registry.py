"""Every row of the norm registry does what it says: in training, in a fleet, in an export."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edge.passes
from fedkit.config import make_config
from fedkit.core.errors import ConfigError, ExportError, PlanError, TaskError
from fedkit.device.round import Device
from fedkit.engine.base import LocalTraining
from fedkit.engine.plan.capture import capture
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.graph import ir
from fedkit.graph.from_torch import lower
from fedkit.graph.interpret import evaluate
from fedkit.nn.layers import norm_parameters, tracking_norms
from fedkit.nn.norms.evonorm import EvoNormS0
from fedkit.nn.norms.frozen import FrozenLayerNorm, with_frozen_layer_norms
from fedkit.nn.norms.masked_norm import MaskedBatchNorm
from fedkit.nn.norms.registry import MERGES, NormRow, add_norm, norms, row_of
from fedkit.nn.norms.second_moment import PowerNorm, UnifiedNorm
from fedkit.nn.norms.slab import ProgressiveNorm, RepBatchNorm
from fedkit.server.rounds import LocalFleet, Report, Server, StoredStep, run_rounds
from fedkit.stats.norms import as_stats, merge_norms
from fedkit.tasks.task import Examples, Task, cross_entropy
from tests.nn.norm_references import REFERENCES

ROWS = {row.name: row for row in norms()}
TRACKED = [name for name, row in ROWS.items() if row.named("moment")]
WIDTH = 4
IMAGE = (3, 5, 5)
HOW = LocalTraining(epochs=2, batch_size=7, lr=0.05, momentum=0.9, weight_decay=1e-3)

every = pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))


def made(row: NormRow) -> Any:
    """A norm with parameters that are not those it starts with."""
    torch.manual_seed(0)
    norm = row.make(WIDTH)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return norm


def values(row: NormRow, number: int) -> Tensor:
    """Inputs of a norm; later ones are larger, and one is far off."""
    shape = (3, WIDTH, 2, 5) if row.reads == "channels" else (3, 5, WIDTH)
    random = torch.Generator().manual_seed(number)
    scale = 9.0 if number == 6 else 1 + 0.1 * number
    return scale * torch.randn(shape, generator=random, dtype=torch.float64) + 0.5


class AroundNorm(nn.Module):
    """A convolution, a norm over its channels or over tokens, and a linear layer."""

    def __init__(self, norm: nn.Module, reads: str) -> None:
        super().__init__()
        self.before, self.norm = nn.Conv2d(IMAGE[0], WIDTH, 3, padding=1), norm
        self.after, self.of_tokens = nn.Linear(WIDTH, 3), reads == "last axis"

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if self.of_tokens:
            return self.after(self.norm(x.flatten(2).transpose(1, 2)).relu().mean(1))
        return self.after(self.norm(x).relu().mean((2, 3)))


def model_of(row: NormRow) -> nn.Module:
    torch.manual_seed(1)
    return AroundNorm(made(row), row.reads)


def data(count: int, seed: int, offset: float = 0.0) -> Examples:
    random = np.random.default_rng(seed)
    inputs = offset + (1 + offset) * random.standard_normal((count, *IMAGE))
    return Examples(inputs.astype(np.float32), random.integers(0, 3, count))


# What a row says


@every
def test_roles_are_of_what_the_norm_has(row: NormRow) -> None:
    norm = row.make(WIDTH)
    parameters = {name for name, _ in norm.named_parameters(recurse=False)}
    buffers = {name for name, _ in norm.named_buffers(recurse=False)}
    assert parameters | buffers == set(row.roles), "each has a role, and no other name has"
    assert {name for name in row.roles if row.roles[name] in ("weight", "affine")} == parameters
    assert set(row.roles.values()) <= set(MERGES)
    assert row_of(norm) is row and row.kind is not nn.Module


@every
def test_what_is_of_an_example_does_not_depend_on_the_others(row: NormRow) -> None:
    norm, x = made(row).double().train(), values(row, 0)
    if (schedule := row.named("schedule")) and schedule:
        row.follows(norm, 0.25)
    alone = torch.cat([norm(each) for each in x.split(1)])
    is_same = torch.allclose(norm(x), alone, rtol=1e-12)
    assert is_same == row.per_example


def test_a_derived_class_has_the_row_of_its_base_and_others_have_none() -> None:
    class Own(nn.BatchNorm2d):
        pass

    assert row_of(Own(2)) is ROWS["BatchNorm"]
    assert row_of(nn.SyncBatchNorm(2)) is ROWS["BatchNorm"]
    assert row_of(RepBatchNorm(2)) is ROWS["RepBN"]
    assert row_of(nn.Conv2d(1, 1, 1)) is None


def counting() -> type[nn.Module]:
    """A new class of that name, as each import of a module makes one."""

    class Counting(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return x

    return Counting


def test_a_row_of_ones_own_is_followed_and_a_bad_one_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedkit.nn.norms.registry._TABLE", {})

    own = counting()

    def engine() -> TorchEngine:
        return TorchEngine(nn.Sequential(nn.Linear(4, 2), own()), cross_entropy)

    inputs = np.zeros((2, 4), np.float32)
    with pytest.raises(TaskError, match=r"changes 1\.count, which a fleet neither .*add_norm"):
        engine().check_forward(inputs)
    add_norm(NormRow("counting", own, lambda _: own(), roles={"count": "local"}))
    engine().check_forward(inputs)
    with pytest.raises(ConfigError, match="has a row already"):
        add_norm(NormRow("other", own, lambda _: own()))
    again = NormRow("counting", counting(), lambda _: own(), roles={"count": "local"})
    add_norm(again)
    assert norms() == (again,)
    bad = NormRow("bad", nn.Linear, lambda n: nn.Linear(n, n), roles={"mean": "moment"})
    with pytest.raises(ConfigError, match="has moments mean; moments travel as running_mean"):
        add_norm(bad)


def test_parameters_of_norms_are_those_with_the_role_affine() -> None:
    model = nn.Sequential(*(row.make(WIDTH) for row in ROWS.values()))
    names = list(ROWS)
    found = norm_parameters(model)
    for place, (name, row) in enumerate(ROWS.items()):
        own = {f"{place}.{parameter}" for parameter in row.named("affine")}
        inside = {each for each in found if each.split(".")[0] == str(place)}
        if name == "PRepBN":  # its parts have rows of their own
            own = {f"{place}.layer_norm.weight", f"{place}.layer_norm.bias"}
            own |= {f"{place}.rep.{each}" for each in ("weight", "bias", "eta")}
        assert inside == own, names[place]


# What it computes


@every
def test_steps_of_training_equal_the_slow_reference(row: NormRow) -> None:
    norm = made(row).double().train()
    row.follows(norm, 0.125)
    reference = REFERENCES[row.name](norm)
    for number in range(9):
        x = values(row, number).requires_grad_()
        gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(9)).double()
        y = norm(x)
        (dx,) = torch.autograd.grad(y, x, gradient)
        wanted, wanted_dx = reference(x.detach(), gradient)
        np.testing.assert_allclose(y.detach().numpy(), wanted, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(dx.numpy(), wanted_dx, rtol=1e-8, atol=1e-11)


def test_every_row_has_a_reference() -> None:
    assert set(REFERENCES) == set(ROWS)


@pytest.mark.parametrize("norm", [UnifiedNorm(WIDTH), PowerNorm(WIDTH)])
def test_norms_that_smooth_do_so_and_forget(norm: Any) -> None:
    norm = norm.double().train()
    x = [values(ROWS["BatchNorm"], number) for number in range(6)]
    first = [norm(each) for each in x]
    plain = [each / (each.square().mean((0, 2, 3), keepdim=True) + norm.eps).sqrt() for each in x]
    assert torch.allclose(first[0], plain[0]) and not torch.allclose(first[5], plain[5])
    norm.forget()
    assert all(torch.equal(norm(each), was) for each, was in zip(x, first, strict=True))


def test_an_outlier_takes_its_own_moments_in_a_unified_norm() -> None:
    norm = UnifiedNorm(WIDTH).double().train()
    for number in range(4):
        norm(values(ROWS["BatchNorm"], number))
    far = values(ROWS["BatchNorm"], 6)  # nine times as large
    own = (far.square().mean((0, 2, 3), keepdim=True) + norm.eps).sqrt()
    assert torch.allclose(norm(far), far / own)
    assert norm.step == 4, "and it is not remembered"
    still = UnifiedNorm(WIDTH, filters=False).double().train()
    for number in range(4):
        still(values(ROWS["BatchNorm"], number))
    assert not torch.allclose(still(far), far / own)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="window is 5 and warmup 4"):
        UnifiedNorm(WIDTH, window=5)
    with pytest.raises(ConfigError, match=r"alpha is 1\.0 and warmup 4"):
        PowerNorm(WIDTH, alpha=1.0)
    with pytest.raises(ConfigError, match="3 groups do not divide 4 channels"):
        EvoNormS0(WIDTH, groups=3)


def test_masked_places_give_no_moments() -> None:
    norm, plain = MaskedBatchNorm(WIDTH, momentum=None), nn.BatchNorm1d(WIDTH, momentum=None)
    x = torch.randn(3, WIDTH, 6)
    mask = torch.arange(6).expand(3, 1, 6) < torch.tensor([6, 3, 1])[:, None, None]
    held = torch.cat([x[n, :, : (6, 3, 1)[n]] for n in range(3)], 1).T  # [places, channels]
    found = norm(torch.where(mask, x, 1e6), mask)
    wanted = plain(held)
    assert torch.allclose(found.movedim(1, -1)[mask[:, 0]], wanted, atol=1e-5)
    for kind in ("running_mean", "running_var"):
        assert torch.allclose(getattr(norm, kind), getattr(plain, kind), atol=1e-6)
    moments = ROWS["masked BatchNorm"].samples(norm, x, mask)
    assert torch.equal(moments, held)
    with pytest.raises(ValueError, match=r"expected a mask of shape \(3, 1, 6\)"):
        norm(x, mask[:, :, :2])
    with pytest.raises(ValueError, match="expected more than 1 value per channel, got 0"):
        norm(x, torch.zeros_like(mask))


class Padded(nn.Module):
    """A masked norm that is told its mask, places that hold 0 are padding, by its keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.norm = nn.Conv1d(2, WIDTH, 1, bias=False), MaskedBatchNorm(WIDTH)
        self.after = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = (x != 0).any(1, keepdim=True)
        made: Tensor = self.after(self.norm(self.before(x), mask=mask).mean(2))
        return made


def test_a_device_tells_the_moments_of_unmasked_places() -> None:
    inputs = np.random.default_rng(0).standard_normal((20, 2, 6)).astype(np.float32) + 1
    inputs[:, :, 4:] = 0
    engine = TorchEngine(Padded(), cross_entropy)
    state, own = engine.initial_state(), Examples(inputs, np.arange(20) % 3)
    module: Any = engine.module(state)
    with torch.no_grad():
        held = module.before(torch.from_numpy(inputs[:, :, :4])).double()
    (found,) = engine.norm_moments(state, own, frozen=True).values()
    np.testing.assert_allclose(found.mean, held.mean((0, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.variance, held.var((0, 2), correction=0), rtol=1e-5)
    trained, _ = engine.train(state, own, replace(HOW, lr=1e-12, batch_size=20), seed=0)
    np.testing.assert_allclose(trained.stats["norm.running_mean"], held.mean((0, 2)), rtol=1e-4)


def test_gamma_follows_the_run_and_training_ends_as_it_is_evaluated() -> None:
    norm = ProgressiveNorm(WIDTH, until=0.5)
    found = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        norm.follow(progress)
        found.append(float(norm.gamma))
    assert found == [1.0, 0.5, 0.0, 0.0]
    assert "gamma" not in norm.state_dict()
    x = torch.randn(2, 5, WIDTH)
    assert torch.equal(norm.train()(x), norm.rep(x.transpose(1, 2)).transpose(1, 2))
    norm.follow(0.0)
    assert torch.equal(norm(x), norm.layer_norm(x))
    assert not torch.allclose(norm.eval()(x), norm.layer_norm(x))
    with pytest.raises(ConfigError, match="until is 0"):
        ProgressiveNorm(WIDTH, until=0)


def test_frozen_norms_are_those_of_the_model_on_average() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.LayerNorm(64), nn.Linear(64, 3)).eval()
    x = torch.randn(50, 6)
    frozen: Any = with_frozen_layer_norms(model, x)
    assert isinstance(frozen[1], FrozenLayerNorm) and isinstance(model[1], nn.LayerNorm)
    inner = model[0](x)
    assert torch.allclose(frozen[1].running_var, inner.var(-1, correction=0).mean())
    assert torch.allclose(frozen(x).mean(), model(x).mean(), atol=0.05)
    before = frozen[1].running_var.clone()
    frozen.train()(3 * x)
    assert torch.equal(frozen[1].running_var, before), "frozen is frozen"


# In a fleet


def skewed() -> list[Examples]:
    """Three devices whose inputs lie apart; one needs several batches."""
    return [data(300, 0), data(40, 1, 3.0), data(11, 2, -0.5)]


def definition(row: NormRow, x: Tensor) -> tuple[Any, Any]:
    """What a norm's moments are over all inputs of it, float64."""
    x = x.double()
    if row.name == "frozen LayerNorm":
        return np.zeros(1), x.var(-1, correction=0).mean().numpy()[None]
    flat = (x.transpose(1, -1) if row.reads == "last axis" else x).transpose(0, 1).flatten(1)
    if row.spread == "second":
        return np.zeros(WIDTH), flat.square().mean(1).numpy()
    centred = flat - flat.mean(1, keepdim=True)
    if row.spread == "absolute":
        return flat.mean(1).numpy(), (torch.pi / 2 * centred.abs().mean(1) ** 2).numpy()
    return flat.mean(1).numpy(), centred.square().mean(1).numpy()


@pytest.mark.parametrize("name", [*TRACKED, "PRepBN"])
def test_moments_of_devices_merge_into_those_of_pooled_data(name: str) -> None:
    row, devices = ROWS[name], skewed()
    engine = TorchEngine(model_of(row), cross_entropy)
    state = engine.initial_state()
    for _ in range(2):  # an L1 norm takes a second exchange, around the merged mean
        parts = [engine.norm_moments(state, each, frozen=True) for each in devices]
        merged = merge_norms(parts, "exact", absolute=engine.absolute_norms)
        state = replace(state, stats=as_stats(merged))
    seen: list[Tensor] = []
    module: Any = engine.module(state)
    module.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        module(torch.from_numpy(np.concatenate([each.inputs for each in devices])))
    (found,) = merged.values()
    mean, variance = definition(row, seen[0])
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-6)


@every
def test_a_device_trains_and_each_value_goes_where_its_role_says(row: NormRow) -> None:
    engine = TorchEngine(model_of(row), cross_entropy)
    engine.check_forward(data(2, 0).inputs)
    state, own = engine.initial_state(), data(20, 3, 0.5)
    trained, loss = engine.train(state, own, replace(HOW, progress=0.25), seed=1)
    again, _ = engine.train(state, own, replace(HOW, progress=0.25), seed=1)
    assert np.isfinite(loss)
    for name in state.weights:
        assert np.array_equal(trained.weights[name], again.weights[name]), name
        assert not np.array_equal(trained.weights[name], state.weights[name]), name
    travels = {
        f"{name}.{kind}"
        for name, norm in tracking_norms(model_of(row)).items()
        for kind in ("running_mean", "running_var")
    }
    assert set(trained.stats) == travels
    assert all(np.array_equal(trained.stats[n], again.stats[n]) for n in travels)
    held = dict(engine.module(trained).named_buffers())
    never = {f"norm.{each}" for each in (*row.named("local"), *row.named("schedule"))}
    assert not never & set(trained.stats) and never <= set(held)


def test_a_later_round_trains_with_less_of_the_layer_norm() -> None:
    engine = TorchEngine(model_of(ROWS["PRepBN"]), cross_entropy)
    state, own = engine.initial_state(), data(20, 3)
    early, late, end = (
        engine.train(state, own, replace(HOW, progress=at), seed=1)[0].weights
        for at in (0.0, 0.25, 1.0)
    )
    name = "norm.layer_norm.bias"
    moved = [np.abs(each[name] - state.weights[name]).max() for each in (early, late, end)]
    assert moved[0] > moved[1] > moved[2]
    assert engine.module(state).norm.gamma == 0  # type: ignore[union-attr]


def test_an_instance_norm_that_tracks_is_refused() -> None:
    norm = nn.InstanceNorm2d(WIDTH, track_running_stats=True)
    engine = TorchEngine(AroundNorm(norm, "channels"), cross_entropy)
    with pytest.raises(TaskError, match=r"changes norm\.running_mean"):
        engine.check_forward(data(2, 0).inputs)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits_whatever_the_round_says() -> None:
    """Nothing counts rounds but the server: gamma of round 3 is that of round 3, also for a device
    that was not there in the rounds before."""
    model = model_of(ROWS["PRepBN"])
    task = Task("tiny", lambda: copy.deepcopy(model), lambda: data(60, 7), lambda: data(20, 8))
    keys = {"devices": 2, "rounds": 4, "epochs": 1}
    config = make_config({**keys, "server_share": 0.0, "density": 1.0, "method": "dense"})

    def steps(after: StoredStep | None = None) -> list[Report]:
        engine = TorchEngine.for_task(task, "", config.seed)
        devices = [Device(n, data(20, 10 + n), engine, config) for n in range(2)]
        server = Server(config, task, engine, task.examples("test"))
        return list(run_rounds(server, LocalFleet(devices), None, after=after))

    whole = steps()
    (last,) = steps(StoredStep("round", 3, whole[-2].state))
    assert [step.round for step in whole] == [0, 1, 2, 3, 4] and last.round == 4
    for name, wanted in (*whole[-1].state.weights.items(), *whole[-1].state.stats.items()):
        found = {**last.state.weights, **last.state.stats}[name]
        assert np.array_equal(found, wanted), name


# As a plan


class OfFeatures(nn.Module):
    """A norm of features, of which a plan has L1 layer norms too."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.before, self.norm, self.after = nn.Linear(75, WIDTH), norm, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.norm(self.before(x.flatten(1))).relu())


@every
def test_the_sparse_engine_trains_what_it_takes_as_torch_does(row: NormRow) -> None:
    if row.name == "L1-LayerNorm":
        torch.manual_seed(1)
        model: nn.Module = OfFeatures(made(row))
    else:
        model = model_of(row)
    if row.not_planned:
        with pytest.raises(PlanError, match=rf"norm: {row.kind.__name__} \({row.not_planned}"):
            capture(model, IMAGE)
        return
    engine = TorchEngine(model, cross_entropy)
    start, own = engine.initial_state(), data(20, 4)
    sparse = SparseEngine(capture(model, IMAGE), start)
    (wanted, loss), (found, sparse_loss) = (
        each.train(start, own, HOW, seed=2) for each in (engine, sparse)
    )
    assert sparse_loss == pytest.approx(loss, rel=1e-4)
    for name in wanted.weights:
        np.testing.assert_allclose(found.weights[name], wanted.weights[name], atol=2e-5)
    for name in wanted.stats:
        np.testing.assert_allclose(found.stats[name], wanted.stats[name], rtol=1e-4, atol=1e-5)


# As an export


@every
def test_the_graph_is_the_model_in_evaluation_and_what_folds_folds(row: NormRow) -> None:
    model = model_of(row)
    model.train()(torch.from_numpy(data(9, 5).inputs))
    x = data(6, 6).inputs
    if row.integers == "no":
        with pytest.raises(ExportError, match="module 'norm'"):
            lower(model, IMAGE)
        return
    graph = lower(model, IMAGE)
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(x)).numpy()
    optimised = edge.passes.optimise(graph)
    for each in (graph, optimised):
        found = evaluate(each, ir.to_graph_layout(x))
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    kinds = {op.kind for op in optimised.ops}
    linear = {"conv2d", "depthwise_conv2d", "linear", "relu", "mean", "add", "transpose", "reshape"}
    assert (kinds <= linear) == row.folds, kinds


@pytest.mark.parametrize("make", [ProgressiveNorm, FrozenLayerNorm])
def test_torchs_own_layers_compute_the_norm_that_is_in_them(
    make: Callable[[int], nn.Module],
) -> None:
    """In evaluation too, where torch has a fast form that computes layer norms."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
    for name in ("norm1", "norm2"):
        norm = make(8)
        for parameter in norm.parameters():
            nn.init.uniform_(parameter, 0.5, 2)
        setattr(layer, name, norm)
    layer.eval()
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        quick = layer(x)
    step_by_step = x + layer._sa_block(layer.norm1(x), None, None)
    expected = step_by_step + layer._ff_block(layer.norm2(step_by_step))
    torch.testing.assert_close(quick, expected)
