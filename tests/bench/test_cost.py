from __future__ import annotations

import functools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedkit.bench import cost
from fedkit.bench.cost import Untrained, play
from fedkit.bench.measured import DeviceCost, MeasuredFleet
from fedkit.bench.replay import Recorded, device_memory, save_messages, worth_replaying
from fedkit.config import RunConfig, make_config
from fedkit.engine.choose import sparse_equivalent
from fedkit.engine.flops import WeightUses, positions
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.methods.interface import Request, changed_model
from fedkit.methods.registry import resolve
from fedkit.methods.schedule import adjusts_in
from fedkit.server.rounds import Server, train_round
from fedkit.sparse.state import ModelState
from fedkit.tasks.digits import TASK
from fedkit.tasks.task import Task
from fedkit.wire import messages
from fedkit.wire.messages import Packet
from tests.fresh import HEAVY, modules_of
from tests.sets import slow_but

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read where Linux tells it")


@functools.cache
def parts() -> tuple[Task, SparseEngine, WeightUses]:
    reference = TorchEngine.for_task(TASK, "resnet8", 0)
    geometry = positions(reference.module(reference.initial_state()), (1, 8, 8))
    task = replace(TASK, model="resnet8")
    return task, sparse_equivalent(reference, task), geometry


def config(method: str) -> RunConfig:
    values = {"rounds": 30, "epochs": 2, "density": 0.05, "adjust_every": 4, "adjust_stop": 13}
    return resolve(make_config({**values, "method": method, "devices": 1}))


def every_round(
    server: Server, fleet: MeasuredFleet, state: ModelState, request: Request
) -> list[DeviceCost]:
    """Do all rounds, also those that are equal: the slow reference."""
    costs = []
    for number in range(1, server.config.rounds + 1):
        sent, before = state, fleet.paid
        state, _ = train_round(server, fleet, request, sent, number)
        request = changed_model(state, sent.masks)
        costs.append(fleet.paid_since(before))
    return costs


@pytest.mark.slow
@pytest.mark.parametrize("method", slow_but(("fedtiny",), ("dense", "fedtiny", "snip")))
def test_rounds_that_are_left_out_cost_what_they_would(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, engine, geometry = parts()
    short = play(config(method), task, engine, geometry)
    monkeypatch.setattr(cost, "_rounds", every_round)
    full = play(config(method), task, engine, geometry)
    assert short.before == full.before and short.rounds == full.rounds


def test_flops_are_those_of_the_schedule() -> None:
    task, engine, geometry = parts()
    run = play(config("snip"), task, engine, geometry)
    examples = 2 * len(task.train_data())
    assert [paid.flops for paid in run.rounds] == 30 * [examples * geometry.train_step(run.masks)]


def test_a_method_that_needs_dense_gradients_pays_for_them() -> None:
    task, engine, geometry = parts()
    prunefl, snip = (play(config(name), task, engine, geometry) for name in ("prunefl", "snip"))
    dense = {name: np.ones_like(mask) for name, mask in snip.masks.items()}
    weights = 2 * len(task.train_data()) * geometry.backward_weights(dense)
    # The last of the adjustments every 4 rounds before round 13; after it nobody asks any more.
    assert [paid.flops > weights for paid in prunefl.rounds] == [n <= 12 for n in range(1, 31)]
    assert all(paid.flops < weights for paid in snip.rounds)


def test_what_is_recorded_is_everything_once() -> None:
    task, engine, geometry = parts()
    run = play(config("fedtiny"), task, engine, geometry)
    seen = [(message.phase, message.request.numbers.get("round")) for message in run.recorded]
    assert seen == [("moments", None), ("losses", None), ("train", 1), ("train", 4)]
    assert not adjusts_in(config("fedtiny"), 1) and adjusts_in(config("fedtiny"), 4)
    assert not worth_replaying(config("fedtiny"))("train", Packet({}, {"round": 5}))


def test_an_untrained_engine_answers_like_a_real_one() -> None:
    task, engine, _ = parts()
    untrained, state = Untrained(engine), engine.initial_state()
    masks = {name: np.arange(m.size).reshape(m.shape) % 9 == 0 for name, m in state.masks.items()}
    sparse, data = state.with_masks(masks), task.train_data()
    name = next(iter(masks))
    found = untrained.top_gradients(sparse, data, {name: 7})[name]
    assert len(found.indices) == 7 and not masks[name].reshape(-1)[found.indices].any()
    moments = untrained.norm_moments(sparse, data)
    assert moments.keys() == engine.norm_moments(sparse, data.take(np.arange(9))).keys()
    assert untrained.outputs(sparse, data.inputs[:3]).shape == (3, 10)


def first_message(engine: SparseEngine, every: int) -> Recorded:
    """Ask for round 1 with a model that keeps every `every`-th weight."""
    state = engine.initial_state()
    masks = {n: np.arange(m.size).reshape(m.shape) % every == 0 for n, m in state.masks.items()}
    packed = messages.pack_state(state.with_masks(masks), None)
    return Recorded("train", Packet(packed.arrays, {**packed.numbers, "round": 1}), Packet({}))


@linux
def test_a_device_imports_little(tmp_path: Path) -> None:
    """What it imports it holds as long as it lives; pydantic alone was 12 MB."""
    task, engine, _ = parts()
    data = task.train_data().take(np.arange(64))
    save_messages(tmp_path, engine, config("fedtiny"), data, [first_message(engine, 50)])
    found = modules_of(f"from fedkit.bench.replay_child import main\nmain({str(tmp_path)!r})")
    assert {"numpy", "fedkit"} <= found
    heavy = {*HEAVY, "pydantic", "scipy", "safetensors", "typer", "rich"}
    assert {name.partition(".")[0] for name in found} & heavy == set()
    # Ops of other models, how a server makes plans, and the integer engine were 3 MB.
    others = (
        "engine.ops.attention",
        "engine.plan.from_graph",
        "graph.ops",
        "engine.integer.engine",
    )
    assert {f"fedkit.{name}" for name in others} & found == set()
    assert {"difflib", "tomllib", "wave"} & found == set()


@linux
def test_replayed_messages_are_answered_in_a_process_of_its_own() -> None:
    task, engine, _ = parts()
    run = config("snip").changed(epochs=1)
    data, grown = task.train_data().take(np.arange(64)), []
    for every in (1, 50):
        measured = device_memory(engine, run, data, [first_message(engine, every)])
        assert measured["peak_bytes"] > measured["idle_bytes"] > 1e7
        grown.append(measured["peak_bytes"] - measured["idle_bytes"])
    assert grown[0] > grown[1]


def test_rows_of_less_memory_differ_in_that_alone() -> None:
    task, engine, geometry = parts()
    run = play(config("fedtiny"), task, engine, geometry)
    rows = [cost._row(r, engine, 10**8 // (n + 1)) for n, r in enumerate(
        [run, *cost._in_less_memory(run)]
    )]  # fmt: skip
    ways = [(row["stored_bits"], row["memory_bound_bytes"]) for row in rows]
    assert ways == [(32, None), (8, None), (4, None), (32, 30_000_000), (32, 13_500_000)]
    assert len({row["train_flops"] for row in rows}) == 1
    against = {**rows[0], "method": "prunefl"}, {**rows[0], "method": "dense"}
    rows = [row | cost._compared(row, [*rows, *against]) for row in rows]
    head, _, *lines = cost.table({"rows": rows})
    assert head.split(" | ")[2] == "bound"
    assert [line.split(" | ")[2] for line in lines] == ["", "", "", "30.0 MB", "13.5 MB"]
    assert lines[4].split(" | ")[9:11] == ["20.0 MB", "-80.0%"]
