"""What every row of the table of methods keeps to, whatever it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedkit.config import KEYS, RunConfig, make_config
from fedkit.core.errors import ConfigError
from fedkit.device.round import Device
from fedkit.engine.choose import make_engine
from fedkit.methods import synflow
from fedkit.methods.registry import METHODS, load_method, resolve
from fedkit.nn.norm import L1BatchNorm2d
from fedkit.server.rounds import LocalFleet, Report, Server, run_rounds
from fedkit.sparse.state import Masks
from fedkit.tasks.task import Examples, Task
from tests.methods.cases import kept_and_dense, run, same_bits
from tests.sets import slow_but

every_method = pytest.mark.parametrize("name", METHODS)


def changes_masks(name: str) -> bool:
    """Tell the dynamic methods: they have an `adjust` of their own and do not turn it off."""
    row = METHODS[name]
    return row.adjust is not METHODS["dense"].adjust and row.settings.get("adjust_share") != 0


def changed_rounds(reports: list[Report]) -> list[int]:
    """Return the rounds that ended with other masks than they began with."""
    return [
        after.round
        for before, after in pairwise(reports[1:])
        if not same_bits(before.state.masks, after.state.masks)
    ]


WHOLE = [name for name, row in METHODS.items() if not row.ablation_of]
"""Methods that are no ablation of another."""


def budget(config: RunConfig, masks: Masks) -> int:
    total = sum(mask.size for mask in masks.values())
    return math.floor(Fraction(config.density).limit_denominator(10**8) * total)


def assert_sparse(config: RunConfig, reports: list[Report]) -> None:
    """Every model after the dense start keeps its budget, and nothing of what is pruned."""
    for report in reports[1:]:
        masks = report.state.masks
        assert sum(int(mask.sum()) for mask in masks.values()) == budget(config, masks)
        assert all(mask.any() for mask in masks.values())
        for name, mask in masks.items():
            assert not report.state.weights[name][~mask].view(np.uint32).any(), name


@pytest.fixture(scope="module", autouse=True)
def _few_steps_of_synflow() -> Iterator[None]:
    """What a row keeps to holds after 10 steps of pruning as after the paper's 100."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synflow, "STEPS", 10)
        yield


# A real run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("density", slow_but((0.1,), (0.02, 0.1)))
@every_method
def test_a_small_run_keeps_its_budget_in_memory_and_on_the_wire(name: str, density: float) -> None:
    config, reports, fleet = run(name, density=density)
    assert config.density == (1.0 if name == "dense" else density)
    assert_sparse(config, reports)
    steps = [report.phase for report in reports]
    assert steps == ["start", "selection", *["round"] * 3]
    trains = [(request, replies) for phase, request, replies in fleet.log if phase == "train"]
    for (request, replies), before in zip(trains, reports[-4:], strict=False):
        sent = [packet for packet in (request, *replies) if "candidate" not in packet.numbers]
        assert {len(packet.arrays["values"]) for packet in sent} == {kept_and_dense(before)}
    assert len(trains) == config.rounds
    assert changed_rounds(reports) == ([1, 2] if changes_masks(name) else [])
    assert all(report.loss and math.isfinite(report.loss) for report in reports[-3:])


@pytest.mark.parametrize(
    "name", slow_but(filter(changes_masks, WHOLE), filter(changes_masks, METHODS))
)
def test_masks_change_in_adjusting_rounds_only(name: str) -> None:
    _, reports, _ = run(name, adjust_every=2, rounds=5, adjust_stop=5, epochs=1)
    assert changed_rounds(reports) == [2, 4]


@pytest.mark.parametrize("name", slow_but(("dense", "fedtiny", "prunefl", "synflow"), METHODS))
def test_same_seed_same_bits_and_exempt_layers_stay_whole(name: str) -> None:
    (config, reports, fleet), (_, again, fleet_again) = (
        run(name, exempt="first,last", rounds=2, adjust_stop=2) for _ in range(2)
    )
    assert_sparse(config, reports)
    for kind in ("weights", "stats", "masks"):
        assert same_bits(getattr(reports[-1].state, kind), getattr(again[-1].state, kind))
    assert [request.nbytes for _, request, _ in fleet.log] == [
        request.nbytes for _, request, _ in fleet_again.log
    ]
    for report in reports:
        first, *_, last = report.state.masks.values()
        assert first.all() and last.all(), report.round


# Any model -----------------------------------------------------------------------------------


def convolutions(draw: st.DrawFn, channels: int) -> tuple[list[Callable[[], nn.Module]], int]:
    layers: list[Callable[[], nn.Module]] = []
    for _ in range(draw(st.integers(0, 3))):
        depthwise = draw(st.booleans())
        width = channels if depthwise else draw(st.integers(1, 6))
        kernel, stride = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 2]))
        groups, bias = channels if depthwise else 1, draw(st.booleans())
        how: dict[str, Any] = {
            "stride": stride,
            "padding": kernel // 2,
            "groups": groups,
            "bias": bias,
        }
        layers.append(partial(nn.Conv2d, channels, width, kernel, **how))
        norm = draw(st.sampled_from([nn.Identity, nn.BatchNorm2d, L1BatchNorm2d]))
        layers.append(partial(norm, width))
        layers.append(draw(st.sampled_from([nn.ReLU, nn.ReLU6])))
        channels = width
    return layers, channels


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    """Draw a stack of convolutions, depthwise ones and linear layers, and random data for it."""
    channels, side = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    layers, width = convolutions(draw, channels)
    layers += [partial(nn.AdaptiveAvgPool2d, 1), nn.Flatten]
    for _ in range(draw(st.integers(0, 2))):
        wider = draw(st.integers(1, 9))
        layers += [partial(nn.Linear, width, wider), nn.ReLU]
        width = wider
    layers.append(partial(nn.Linear, width, 3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    inputs = rng.standard_normal((24, channels, side, side)).astype(np.float32)
    examples = Examples(inputs, np.arange(24) % 3)
    return Task(
        "any", lambda: nn.Sequential(*[layer() for layer in layers]), lambda: examples,
        lambda: examples,
    )  # fmt: skip


CASES = (tasks(), st.floats(0.05, 1), st.integers(0, 9))
"""A task, a density and a seed."""


def reports_of(name: str, task: Task, density: float, seed: int) -> tuple[RunConfig, list[Report]]:
    """Run two rounds on two devices, which adjust after the first."""
    config = resolve(
        make_config(
            {"method": name, "density": density, "seed": seed, "rounds": 2, "adjust_every": 1,
             "adjust_stop": 2, "server_epochs": 1, "epochs": 2, "batch_size": 4, "lr": 0.01,
             "max_change": 0}
        )
    )  # fmt: skip
    engine, _ = make_engine(task, "", seed, "auto")
    data = task.train_data()
    shares = [data.take(part) for part in np.split(np.arange(len(data)), 3)]
    fleet = LocalFleet([Device(i, share, engine, config) for i, share in enumerate(shares[:2])])
    return config, list(run_rounds(Server(config, task, engine, data), fleet, shares[2]))


def check_any_model(name: str, task: Task, density: float, seed: int) -> None:
    engine, _ = make_engine(task, "", seed, "auto")
    density = METHODS[name].settings.get("density", density)
    sizes = [math.prod(shape) for shape in engine.layout.prunable_shapes.values()]
    if math.floor(density * sum(sizes) + 1e-9) < len(sizes):
        with pytest.raises(ConfigError, match="raise density"):
            reports_of(name, task, density, seed)
    else:
        assert_sparse(*reports_of(name, task, density, seed))


@pytest.mark.parametrize("name", slow_but(WHOLE, METHODS))
@settings(max_examples=2, deadline=None, derandomize=True)
@given(*CASES)
def test_any_model_of_any_density_keeps_its_budget(
    name: str, task: Task, density: float, seed: int
) -> None:
    check_any_model(name, task, density, seed)


@pytest.mark.slow
@every_method
@settings(max_examples=50, deadline=None)
@given(*CASES)
def test_many_more_models_keep_their_budget(
    name: str, task: Task, density: float, seed: int
) -> None:
    check_any_model(name, task, density, seed)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "dense"])
def test_a_density_that_leaves_a_layer_without_weights_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="raise density or exempt less"):
        run(name, density=1e-4)
    with pytest.raises(ConfigError, match="raise density or exempt less"):
        run(name, density=0.01, exempt="last,first")


# The table -----------------------------------------------------------------------------------


@every_method
def test_a_row_says_what_it_is_and_what_it_costs(name: str) -> None:
    row = METHODS[name]
    assert row.about.strip() and "\n" not in row.about
    assert row.ablation_of == "" or METHODS[row.ablation_of].ablation_of == ""
    assert row.settings.keys() <= KEYS.keys()
    rng, config = np.random.default_rng(0), resolve(make_config({"method": name}))
    masks = {layer: rng.random((30, 20)) < 0.1 for layer in "abcdef"}
    cost = row.score_bytes(config, masks)
    assert cost > 0 if changes_masks(name) else cost == 0


@every_method
def test_what_a_row_fixes_wins_over_the_user(name: str) -> None:
    resolved = resolve(make_config({"method": name, "density": 0.3, "selection": "vanilla"}))
    fixed = METHODS[name].settings
    assert {key: getattr(resolved, key) for key in fixed} == dict(fixed)
    assert resolve(resolved) == resolved
    assert make_config(resolved.as_dict()) == resolved


def test_ablations_are_named_after_their_method() -> None:
    parts = {name: row.ablation_of for name, row in METHODS.items() if row.ablation_of}
    assert len(parts) >= 5
    assert all(name.startswith(f"{whole}-") for name, whole in parts.items())
    abouts = [row.about for row in METHODS.values()]
    assert len(set(abouts)) == len(abouts)


# Finding a method ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("fedtinny", "no method 'fedtinny'; give one of fedtiny, .*feddst or a path like"),
        ("", "no method ''"),
        (":NAME", "no method ':NAME'"),
        ("fedkit.methods.registry:", "no method 'fedkit.methods.registry:'"),
        ("nowhere.to_be:FOUND", "cannot be imported .*run from the folder that holds it"),
        (
            "fedkit.methods.registry:METHODS",
            "leads to a dict; .*must be a fedkit.methods.interface.Method",
        ),
        (
            "fedkit.methods.registry:NOTHING",
            "leads to nothing; 'NOTHING' must be a fedkit.methods.interface.Method",
        ),
    ],
)
def test_a_method_that_is_not_there_is_refused(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_method(path)


def test_a_method_of_ones_own_is_found_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_baseline.py").write_text(
        "from fedkit.methods.random_masks import RANDOM as MINE\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    assert load_method("my_baseline:MINE") is METHODS["random"]
    _, reports, _ = run("my_baseline:MINE")
    _, expected, _ = run("random")
    assert same_bits(reports[-1].state.weights, expected[-1].state.weights)
