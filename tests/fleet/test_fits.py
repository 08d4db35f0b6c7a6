"""A device whose data is not the run's takes no part, and is named before the first round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkit.core.errors import ConfigError, DataError, FleetError
from fedkit.device.data import Expected
from fedkit.flower.client_app import MESSAGE_TYPES, make_client_app
from fedkit.flower.fleet import FlowerFleet
from fedkit.flower.wire import lone_message
from fedkit.server.events import EventLog, read_events
from fedkit.tasks.task import Examples
from fedkit.wire.messages import Packet
from sim.scenario import make_scenario
from tests.fleet.grids import ScriptedGrid, client_nodes
from tests.fleet.partial import config, run

RNG = np.random.default_rng(0)


def examples(*shape: int, scale: float = 1.0) -> Examples:
    inputs = (scale * RNG.random((20, *shape))).astype(np.float32)
    return Examples(inputs, np.arange(20, dtype=np.int64) % 10)


TASK = Expected.of("digits", examples(1, 8, 8), "ab" * 32)


def test_what_is_expected_survives_the_way_to_a_device() -> None:
    assert Expected.parse(TASK.text()) == TASK
    assert TASK.shape == (1, 8, 8)
    assert abs(TASK.scale - np.sqrt(1 / 3)) < 0.05  # of numbers drawn from 0 .. 1


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (examples(1, 28, 28), r"shape \(1, 28, 28\), those of task digits have \(1, 8, 8\)"),
        (examples(3, 8, 8), "shape"),
        (examples(64), "shape"),
        (examples(8, 8, 1), "shape"),
        (examples(1, 8, 8, scale=255), "not in one unit: scale them as the task does"),
        (examples(1, 8, 8, scale=1 / 255), "not in one unit"),
        (examples(1, 8, 8, scale=0), "not in one unit"),
        (examples(1, 8, 8, scale=1e30), "not in one unit"),
    ],
    ids=str,
)
def test_other_data_is_refused(share: Examples, words: str) -> None:
    with pytest.raises(DataError, match=words):
        TASK.check(share)


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_an_odd_device_is_admitted(scale: float) -> None:
    flat = Expected.of("features", examples(64))
    admitted = 0
    for expected, share in (
        (TASK, examples(1, 8, 8, scale=scale)),
        (flat, examples(64, scale=scale)),
        (flat, examples(64, 1, 1, scale=scale)),  # what engines make of a line of numbers
    ):
        expected.check(share)
        admitted += 1
    assert admitted == 3


def test_another_plan_is_refused() -> None:
    TASK.check_plan("ab" * 32)
    replace(TASK, plan="").check_plan("cd" * 32)
    with pytest.raises(DataError, match=r"copy the server's model\.plan into the device's folder"):
        TASK.check_plan("cd" * 32)


SCALARS = st.none() | st.booleans() | st.floats() | st.text()
KEYS = st.sampled_from(["task", "shape", "scale", "plan", "x"])


@given(
    st.text()
    | st.lists(SCALARS).map(str)
    | st.dictionaries(KEYS, SCALARS | st.lists(SCALARS)).map(str)
)
@settings(deadline=None)
def test_an_altered_text_is_named(text: str) -> None:
    try:
        Expected.parse(text)
    except ConfigError as error:
        assert "fedkit fleet run writes it" in str(error)


def odd(device: int, words: str) -> Any:
    """Nodes of which one refuses its data, as its ClientApp does."""
    scenario = make_scenario(config())

    def refuse(context: Context) -> Any:
        raise DataError(words)

    app = make_client_app(refuse)
    nodes = client_nodes(scenario)

    def answer(message: Message) -> Message:
        return app(message, Context(1, 100 + device, {}, RecordDict(), {}))

    return scenario, {**nodes, 100 + device: answer}


def test_a_device_that_does_not_fit_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario, nodes = odd(1, "these are\n no digits \x1b[2J[red]")
    log = EventLog(tmp_path / "events.jsonl")
    known = {100 + index: index for index in range(3)}
    fleet = FlowerFleet(ScriptedGrid(nodes), scenario.config, indices=known, log=log)
    assert len(run(scenario, fleet)) == 2 + scenario.config.rounds  # the others went on
    out, err = capsys.readouterr()
    assert "device 1 cannot take part: these are\\n no digits \\x1b[2J[red]" in out
    assert "Traceback" not in out + err and "error: these are" in err
    absent = {e["device"] for e in read_events(tmp_path / "events.jsonl") if e["event"] == "absent"}
    assert absent == {1}


def test_a_run_that_needs_every_device_does_not_start(tmp_path: Path) -> None:
    scenario, nodes = odd(2, "this device holds data of task 'digits'")
    settings = scenario.config.changed(min_share=1.0)
    grid = ScriptedGrid(nodes)
    fleet = FlowerFleet(grid, settings, indices={100 + index: index for index in range(3)})
    with pytest.raises(FleetError, match="device 2: this device holds data of task 'digits'"):
        run(replace(scenario, config=settings), fleet)
    assert len(grid.sent) == 3  # one message each: no round began


def test_an_error_of_ours_is_a_reply_and_not_a_traceback() -> None:
    def refuse(context: Context) -> Any:
        raise DataError("no data")

    for phase, kind in MESSAGE_TYPES.items():
        reply = make_client_app(refuse)(
            lone_message(Packet({}), kind), Context(1, 1, {}, RecordDict(), {})
        )
        assert reply.has_error() and reply.error.reason == "no data", phase
