"""A run that ended early goes on to the bits of one that did not."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedkit.config import make_config
from fedkit.core.errors import CheckpointError
from fedkit.methods.interface import Phase
from fedkit.server.checkpoint import RunFolder
from fedkit.server.events import EventLog, read_events
from fedkit.server.record import record, run_folder
from fedkit.server.rounds import LocalFleet, Report
from fedkit.server.scenario import Scenario
from fedkit.wire.messages import Packet
from sim.scenario import make_scenario
from tests.ended_commands import HOLD
from tests.processes import started
from tests.sets import slow, slow_but

SMALL: dict[str, Any] = {
    "devices": 2,
    "rounds": 4,
    "epochs": 1,
    "examples_per_device": 30,
    "test_examples": 50,
    "adjust_every": 1,
    "adjust_stop": 3,
    "server_epochs": 1,
    "sparse_epochs": 2,
}


class KilledError(Exception):
    """Stands for a server that was killed."""


def bits(folder: Path) -> bytes:
    return b"".join(
        array.tobytes()
        for values in (lambda s: (s.weights, s.stats, s.masks))(RunFolder.open(folder).load().state)
        for array in values.values()
    )


def told(folder: Path) -> list[dict[str, Any]]:
    """What a run's metrics say, but for its time and for the bytes of models sent anew."""
    left_out = ("seconds", "bytes_down")
    lines = RunFolder.open(folder).metrics()
    return [{key: value for key, value in line.items() if key not in left_out} for line in lines]


def stop_at(step: int, scenario: Scenario, folder: Path, fleet: LocalFleet | None = None) -> None:
    steps = iter(range(step))

    def after(report: Report) -> None:
        if next(steps, None) is None:
            raise KilledError

    with pytest.raises(KilledError):
        record(scenario, fleet or scenario.local_fleet(), folder, after)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        slow({"method": "prunefl"}),
        slow({"wire": "fp16"}),
        slow({"method": "dense"}),
        slow({"method": "ssfl"}),
        slow({"uplink_bits": 4}),
    ],
    ids=str,
)
def test_a_run_that_is_stopped_after_any_step_ends_with_the_same_bits(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    scenario = make_scenario(make_config({**SMALL, **changes}))
    record(scenario, scenario.local_fleet(), tmp_path / "whole", lambda step: None)
    steps = len(told(tmp_path / "whole"))
    keeps = changes.get("method") == "prunefl" or "uplink_bits" in changes
    for step in range(steps - 1):
        folder, fleet = tmp_path / f"stopped-{step}", scenario.local_fleet()
        stop_at(step, scenario, folder, fleet)
        # What devices keep between rounds is theirs; where they keep nothing, new ones do as well.
        devices = fleet if keeps else scenario.local_fleet()
        record(scenario, devices, folder, lambda step: None, resume=True)
        assert bits(folder) == bits(tmp_path / "whole")
        assert told(folder) == told(tmp_path / "whole")


class Interrupted(LocalFleet):
    """Devices that answer the n-th message to train, and then the server is gone."""

    def __init__(self, scenario: Scenario, last: int) -> None:
        super().__init__([scenario.device(i) for i in range(len(scenario.devices))])
        self._left = last

    def answers(self, phase: Phase, request: Packet, asked: Sequence[int]) -> list[Packet]:
        replies = super().answers(phase, request, asked)
        if self._left == 0:
            raise KilledError
        self._left -= 1
        return replies


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bits of a small run that nothing stopped."""
    scenario, folder = make_scenario(make_config(SMALL)), tmp_path_factory.mktemp("whole") / "run"
    record(scenario, scenario.local_fleet(), folder, lambda step: None)
    return bits(folder)


@pytest.mark.parametrize("last", slow_but((0, 3, 5), range(6)))
def test_a_server_that_is_gone_before_it_stored_a_round_asks_again(
    last: int, whole: bytes, tmp_path: Path
) -> None:
    scenario = make_scenario(make_config(SMALL))
    with pytest.raises(KilledError):
        record(scenario, Interrupted(scenario, last), tmp_path / "run", lambda step: None)
    record(scenario, scenario.local_fleet(), tmp_path / "run", lambda step: None, resume=True)
    assert bits(tmp_path / "run") == whole


def test_a_metrics_line_that_was_not_written_whole_is_written_again(tmp_path: Path) -> None:
    scenario = make_scenario(make_config(SMALL))
    stop_at(3, scenario, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole[: whole.rstrip("\n").rindex("\n") + 20])
    assert len(told(tmp_path / "run")) == 3
    RunFolder.resume(tmp_path / "run", scenario.config)
    assert path.read_text() == whole


def test_another_config_is_refused_by_the_keys_that_differ(tmp_path: Path) -> None:
    scenario = make_scenario(make_config(SMALL))
    stop_at(1, scenario, tmp_path / "run")
    other = scenario.config.changed(density=0.2, seed=9)
    with pytest.raises(CheckpointError, match="has another seed, density; a run goes on as it"):
        RunFolder.resume(tmp_path / "run", other)


def test_a_finished_run_and_one_that_never_was_are_refused(tmp_path: Path) -> None:
    scenario = make_scenario(make_config({**SMALL, "rounds": 1}))
    record(scenario, scenario.local_fleet(), tmp_path / "run", lambda step: None)
    with pytest.raises(CheckpointError, match="is finished"):
        RunFolder.resume(tmp_path / "run", scenario.config)
    with pytest.raises(CheckpointError, match="not a run folder"):
        RunFolder.resume(tmp_path / "other", scenario.config)


def test_a_folder_is_a_run_from_its_first_moment(tmp_path: Path) -> None:
    scenario = make_scenario(make_config(SMALL))
    stop_at(0, scenario, tmp_path / "run")
    assert not list(tmp_path.glob(".*"))
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["phase"] == "start"


def test_a_server_that_died_while_it_made_the_checkpoints_folder_goes_on(tmp_path: Path) -> None:
    scenario = make_scenario(make_config({**SMALL, "rounds": 1}))
    RunFolder.create(tmp_path / "run", scenario.config)
    (tmp_path / "run" / "checkpoint").mkdir()
    record(scenario, scenario.local_fleet(), tmp_path / "run", lambda step: None, resume=True)
    assert RunFolder.open(tmp_path / "run").load().round == 1


def test_an_event_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events"
    EventLog(path)("one", device=1)
    with path.open("a") as file:
        file.write('{"time": 1, "ev')
    EventLog(path)("two", device=2)
    assert [event["event"] for event in read_events(path)] == ["one", "two"]
    assert list(read_events(tmp_path / "none")) == []


def test_an_app_that_waits_leaves_a_run_that_another_has_finished(tmp_path: Path) -> None:
    """A command that is killed once it has sent its run, and comes again, sends it twice."""
    scenario, folder = make_scenario(make_config({**SMALL, "rounds": 1})), tmp_path / "run"
    record(scenario, scenario.local_fleet(), folder, lambda step: None)
    whole, got = _files(folder), []

    def wait() -> None:
        with run_folder(folder, scenario.config, resume=True, wait=True) as own:
            got.append(own.is_finished)

    with started(tmp_path, "-c", HOLD, str(folder)) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        refused = pytest.raises(CheckpointError, match="another process is using")
        with refused, run_folder(folder, scenario.config, resume=True):
            pass
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive() and not got
        process.kill()
        process.wait()
        thread.join()
    assert got == [True] and _files(folder) == whole


def _files(folder: Path) -> dict[Path, bytes]:
    return {each: each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file()}
