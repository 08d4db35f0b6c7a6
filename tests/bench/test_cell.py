from __future__ import annotations

import functools
from typing import Any, get_args

import pytest

from fedkit.bench.cell import DENSE_START_KEYS, dense_model, run_cell
from fedkit.config import KEYS, make_config
from fedkit.core.config_keys import Key
from fedkit.flower.client_app import MESSAGE_TYPES
from fedkit.flower.wire import packet_bytes
from fedkit.server.rounds import dense_start, run_rounds
from fedkit.sparse.state import ModelState
from sim.scenario import make_scenario
from tests.server.recording import RecordingFleet
from tests.sets import slow_but

TINY = {
    "devices": 2,
    "rounds": 2,
    "epochs": 1,
    "examples_per_device": 30,
    "test_examples": 60,
    "server_epochs": 1,
    "sparse_epochs": 2,
    "adjust_every": 1,
    "adjust_stop": 2,
}


@pytest.mark.parametrize("method", slow_but(("fedtiny",), ("fedtiny", "dense")))
def test_a_cell_tells_what_the_rounds_of_its_config_do(method: str) -> None:
    config = make_config({**TINY, "method": method})
    scenario = make_scenario(config)
    fleet = RecordingFleet(scenario.local_fleet())
    reports = list(run_rounds(scenario.server(), fleet, scenario.server_data))
    cell = run_cell(config)
    assert cell["accuracies"] == [r.accuracy for r in reports if r.phase == "round"]
    assert cell["accuracy"] == reports[-1].accuracy
    assert cell["density_measured"] == reports[-1].density
    down = up = 0
    for phase, request, replies in fleet.log:
        for reply in replies:
            down += packet_bytes(request, MESSAGE_TYPES[phase])
            up += packet_bytes(reply, MESSAGE_TYPES[phase])
    assert (cell["bytes_down"], cell["bytes_up"]) == (down, up)
    assert down > sum(report.bytes_down for report in reports)
    assert {key: cell[key] for key in ("method", "devices", "rounds", "seed")} == {
        "method": method,
        "devices": 2,
        "rounds": 2,
        "seed": 1,
    }
    again = run_cell(config)
    measured = dict.fromkeys(("seconds", "idle_bytes", "peak_bytes"), 0)
    assert {**again, **measured} == {**cell, **measured}
    assert cell["seconds"] > 0 and cell["peak_bytes"] > cell["idle_bytes"] > 1e7


def bits(state: ModelState) -> bytes:
    return b"".join(
        value.tobytes() for part in (state.weights, state.stats) for value in part.values()
    )


@functools.cache
def start(**changes: Any) -> bytes:
    """The dense start as a run of its own makes it, from its own scenario."""
    config = make_config({**TINY, **changes})
    scenario = make_scenario(config)
    return bits(dense_start(scenario.server(), scenario.server_data))


def other(key: str, info: Key) -> str | float:
    """Some value that is not what `TINY` has."""
    if choices := [c for c in get_args(info.kind) if c not in (info.default, "natural-id")]:
        return str(choices[0])
    if info.kind is str:
        return {"exempt": "first"}[key]
    if info.kind is int:
        return int(TINY.get(key, info.default)) + (2 if key == "uplink_bits" else 1)
    return float(info.default) * 0.9


@pytest.mark.parametrize(
    "key",
    # Noise without clipping is refused.
    slow_but(
        ("density", "partition", "rounds"),
        sorted(KEYS.keys() - {*DENSE_START_KEYS, "method", "dp_noise", "dp_delta"}),
    ),
)
def test_no_other_key_changes_the_dense_start(key: str) -> None:
    changed = {key: other(key, KEYS[key])}
    assert start(**changed) == start()


def test_the_dense_start_of_a_cell_is_that_of_its_run_and_is_made_once_per_seed() -> None:
    config = make_config({**TINY, "density": 0.3, "method": "dense"})
    made = dense_model(config)
    assert bits(made) == start()
    assert dense_model(make_config({**TINY, "rounds": 7})) is made
    other_seed = dense_model(make_config({**TINY, "seed": 2}))
    assert bits(other_seed) == start(seed=2) != start()
