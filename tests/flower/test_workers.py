"""Client apps of a simulation in threads and in processes: answers, failures, and their end."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from fedkit.core.errors import ConfigError
from fedkit.flower.runtime import here, is_simulated, simulated_nodes, simulation
from fedkit.flower.workers import Backend, resolved
from tests.flower.nodes import answers, ask, send, simulated
from tests.processes import left_running, started, wait_for

OWN: list[Backend] = ["threads", "processes"]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("backend", OWN)
def test_nodes_answer_and_remember(backend: Backend, workers: int) -> None:
    with simulation(simulated(backend, workers=workers)) as grid:
        assert is_simulated(grid) and simulated_nodes(grid) == 4
        known = here(grid)
        assert known is not None and sorted(known.partitions.values()) == [0, 1, 2, 3]
        for count in (1, 2, 3):
            replies = ask(grid, "count")
            assert answers(replies, "count") == [count] * 4
            found = dict(
                zip(
                    [m.metadata.src_node_id for m in replies],
                    answers(replies, "device"),
                    strict=True,
                )
            )
            assert found == known.partitions
        pids = set(answers(replies, "pid"))
        assert (pids == {os.getpid()}) == (backend == "threads")
        assert len(pids) <= workers
    for pid in pids - {os.getpid()}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_second_simulation_begins_anew() -> None:
    for _ in range(2):
        with simulation(simulated("processes")) as grid:
            assert answers(ask(grid, "count"), "count") == [1] * 4


@pytest.mark.parametrize("backend", OWN)
@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("raise", "ValueError: the sensor is unplugged"),
        ("raise oddly", "OddError: odd"),
        ("no such order", "KeyError: 'no such order'"),
    ],
)
def test_what_an_app_raises_is_its_reply(backend: Backend, order: str, message: str) -> None:
    with simulation(simulated(backend)) as grid:
        for reply in ask(grid, order):
            assert reply.has_error() and message in str(reply.error.reason)
        assert answers(ask(grid, "count"), "count") == [1] * 4


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("kill", "ended (SIGKILL)"),
        ("exit", "ended (exit code 3)"),
        ("leave", "ended (exit code 1)"),
        ("odd context", "cannot be sent to another process: cannot pickle '_thread.lock'"),
    ],
)
def test_a_worker_that_ends_is_told_and_replaced(order: str, message: str) -> None:
    with simulation(simulated("processes")) as grid:
        first, *others = sorted(grid.get_node_ids())
        (reply,) = ask(grid, order, [first])
        assert reply.has_error() and message in str(reply.error.reason)
        assert answers(ask(grid, "count", others), "count") == [1] * 3
        assert all(reply.has_error() for reply in ask(grid, order))
        assert answers(ask(grid, "count", [first]), "count") == [1]


@pytest.mark.parametrize("backend", OWN)
def test_a_simulation_that_ends_early_gives_up_what_is_computed(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a signal ends the run: its workers are killed, and that is nothing to report."""
    for _ in range(5):
        with simulation(simulated(backend, nodes=8, workers=4)) as grid:
            send(grid, "sleep")
            time.sleep(0.2)
        time.sleep(0.1)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_processes_draw_other_numbers() -> None:
    with simulation(simulated("processes", nodes=12)) as grid:
        replies = ask(grid, "draw")
    assert len(set(answers(replies, "pid"))) == 2
    for kind in ("python", "numpy"):
        assert len(set(answers(replies, kind))) == 12


def test_what_processes_print_is_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with simulation(simulated("processes", log=tmp_path / "log")) as grid:
        assert len(ask(grid, "tell")) == 4
    lines = (tmp_path / "log").read_text().split()
    assert sorted(lines) == ["told"] * 4 + ["warned"] * 4
    assert capfd.readouterr() == ("", "")


def test_a_fork_beside_threads_that_hold_locks() -> None:
    """Threads that log and print all the time hold locks when a process is forked."""
    stop = threading.Event()
    log, out = logging.getLogger("tests.noise"), open(os.devnull, "w")  # noqa: SIM115
    log.addHandler(logging.StreamHandler(out))

    def noise() -> None:
        while not stop.is_set():
            log.warning("noise")

    threads = [threading.Thread(target=noise) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            with simulation(simulated("processes", nodes=6, workers=3)) as grid:
                assert answers(ask(grid, "count"), "count") == [1] * 6
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        out.close()


SCRIPT = """
import time
from fedkit.flower.runtime import simulation
from tests.flower.nodes import ask, simulated
with simulation(simulated("processes")) as grid:
    assert len(ask(grid, "count")) == 4
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_their_parent(number: int, tmp_path: Path) -> None:
    with started(tmp_path, "-c", SCRIPT, PYTHONPATH=os.getcwd()) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        mark = f"FEDKIT_TEST={tmp_path}"
        assert len(left_running(mark)) == 3
        process.send_signal(number)
        process.wait()
        wait_for(lambda: not left_running(mark), 20)


def test_backends_have_names() -> None:
    assert resolved("auto") in ("processes", "threads")
    with pytest.raises(ConfigError, match="backend is 'dask'; choose one of auto, processes"):
        resolved("dask")
