"""Devices that vanish and return: a run equals one in which the same devices took part."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedkit.core.errors import FleetError
from fedkit.flower.fleet import FlowerFleet
from fedkit.flower.wire import from_records
from fedkit.methods.interface import whole_model
from fedkit.server.events import EventLog, read_events
from fedkit.wire.messages import Packet
from sim.scenario import make_scenario
from tests.fleet import tiny
from tests.fleet.clock import Clock
from tests.fleet.grids import Node, ScriptedGrid, client_nodes, failed
from tests.fleet.partial import Partial, config, run
from tests.flower.same_bits import assert_same_bits
from tests.sets import slow


def round_of(message: Message) -> int:
    return int(from_records(message.content).numbers.get("round", 0))


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"selection": "vanilla"}, {0: {2}, 4: {0}}),
        ({"uplink_bits": 4}, {2: {1}, 3: {1}, 5: {2}}),
        ({"method": "prunefl"}, {1: {1}, 2: {0}}),
        slow(({}, {})),
        slow(({}, {2: {1}, 3: {1}})),
        slow(({}, {0: {2}, 1: {0}})),
        slow(({"method": "feddst"}, {2: {1}})),
        slow(({"aggregation": "median"}, {2: {1}, 3: {1}})),
        slow(({"wire": "fp16"}, {3: {0}})),
    ],
    ids=str,
)
def test_a_fleet_goes_on_without_devices_and_takes_them_back(
    changes: dict[str, Any], absent: dict[int, set[int]], tmp_path: Path
) -> None:
    scenario = make_scenario(config(**changes))
    grid = ScriptedGrid(client_nodes(scenario))
    gone = {number: {100 + index for index in devices} for number, devices in absent.items()}

    def leave(message: Message) -> None:
        # A node goes as its message is on the way: the reply is an error of the grid.
        grid.online = set(grid.nodes) - gone.get(round_of(message), set())

    grid.before = leave
    log = EventLog(tmp_path / "events")
    flower = run(scenario, FlowerFleet(grid, scenario.config, log=log))
    in_process = run(scenario, Partial(scenario, absent))
    for one, other in zip(flower, in_process, strict=True):
        assert_same_bits(one.state, other.state)
    events = list(read_events(tmp_path / "events"))
    told = {event["device"] for event in events if event["event"] == "absent"}
    assert told == {device for devices in absent.values() for device in devices}


@pytest.mark.slow
def test_a_device_that_never_returns_costs_one_deadline(clock: Clock) -> None:
    scenario = make_scenario(config(deadline=1000.0))
    grid = ScriptedGrid(client_nodes(scenario))

    def leave(message: Message) -> None:
        if round_of(message) == 2:
            grid.online.discard(101)

    grid.before = leave
    flower = run(scenario, FlowerFleet(grid, scenario.config))
    in_process = run(scenario, Partial(scenario, {number: {1} for number in range(2, 6)}))
    assert_same_bits(flower[-1].state, in_process[-1].state)
    assert 1000 <= clock.now < 1010


def test_the_longer_a_wait_the_less_often_the_server_is_asked(clock: Clock) -> None:
    looks: list[float] = []

    class Told(ScriptedGrid):
        def get_node_ids(self) -> Iterable[int]:
            looks.append(clock.now)
            return super().get_node_ids()

    silent = Told({node: lambda message: None for node in range(3)})
    fleet = FlowerFleet(silent, tiny.config(deadline=100.0))
    request = whole_model(tiny.engine().initial_state())
    looks.clear()
    with pytest.raises(FleetError, match="0 of 3 devices answered phase 'train' within 100 s"):
        fleet.exchange("train", request, lambda packet: packet)
    pauses = [round(after - before, 6) for before, after in pairwise(looks)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.2, 2.0)
    assert all(pause <= max(0.2, now / 5) + 1e-6 for now, pause in zip(looks, pauses, strict=False))


def test_a_restarted_node_without_a_key_is_its_device_again(tmp_path: Path) -> None:
    scenario = make_scenario(config(deadline=600.0, min_share=1.0))
    grid, log = ScriptedGrid(client_nodes(scenario)), EventLog(tmp_path / "events")

    def restart(message: Message) -> None:
        if round_of(message) == 3 and 101 in grid.online:
            grid.nodes[777] = grid.nodes.pop(101)
            grid.online = set(grid.nodes)

    grid.before = restart
    flower = run(scenario, FlowerFleet(grid, scenario.config, log=log))
    assert not [e for e in read_events(tmp_path / "events") if e["event"] == "refused"]
    assert_same_bits(flower[-1].state, run(scenario, scenario.local_fleet())[-1].state)


def test_a_device_that_returns_within_the_deadline_is_asked_again() -> None:
    scenario = make_scenario(config(deadline=600.0, rounds=2, min_share=1.0))
    grid = ScriptedGrid(client_nodes(scenario))
    crashes = [101, 101, 102]

    def crash_once(node: Node, number: int) -> Node:
        def answer(message: Message) -> Message | None:
            if number in crashes:
                crashes.remove(number)
                return failed(message, 8, "the app was killed")
            return node(message)

        return answer

    grid.nodes = {number: crash_once(node, number) for number, node in grid.nodes.items()}
    flower = run(scenario, FlowerFleet(grid, scenario.config))
    assert crashes == []
    assert_same_bits(flower[-1].state, run(scenario, scenario.local_fleet())[-1].state)


def test_too_few_devices_end_the_run_and_the_message_says_how_many() -> None:
    scenario = make_scenario(config(deadline=0.3, min_share=0.6))
    grid = ScriptedGrid(client_nodes(scenario))
    fleet = FlowerFleet(grid, scenario.config)
    grid.nodes |= {100: lambda message: None, 101: lambda message: None}
    with pytest.raises(FleetError, match=r"1 of 3 devices answered .* and 2 are needed"):
        run(scenario, fleet)


def test_a_device_whose_app_fails_is_not_waited_for() -> None:
    scenario = make_scenario(config(deadline=1000.0, min_share=1.0))
    grid = ScriptedGrid(client_nodes(scenario))
    grid.nodes[101] = lambda message: failed(message, 2, "out of memory")
    with pytest.raises(FleetError, match=r"1 of 3 devices failed .* says: .*out of memory"):
        run(scenario, FlowerFleet(grid, scenario.config))
    scenario = make_scenario(config(deadline=1000.0, rounds=1))
    steps = run(scenario, FlowerFleet(grid, scenario.config))
    in_process = run(scenario, Partial(scenario, {0: {1}, 1: {1}}))
    assert_same_bits(steps[-1].state, in_process[-1].state)


@pytest.mark.parametrize(("online", "word"), [(1, "1 of 3 devices connected"), (4, "4 nodes are")])
def test_the_wrong_number_of_nodes_is_refused(online: int, word: str) -> None:
    scenario = make_scenario(config(deadline=0.3))
    nodes = client_nodes(scenario)
    nodes[7] = nodes[100]
    grid = ScriptedGrid(nodes)
    grid.online = set(list(nodes)[:online])
    with pytest.raises(FleetError, match=word):
        FlowerFleet(grid, scenario.config)


def test_only_registered_nodes_are_asked() -> None:
    scenario = make_scenario(config(rounds=1, min_share=1.0))
    nodes = client_nodes(scenario)
    nodes[7] = nodes[100]
    grid = ScriptedGrid(nodes)
    fleet = FlowerFleet(grid, scenario.config, indices={100: 0, 101: 1, 102: 2})
    run(scenario, fleet)
    assert {message.metadata.dst_node_id for message in grid.sent} == {100, 101, 102}


def test_who_is_waited_for_in_a_round_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = make_scenario(config(selection="vanilla", deadline=100.0))
    grid = ScriptedGrid(client_nodes(scenario))

    def leave(message: Message) -> None:
        grid.online = set(grid.nodes) - ({101} if round_of(message) == 2 else set())

    grid.before = leave
    log = EventLog(tmp_path / "events")
    run(scenario, FlowerFleet(grid, scenario.config, log=log))
    told = [line for line in capsys.readouterr().out.splitlines() if "waiting" in line]
    assert told[0].startswith("2 of 3 devices have answered; waiting up to 8")
    assert "s for device 1, not connected" in told[0]
    events = [e for e in read_events(tmp_path / "events") if e["event"] == "waiting"]
    assert len(events) == len(told) > 5
    assert all((e["connected"], e["devices"]) == (2, 3) for e in events)
    left = [e["seconds_left"] for e in events]
    assert left == sorted(left, reverse=True) and left[0] - left[1] >= 10


def test_who_is_waited_for_is_counted_where_nodes_are_not_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before a node has said which device it is, those that are missing have no names."""
    scenario = make_scenario(config(selection="vanilla", deadline=100.0))
    nodes = client_nodes(scenario)
    nodes[100] = lambda message: None
    grid = ScriptedGrid(nodes)
    fleet = FlowerFleet(grid, scenario.config.changed(min_share=0.3))
    grid.online.discard(101)
    model = whole_model(scenario.engine.initial_state())
    first = model.changed(lambda packet: Packet(packet.arrays, {**packet.numbers, "round": 1}))
    fleet.exchange("train", first, lambda packet: packet)
    told = capsys.readouterr().out
    assert "1 of 3 devices have answered; waiting up to" in told
    assert "s for 1 others, not connected" in told
