"""Personal models behind Flower: the bits of one process, and a device that lost its memory."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from fedkit.flower.client_app import make_client_app
from fedkit.flower.fleet import FlowerFleet
from fedkit.flower.wire import from_records
from fedkit.wire.messages import PART
from sim.scenario import make_scenario
from tests.fleet.grids import ScriptedGrid, client_nodes
from tests.fleet.partial import config, run
from tests.flower.same_bits import assert_same_bits
from tests.sets import slow


@pytest.mark.parametrize(
    "changes",
    [
        {
            **{"local": "norm", "train": "norm+head", "uplink_bits": 4, "devices_per_round": 2},
            **{"device_eval": 2, "validation_share": 0.2},
        },
        slow({"local": "head", "selection": "adaptive"}),
        slow({"local": "norm", "wire": "fp16"}),
        slow({"train": "norm", "devices_per_round": 2}),
        slow({"method": "feddst", "uplink_bits": 4, "device_eval": 1, "validation_share": 0.3}),
        slow({"train": "norm", "precision": "int8"}),
    ],
    ids=str,
)
def test_a_fleet_has_the_bits_of_one_process(changes: dict[str, Any]) -> None:
    scenario = make_scenario(config(**{"selection": "none", "rounds": 4, **changes}))
    here = run(scenario, scenario.local_fleet())
    grid = ScriptedGrid(client_nodes(scenario))
    flower = run(scenario, FlowerFleet(grid, scenario.config))
    for one, other in zip(here, flower, strict=True):
        assert_same_bits(one.state, other.state)
        assert (one.bytes_down, one.bytes_up) == (other.bytes_down, other.bytes_up)
        assert one.devices == other.devices
    assert (here[-1].devices is not None) == ("device_eval" in changes)
    if "local" not in changes and "train" not in changes:
        return
    train = [m for m in grid.sent if m.metadata.message_type == "train"]
    whole = [m for m in train if PART not in from_records(m.content).numbers]
    assert len(whole) == len({m.metadata.dst_node_id for m in train}), "each gets it whole once"


def test_a_device_that_lost_its_memory_gets_the_model_whole_in_the_next_round() -> None:
    scenario = make_scenario(
        config(selection="none", local="norm", rounds=4, min_share=0.5, deadline=1.0)
    )
    nodes = client_nodes(scenario)
    app = make_client_app(lambda context: scenario.device(1))
    contexts = iter([Context(1, 101, {}, RecordDict(), {}) for _ in range(2)])
    held, numbers = [next(contexts)], []

    def forgets(message: Message) -> Message:
        packet = from_records(message.content)
        numbers.append((packet.numbers.get("round"), PART in packet.numbers))
        if packet.numbers.get("round") == 2:
            held[0] = next(contexts)
        return app(message, held[0])

    nodes[101] = forgets
    reports = run(scenario, FlowerFleet(ScriptedGrid(nodes), scenario.config))
    assert reports[-1].round == 4
    assert numbers == [(1, False), (2, True), (3, False), (4, True)]
