"""Simulations on our own workers: what they stand on in Flower, and the bits they give."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context
from flwr.server.superlink.fleet.vce import vce_api
from flwr.superlink.grid import InMemoryGrid

from fedkit.config import make_config
from fedkit.core import spill
from fedkit.core.errors import FedkitError
from fedkit.flower import runtime
from fedkit.flower.run_config import RunPlace, errors_first, read_run_config
from fedkit.flower.workers import Backend
from fedkit.server.checkpoint import RunFolder
from fedkit.server.events import EVENTS, read_events
from fedkit.server.record import record
from fedkit.server.rounds import run_rounds
from sim.scenario import make_scenario
from sim.simulation import simulate
from tests.fleet.partial import config, run
from tests.flower.nodes import ask, simulated
from tests.flower.same_bits import assert_same_bits
from tests.sets import slow

OTHER = {"1.41": "1.42.0", "1.42": "1.41.0"}
"""Release of Flower -> another that must work."""

# What is private in Flower


@pytest.mark.parametrize("name", runtime.PRIVATE)
def test_flower_has_what_the_runtime_stands_on(name: str) -> None:
    assert hasattr(importlib.import_module(runtime.PRIVATE[name]), name)


def test_run_api_is_called_as_flower_calls_it() -> None:
    ours = list(inspect.signature(runtime._run_api).parameters)[1:]
    flowers = getattr(vce_api.run_api, "args", [vce_api.run_api])[0]
    assert ours == list(inspect.signature(flowers).parameters)
    called = inspect.getsource(vce_api.start_vce)
    assert "run_api(" in called and "run_api" in vars(vce_api)  # found when it is called


def test_flowers_grid_of_a_simulation_is_known() -> None:
    assert InMemoryGrid.__module__ == runtime._GRID
    with runtime.simulation(simulated("threads")) as grid:
        assert isinstance(grid, InMemoryGrid)
        state: Any = grid.state
        assert state.message_ins_store == {} == state.message_res_store
        ask(grid, "count")
        assert state.message_ins_store == {} == state.message_res_store


@pytest.mark.slow
def test_another_release_of_flower_works_too(tmp_path: Path) -> None:
    """The fast tests of this folder's simulations, with that release before ours on the path."""
    import flwr

    other = OTHER[".".join(flwr.__version__.split(".")[:2])]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path)]
    got = subprocess.run([*pip, f"flwr=={other}"], capture_output=True, text=True)
    if got.returncode:
        pytest.skip(f"flwr {other} cannot be installed here: {got.stderr[-300:]}")
    files = [
        str(Path(__file__).with_name(name)) for name in ("test_workers.py", Path(__file__).name)
    ]
    where = {**os.environ, "PYTHONPATH": str(tmp_path)}
    version = [sys.executable, "-c", "import flwr; print(flwr.__version__)"]
    assert subprocess.check_output(version, env=where, text=True).strip() == other
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, env=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


# `flwr run`, as far as it can be had without a SuperLink


class Stores:
    """What Flower keeps of a node."""

    def __init__(self, **keys: str | int) -> None:
        self.run_infos = {1: None}
        self._keys = keys

    def retrieve_context(self, run_id: int) -> Context:
        from flwr.app import RecordDict

        return Context(run_id, 1, {}, RecordDict(), dict(self._keys))


@pytest.mark.parametrize("keys", [{}, {"backend": "ray"}])
def test_ray_runs_where_no_other_backend_is_asked_for(keys: dict[str, str]) -> None:
    called = []
    stop = threading.Event()
    given: list[Any] = [lambda: None, None, {1: 0}, None, {1: Stores(**keys)}, stop, None]
    runtime._run_api(lambda *arguments: called.append(arguments), *given)
    assert called == [tuple(given)] and stop.is_set()


def test_an_unknown_backend_ends_the_simulation() -> None:
    stop = threading.Event()
    stores = {1: Stores(backend="dask")}
    with pytest.raises(FedkitError, match="backend is 'dask'"):
        runtime._run_api(print, lambda: None, None, {1: 0}, None, stores, stop, None)  # type: ignore[arg-type, return-value]
    assert stop.is_set()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"devices": 3}, 'the simulation has 4 SuperNodes and the run 3 devices; give flwr run '
                         '--federation-config "num-supernodes=3", or leave devices at 0'),
        ({"devices": 5}, "has 4 SuperNodes and the run 5 devices"),
        ({"density": 7}, "density"),
        ({"backend": "dask"}, "backend is 'dask'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_at_once_and_first(
    keys: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        runtime.simulation(simulated("threads")) as grid,
        pytest.raises(FedkitError) as raised,
        errors_first(),
    ):
        read_run_config(keys, grid)
    assert message in str(raised.value)
    assert capsys.readouterr().out == f"error: {raised.value}\n"


def test_devices_are_as_many_as_nodes() -> None:
    with runtime.simulation(simulated("threads")) as grid:
        assert read_run_config({"devices": 0}, grid)[0].devices == 4
        assert read_run_config({"devices": 4}, grid)[0].devices == 4


def test_nodes_that_flower_is_still_making_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "_COMPLETE_SECONDS", 0.4)
    with runtime.simulation(simulated("threads")) as grid:
        monkeypatch.setattr(runtime, "here", lambda grid: None)
        began = time.monotonic()
        counts = iter([[], [1], [1, 2], *[[1, 2, 3]] * 1000])
        monkeypatch.setattr(grid, "get_node_ids", lambda: next(counts))
        assert runtime.simulated_nodes(grid) == 3
    assert time.monotonic() - began >= 0.4


# The same bits

SAMPLED: dict[str, Any] = {
    "devices": 6,
    "devices_per_round": 2,
    "examples_per_device": 20,
    "min_share": 1.0,
    "deadline": 600.0,
}
OFTEN_AWAY: dict[str, Any] = {"devices": 10, "devices_per_round": 3, "availability": "random:0.6"}


@pytest.mark.parametrize(
    ("backend", "workers", "changes"),
    [
        ("processes", 2, {}),
        ("threads", 2, {"method": "prunefl", "uplink_bits": 4}),
        ("processes", 2, {"over_selection": 0.5, "uplink_bits": 4}),
        slow(("threads", 2, {**OFTEN_AWAY, "over_selection": 1.0, "bn_merge": "exact"})),
        *(
            slow((backend, workers, {**OFTEN_AWAY, "method": method}))
            for backend, workers in (("processes", 1), ("processes", 4), ("threads", 4))
            for method in ("fedtiny", "prunefl", "feddst")
        ),
        slow(("processes", 2, {"engine": "torch"})),
        slow(("threads", 2, {"engine": "torch"})),
        slow(("processes", 2, {"precision": "int8"})),
    ],
)
def test_a_simulation_through_flower_equals_one_in_process(
    backend: Backend, workers: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    scenario = make_scenario(config(**{**SAMPLED, **changes}))
    here = run(scenario, scenario.local_fleet())
    there: list[Any] = []
    place = RunPlace(tmp_path / "run")
    simulate(scenario, place, backend, workers, there.append, tmp_path / "log")
    assert len(here) == len(there) > 3
    for one, other in zip(here, there, strict=True):
        assert_same_bits(one.state, other.state)
        assert (one.accuracy, one.loss) == (other.accuracy, other.loss)
        assert (one.bytes_down, one.bytes_up) == (other.bytes_down, other.bytes_up)
    assert "round 1: accuracy" in (tmp_path / "log").read_text()
    told = [event["event"] for event in read_events(tmp_path / "run" / EVENTS)]
    assert told.count("step") == len(here) and "waiting" not in told


@pytest.mark.parametrize("backend", ["processes", slow("threads")])
def test_a_failing_device_ends_the_run_with_its_reason(backend: Backend, tmp_path: Path) -> None:
    failing = {"lr": 1e20, "epochs": 3, "server_epochs": 0, "sparse_epochs": 0}
    scenario = make_scenario(config(**{**SAMPLED, **failing}))
    with pytest.raises(FedkitError, match=r"devices failed in phase 'train'.*lower lr"):
        simulate(
            *(scenario, RunPlace(tmp_path / "run"), backend, 2),
            *(lambda step: None, tmp_path / "log"),
        )
    assert "lower lr" in (tmp_path / "run" / "error.txt").read_text()


@pytest.mark.parametrize("changes", [{"uplink_bits": 4}, slow({"method": "prunefl"})], ids=str)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    class StopError(Exception):
        pass

    def stop(step: Any) -> None:
        if step.round == 2:
            raise StopError

    scenario = make_scenario(config(**{**SAMPLED, **changes}))
    *_, last = run_rounds(scenario.server(), scenario.local_fleet(), scenario.server_data)
    folder, log = tmp_path / "run", tmp_path / "log"
    with pytest.raises(StopError):
        simulate(scenario, RunPlace(folder), "processes", 2, stop, log)
    place = RunPlace(folder, resume=True)
    simulate(scenario, place, "processes", 2, lambda step: None, log)
    stored = RunFolder.open(folder).load()
    assert stored.round == scenario.config.rounds
    assert_same_bits(stored.state, last.state)


def test_a_run_of_one_process_goes_on_through_flower(tmp_path: Path) -> None:
    scenario = make_scenario(make_config(config(**SAMPLED).as_dict()))
    whole = record(scenario, scenario.local_fleet(), tmp_path / "whole", lambda step: None)

    class StopError(Exception):
        pass

    def stop(step: Any) -> None:
        raise StopError

    folder = tmp_path / "run"
    with pytest.raises(StopError):
        record(scenario, scenario.local_fleet(folder), folder, stop)
    place = RunPlace(folder, resume=True)
    simulate(scenario, place, "threads", 1, lambda step: None, tmp_path / "log")
    assert_same_bits(RunFolder.open(folder).load().state, whole.load().state)


@pytest.mark.parametrize("changes", [{"uplink_bits": 4}, slow({"method": "prunefl"})], ids=str)
def test_memories_in_files_change_nothing(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = make_scenario(config(**{**SAMPLED, "devices_per_round": 4, **changes}))
    wanted = run(scenario, scenario.local_fleet())
    monkeypatch.setattr(spill.Spill.__init__, "__defaults__", (1,))
    sent_away: list[int] = []
    send = spill.Spill._send_away

    def noted(table: spill.Spill[Any], number: int, thing: Any) -> None:
        sent_away.append(number)
        send(table, number, thing)

    monkeypatch.setattr(spill.Spill, "_send_away", noted)
    here = run(scenario, scenario.local_fleet())
    assert sent_away
    sent_away.clear()
    there: list[Any] = []
    simulate(scenario, RunPlace(tmp_path / "run"), "processes", 2, there.append, tmp_path / "log")
    assert sent_away
    for one, two, three in zip(wanted, here, there, strict=True):
        assert_same_bits(one.state, two.state)
        assert_same_bits(one.state, three.state)
