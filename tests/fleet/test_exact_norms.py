"""Runs whose norm statistics are asked for level by level, in process and through Flower."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkit.config import make_config
from fedkit.core.errors import ConfigError
from fedkit.device.memory import DurableMemory
from fedkit.flower.fleet import FlowerFleet
from fedkit.methods.interface import Phase, Request
from fedkit.methods.registry import load_method
from fedkit.server.privacy import check_private
from fedkit.server.rounds import Report, StoredStep, run_rounds
from sim.scenario import make_scenario
from tests.fleet.grids import ScriptedGrid, client_nodes
from tests.fleet.partial import run
from tests.flower.same_bits import assert_same_bits
from tests.methods.pooled import errors, pooled
from tests.server.recording import RecordingFleet
from tests.sets import slow

KEYS: dict[str, Any] = {
    "devices": 3,
    "rounds": 2,
    "epochs": 1,
    "examples_per_device": 20,
    "test_examples": 50,
    "adjust_every": 1,
    "adjust_stop": 2,
    "server_epochs": 1,
    "sparse_epochs": 1,
    "min_share": 0.5,
    "deadline": 0.5,
    "partition": "iid",
    "bn_merge": "exact",
}


@functools.cache
def steps(**changes: Any) -> tuple[list[Report], RecordingFleet]:
    scenario = make_scenario(make_config({**KEYS, **changes}))
    fleet = RecordingFleet(scenario.local_fleet())
    return list(run_rounds(scenario.server(), fleet, scenario.server_data)), fleet


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"uplink_bits": 4, "bn_merge": "exact-last"},
        slow({"wire": "fp16"}),
        slow({"aggregation": "median"}),
    ],
    ids=str,
)
def test_the_same_bits_come_through_flower(changes: dict[str, Any]) -> None:
    here, _ = steps(**changes)
    scenario = make_scenario(make_config({**KEYS, **changes}))
    flower = FlowerFleet(ScriptedGrid(client_nodes(scenario)), scenario.config)
    there = run(scenario, flower)
    for one, other in zip(here, there, strict=True):
        assert_same_bits(one.state, other.state)


def test_candidates_and_last_model_are_asked_level_by_level_and_nothing_else_changes() -> None:
    _, fleet = steps()
    phases = [phase for phase, _, _ in fleet.log]
    levels = len(make_scenario(make_config(KEYS)).engine.norm_levels((1, 8, 8)))
    assert phases == [*["moments"] * levels, "losses", "train", "train", *["moments"] * levels]
    plain, plain_fleet = steps(bn_merge="pooled")
    last, last_fleet = steps(bn_merge="exact-last")
    assert [phase for phase, _, _ in last_fleet.log].count("moments") == 1 + levels
    assert [phase for phase, _, _ in plain_fleet.log].count("moments") == 1
    for one, other in zip(plain[:-1], last[:-1], strict=True):
        assert_same_bits(one.state, other.state)
    for name, value in plain[-1].state.weights.items():
        assert value.tobytes() == last[-1].state.weights[name].tobytes()
    assert any(
        (plain[-1].state.stats[name] != value).any() for name, value in last[-1].state.stats.items()
    )


def test_a_message_holds_what_is_new_alone() -> None:
    """So that all levels together cost little more than one message for all norms."""
    _, fleet = steps()
    _, plain = steps(bn_merge="pooled")

    def asked(fleet: RecordingFleet) -> tuple[int, int]:
        log = [entry for entry in fleet.log[: fleet_start(fleet)] if entry[0] == "moments"]
        return (
            sum(request.nbytes for _, request, _ in log),
            sum(reply.nbytes for _, _, replies in log for reply in replies),
        )

    def fleet_start(fleet: RecordingFleet) -> int:
        return [phase for phase, _, _ in fleet.log].index("train")

    stats = 4 * 3 * sum(v.size for v in steps()[0][-1].state.stats.values())
    down, up = (a - b for a, b in zip(asked(fleet), asked(plain), strict=True))
    assert down < stats + 200 and up < 200


def test_the_last_statistics_are_those_of_all_training_data() -> None:
    """Of a whole run, in plain torch over the devices' pooled examples."""
    scenario, (reports, _) = make_scenario(make_config(KEYS)), steps()
    final = reports[-1].state
    model = scenario.module(final)
    right = pooled(model, scenario.devices)
    assert max(errors(final.stats, right).values()) < 1e-4


def test_devices_may_miss_a_message_and_a_server_that_starts_again_changes_no_bit() -> None:
    scenario = make_scenario(make_config(KEYS))
    grid, count = ScriptedGrid(client_nodes(scenario)), itertools.count()

    def leave(message: Any) -> None:
        # One device misses every second message that asks for moments.
        away = message.metadata.message_type == "query.bn_moments" and next(count) // 3 % 2
        grid.online = set(grid.nodes) - ({101} if away else set())

    grid.before = leave
    gone = run(scenario, FlowerFleet(grid, scenario.config))
    assert all(np.isfinite(value).all() for value in gone[-1].state.stats.values())
    # A server that ends before it stored the last round asks again.
    whole, _ = steps()
    server, fleet = scenario.server(), scenario.local_fleet()
    after = StoredStep("round", 1, whole[-2].state)
    (again,) = run_rounds(server, fleet, scenario.server_data, after=after)
    assert_same_bits(again.state, whole[-1].state)


def test_private_runs_ask_for_no_statistics() -> None:
    config = make_config({**KEYS, "dp_clip": 1.0, "method": "erk"})
    with pytest.raises(ConfigError, match="set bn_merge to pooled"):
        check_private(config, load_method("erk"))


@pytest.mark.slow
@pytest.mark.parametrize("left", [1, slow(4), slow(8)])
def test_a_board_that_remembers_on_disk_answers_a_server_that_starts_again(
    tmp_path: Path, left: int
) -> None:
    """The server dies with so many messages left, and goes on after the step it had stored.

    Error feedback must not be lost while the last statistics are asked for.
    """
    keys = {**KEYS, "uplink_bits": 4}
    scenario = make_scenario(make_config(keys))
    boards = [DurableMemory(tmp_path / str(index), "run") for index in range(len(scenario.devices))]

    class Boards:
        """Devices that answer from their disks; it ends with the process after some messages."""

        traffic = (0, 0)

        def __init__(self, messages: float = math.inf) -> None:
            self._left, self._known = messages, False

        def choose(self, order: Sequence[int], count: int, spare: int = 0) -> None:
            """Ask every device all the same."""

        def exchange(self, phase: Phase, request: Request, read: Any) -> list[Any]:
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
            packet = request.short if self._known and request.short else request.whole()
            self._known = True
            devices = [scenario.device(index) for index in range(len(boards))]
            pairs = zip(boards, devices, strict=True)
            return [read(board.answer(device.handle, phase, packet)) for board, device in pairs]

    whole, fleet = steps(uplink_bits=4)
    server, done = scenario.server(), list[Report]()
    with pytest.raises(KeyboardInterrupt):
        for step in run_rounds(server, Boards(len(fleet.log) - left), scenario.server_data):
            done.append(step)
    stored = done[-1]
    after = StoredStep(stored.phase, stored.round, stored.state)
    *_, end = run_rounds(server, Boards(), scenario.server_data, after=after)
    assert_same_bits(end.state, whole[-1].state)
