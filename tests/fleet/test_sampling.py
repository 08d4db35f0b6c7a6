"""A part of the devices each round: the same draws and the same bits everywhere."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fedkit.config import RunConfig, make_config
from fedkit.core.errors import ConfigError, FleetError
from fedkit.flower.fleet import FlowerFleet
from fedkit.flower.wire import from_records
from fedkit.methods.interface import whole_model
from fedkit.server.events import EventLog, read_events
from fedkit.server.participation import OPENING, order
from fedkit.server.rounds import StoredStep, run_rounds
from fedkit.wire.messages import Packet
from sim.scenario import make_scenario
from tests.fleet.clock import Clock
from tests.fleet.grids import ScriptedGrid, client_nodes
from tests.fleet.partial import Partial, config, run
from tests.flower.same_bits import assert_same_bits
from tests.sets import slow


def sampled(**changes: Any) -> RunConfig:
    return config(**{"devices": 6, "devices_per_round": 2, "examples_per_device": 20, **changes})


def asked(how: RunConfig, number: int) -> set[int]:
    """Devices of a round, from the definition: a permutation of those that are there."""
    drawn = np.random.default_rng([how.seed, 8, number]).permutation(how.devices).tolist()
    there = {
        "always": lambda device: True,
        "random:0.7": lambda device: bool(
            np.random.default_rng([how.seed, 9, number]).random(how.devices)[device] < 0.7
        ),
    }[how.availability]
    return set(
        [device for device in drawn if there(device)][: how.devices_per_round or how.devices]
    )


def schedule(how: RunConfig) -> dict[int, set[int]]:
    everybody = set(range(how.devices))
    return {number: everybody - asked(how, number) for number in range(how.rounds + 1)}


@pytest.mark.parametrize(
    "changes",
    [
        {"uplink_bits": 4},
        {"availability": "random:0.7", "devices_per_round": 0, "selection": "vanilla"},
        {"method": "prunefl", "bn_merge": "exact"},
        slow({}),
        slow({"method": "feddst"}),
        slow({"method": "ssfl"}),
        slow({"wire": "fp16"}),
        slow({"aggregation": "median", "devices_per_round": 4}),
    ],
    ids=str,
)
def test_a_fleet_asks_those_that_were_drawn(changes: dict[str, Any], tmp_path: Path) -> None:
    scenario = make_scenario(sampled(**changes))
    here = run(scenario, scenario.local_fleet())
    naive = run(scenario, Partial(scenario, schedule(scenario.config)))
    log = EventLog(tmp_path / "events")
    grid = ScriptedGrid(client_nodes(scenario))
    flower = run(scenario, FlowerFleet(grid, scenario.config, log=log))
    for one, two, three in zip(here, naive, flower, strict=True):
        assert_same_bits(one.state, two.state)
        assert_same_bits(one.state, three.state)
        assert (one.bytes_down, one.bytes_up) == (three.bytes_down, three.bytes_up)
    assert not [event for event in read_events(tmp_path / "events") if event["event"] == "absent"]
    kinds = Counter(message.metadata.message_type for message in grid.sent)
    assert kinds["query.introduction"] == scenario.config.devices
    if scenario.config.devices_per_round:
        assert kinds["train"] == scenario.config.rounds * scenario.config.devices_per_round


def test_a_run_that_goes_on_asks_whom_it_would_have_asked(tmp_path: Path) -> None:
    """Devices of a fresh process remember from the run's folder."""
    scenario = make_scenario(sampled(uplink_bits=4))
    whole = run(scenario, scenario.local_fleet())
    first = run_rounds(scenario.server(), scenario.local_fleet(tmp_path), scenario.server_data)
    steps = [next(first) for _ in range(4)]
    last = steps[-1]
    rest = run_rounds(
        scenario.server(),
        scenario.local_fleet(tmp_path),
        scenario.server_data,
        after=StoredStep(last.phase, last.round, last.state),
    )
    for one, other in zip([*steps, *rest], whole, strict=True):
        assert_same_bits(one.state, other.state)


def test_who_is_not_connected_is_not_chosen() -> None:
    scenario = make_scenario(sampled(devices_per_round=3))
    grid = ScriptedGrid(client_nodes(scenario))
    grid.online.discard(102)

    fleet = FlowerFleet(grid, scenario.config.changed(deadline=0.3))
    run(scenario, fleet)
    trained = [m.metadata.dst_node_id for m in grid.sent if m.metadata.message_type == "train"]
    assert 102 not in trained
    assert len(trained) == 3 * scenario.config.rounds


def test_a_node_that_does_not_say_which_device_it_is_is_asked_once(clock: Clock) -> None:
    scenario = make_scenario(sampled(devices_per_round=3, deadline=100.0))
    nodes = client_nodes(scenario)
    answer = nodes[102]
    nodes[102] = lambda message: (
        None if message.metadata.message_type == "query.introduction" else answer(message)
    )
    grid = ScriptedGrid(nodes)
    run(scenario, FlowerFleet(grid, scenario.config))
    to_it = [m.metadata.message_type for m in grid.sent if m.metadata.dst_node_id == 102]
    assert to_it == ["query.introduction"]
    assert 100 <= clock.now < 110


def test_a_chosen_device_that_goes_away_is_absent(tmp_path: Path) -> None:
    scenario = make_scenario(sampled(devices_per_round=3, min_share=0.5, deadline=0.3))
    grid, log = ScriptedGrid(client_nodes(scenario)), EventLog(tmp_path / "events")
    victim = min(asked(scenario.config, 2))

    def leave(message: Message) -> None:
        number = from_records(message.content).numbers.get("round", 0)
        grid.online = set(grid.nodes) - ({100 + victim} if number == 2 else set())

    grid.before = leave
    flower = run(scenario, FlowerFleet(grid, scenario.config, log=log))
    absent = schedule(scenario.config)
    absent[2] |= {victim}
    for one, other in zip(flower, run(scenario, Partial(scenario, absent)), strict=True):
        assert_same_bits(one.state, other.state)
    told = [
        event["device"] for event in read_events(tmp_path / "events") if event["event"] == "absent"
    ]
    assert told == [victim]


def test_fewer_answers_than_needed_end_the_run() -> None:
    scenario = make_scenario(sampled(devices_per_round=3, min_share=1.0, deadline=0.3))
    grid = ScriptedGrid(client_nodes(scenario))
    victim = 100 + min(asked(scenario.config, 2))

    def leave(message: Message) -> None:
        if from_records(message.content).numbers.get("round", 0) == 2:
            grid.online.discard(victim)

    grid.before = leave
    with pytest.raises(FleetError, match="2 of 3 devices answered phase 'train'"):
        run(scenario, FlowerFleet(grid, scenario.config))


# More than are needed


def test_the_first_answers_are_taken_and_the_others_cost_their_bytes() -> None:
    """Of a simulation: what is taken is what a round without spare devices takes."""
    scenario = make_scenario(sampled(devices_per_round=2, over_selection=1.0))
    assert scenario.config.spare == 2
    few = make_scenario(sampled(devices_per_round=2))
    more, less = run(scenario, scenario.local_fleet()), run(few, few.local_fleet())
    for one, other in zip(more, less, strict=True):
        assert_same_bits(one.state, other.state)
        assert one.loss == other.loss
    assert more[-1].bytes_up == 2 * less[-1].bytes_up
    assert sum(each.bytes_down for each in more) > 1.5 * sum(each.bytes_down for each in less)


def test_a_slow_device_is_not_waited_for(tmp_path: Path, clock: Clock) -> None:
    """Of real devices: who comes first counts, and the round ends with enough."""
    scenario = make_scenario(sampled(devices_per_round=2, over_selection=0.5, deadline=1000.0))
    nodes = client_nodes(scenario)
    first = order(scenario.config, 2)
    assert first is not None
    slow_one, quick, spare = first[:3].tolist()
    answer = nodes[100 + slow_one]

    def slowly(message: Message) -> Message | None:
        number = from_records(message.content).numbers.get("round", 0)
        return None if number == 2 else answer(message)

    nodes[100 + slow_one] = slowly
    log = EventLog(tmp_path / "events")
    flower = run(scenario, FlowerFleet(ScriptedGrid(nodes), scenario.config, log=log))
    assert flower[-1].round == scenario.config.rounds
    assert clock.now < 10
    events = list(read_events(tmp_path / "events"))
    second = [e["event"] for e in events if e["event"] == "step"]
    assert not second  # steps are the server's to log
    assert not [e for e in events if e["event"] == "absent"]
    left = [e["device"] for e in events if e["event"] == "spare" and e["phase"] == "train"]
    assert len(left) == scenario.config.rounds and left[1] == slow_one
    answered = [e["device"] for e in events if e["event"] == "answer"]
    assert {quick, spare} <= set(answered)


def test_fewer_than_wanted_are_enough_where_min_share_says_so(clock: Clock) -> None:
    scenario = make_scenario(
        sampled(devices_per_round=4, over_selection=0.5, min_share=0.5, deadline=100.0)
    )
    nodes = client_nodes(scenario)
    for silent in (101, 102, 103):
        whole = nodes[silent]
        nodes[silent] = lambda message, whole=whole: (  # type: ignore[misc]
            whole(message) if message.metadata.message_type == "query.introduction" else None
        )
    fleet = FlowerFleet(ScriptedGrid(nodes), scenario.config)
    fleet.choose(range(6), 4, 2)
    model = whole_model(scenario.engine.initial_state())
    first = model.changed(lambda packet: Packet(packet.arrays, {**packet.numbers, "round": 1}))
    assert len(fleet.exchange("train", first, lambda packet: packet)) == 3
    assert (fleet.asked, fleet.wanted, fleet.needed) == (6, 4, 2)
    assert 100 <= clock.now < 110


def test_a_private_run_asks_whom_chance_says_and_may_ask_nobody(tmp_path: Path) -> None:
    private = {"dp_clip": 1.0, "method": "erk", "devices_per_round": 1, "rounds": 20}
    scenario = make_scenario(sampled(**private))
    grid, log = ScriptedGrid(client_nodes(scenario)), EventLog(tmp_path / "events")
    steps = run(scenario, FlowerFleet(grid, scenario.config, log=log))
    assert steps[-1].round == 20
    rounds = Counter(
        from_records(m.content).numbers["round"]
        for m in grid.sent
        if m.metadata.message_type == "train"
    )
    assert len(set(rounds.values()) | ({0} if len(rounds) < 20 else set())) > 1
    assert not [e for e in read_events(tmp_path / "events") if e["event"] in ("absent", "spare")]


@pytest.mark.parametrize(
    ("keys", "spare"),
    [
        ({"devices": 10, "devices_per_round": 3}, 0),
        ({"devices": 10, "devices_per_round": 3, "over_selection": 0.3}, 1),
        ({"devices": 10, "devices_per_round": 3, "over_selection": 1.0}, 3),
        ({"devices": 10, "devices_per_round": 3, "over_selection": 9.0}, 7),
        ({"devices": 3, "devices_per_round": 3, "over_selection": 0.5}, 0),
    ],
)
def test_spare_devices_are_a_share_and_never_more_than_there_are(
    keys: dict[str, Any], spare: int
) -> None:
    assert make_config(keys).spare == spare


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_any_number_of_workers_gives_the_same_bits(workers: int, precision: str) -> None:
    changes = {"devices_per_round": 5, "uplink_bits": 4, "precision": precision, "rounds": 3}
    scenario = make_scenario(sampled(**changes))
    alone = run(scenario, scenario.local_fleet())
    beside = run(scenario, scenario.local_fleet(workers=workers))
    for one, other in zip(alone, beside, strict=True):
        assert_same_bits(one.state, other.state)
        assert (one.loss, one.bytes_up) == (other.loss, other.bytes_up)


# Who is drawn


def draws(how: RunConfig, rounds: int = 400) -> list[list[int]]:
    found = [order(how, number) for number in range(1, rounds + 1)]
    return [each.tolist()[: how.asked] for each in found if each is not None]


def test_every_device_is_drawn_alike() -> None:
    how = make_config({"devices": 20, "devices_per_round": 5})
    found = draws(how, 2000)
    assert all(len(set(each)) == 5 for each in found)
    counts = np.bincount(np.concatenate(found), minlength=20)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)
    assert draws(how, 5) == draws(how, 5)
    assert draws(how, 5) != draws(how.changed(seed=2), 5)


def test_all_devices_are_asked_where_nothing_else_is_said() -> None:
    assert order(make_config({"devices": 3}), OPENING) is None


def test_random_availability_is_a_rate() -> None:
    found = draws(make_config({"devices": 50, "availability": "random:0.3"}))
    assert abs(np.mean([len(each) for each in found]) - 15) < 0.6


def test_day_and_night_follow_each_other() -> None:
    """Of a period of 24 rounds each of 4 devices is there for 12, 6 rounds after the one before."""
    how = make_config({"devices": 4, "availability": "cycle:24:0.5"})
    there = [[device in each for each in draws(how, 48)] for device in range(4)]
    for device, rounds in enumerate(there):
        wanted = [(number + 6 * device) % 24 < 12 for number in range(1, 49)]
        assert rounds == wanted


def test_a_trace_says_who_is_there(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("0,0,2\n1,2,3\n\n 0 , 5 ,5\n")
    how = make_config({"devices": 3, "availability": f"trace:{tmp_path / 'trace.csv'}"})
    found = [order(how, number) for number in (0, 1, 2, 3, 5)]
    assert [sorted(each.tolist()) for each in found if each is not None] == [
        [0], [0], [0, 1], [1], [0]
    ]  # fmt: skip
    with pytest.raises(FleetError, match="none of 3 devices is there in round 4"):
        order(how, 4)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("3,0,1", "line 1 of .* is 3,0,1; it must be a device from 0 to 2"),
        ("0,0,1\n1,4,2", "line 2 of .* first and the last round"),
        ("0,1", "three numbers"),
        ("a,b,c", "three numbers"),
        ("-1,0,1", "three numbers"),
        ("0,0,1.5", "three numbers"),
        ("\0,\xff", "three numbers|cannot be read"),
    ],
)
def test_traces_that_cannot_be_are_refused(lines: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(lines, encoding="latin-1")
    with pytest.raises(ConfigError, match=message):
        order(make_config({"devices": 3, "availability": f"trace:{tmp_path}/trace.csv"}), 1)


@pytest.mark.parametrize(
    "text",
    [
        "", "sometimes", "always:1", "random", "random:", "random:0", "random:1.1", "random:nan",
        "random:-1", "cycle:0:0.5", "cycle:24", "cycle:-3:0.5", "cycle:2.5:0.5", "cycle:9:2",
        "trace:", "trace:/nowhere/at/all", "trace:/dev/zero", "Random:0.5",
    ],
)  # fmt: skip
def test_availability_that_is_none_is_refused_before_work(text: str) -> None:
    how = make_config({"devices": 3, "availability": text})
    with pytest.raises(ConfigError, match="availability is "):
        make_scenario(how.changed(task="digits")).check()


def test_keys_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="devices_per_round is 4, and there are 3 devices"):
        make_config({"devices": 3, "devices_per_round": 4})
    with pytest.raises(ConfigError, match=r"over_selection is .*and a round asks all devices"):
        make_config({"devices": 3, "over_selection": 0.5})
    with pytest.raises(ConfigError, match="dp_clip needs availability always"):
        make_config({"dp_clip": 1.0, "availability": "random:0.5"})
