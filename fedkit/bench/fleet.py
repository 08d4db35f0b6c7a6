"""`fedkit bench fleet`: what a round costs a fleet of real processes, on this machine's loopback.

A SuperLink and SuperNodes run FedTiny on digits, over TLS and with keys. `merged` is what fedkit
does, one message per device and round; `naive` asks weights, norm statistics and the gradients of
pruned weights apart, as the algorithm is usually written down (`fedkit/bench/naive`). The devices
compute the same. Runs of both alternate; seconds are medians over rounds. Time is mostly Flower's:
a node looks for messages every 3 seconds, and starts a process for each.

Memory is that of all processes of the first device (SuperNode, its executor, the app while there is
one), each page shared by n processes counted as 1 / n of it (PSS): idle after it connected, and the
most seen while rounds ran, looked at ten times a second.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedkit.bench import markdown
from fedkit.bench.process import shared_memory
from fedkit.core.errors import BenchError
from fedkit.core.files import write_atomic
from fedkit.core.supervise import forget_group, guard, tell_group, temporary_folder
from fedkit.fleet.folder import DEVICE_FILE, Fleet, open_fleet
from fedkit.flower.processes import free_port, kill_marked, marked, stop_group, tail
from fedkit.flower.supernode import APP, app_digest
from fedkit.server.checkpoint import RunFolder
from fedkit.server.events import EVENTS, read_events

PHASES = ("merged", "naive")
_NAIVE = Path(__file__).with_name("naive")
_SEED = 1
_RUN = {
    "task": "digits",
    "partition": "iid",
    "seed": _SEED,
    "examples_per_device": 60,
    "epochs": 1,
    "server_epochs": 1,
    "sparse_epochs": 2,
    "adjust_every": 1,
    "min_share": 1.0,
}


def bench_fleet(quick: bool) -> dict[str, Any]:
    """Run a fleet both ways.

    Args:
        quick: One device, one round of each, no selection of candidates and no TLS.

    Raises:
        BenchError: A process of the fleet did not do what it should.
    """
    devices, rounds, repeats = (1, 1, 1) if quick else (4, 5, 3)
    run = {**_RUN, "devices": devices, "rounds": rounds, "adjust_stop": rounds + 1}
    run |= {"selection": "none", "sparse_epochs": 0} if quick else {}
    measured: dict[str, list[dict[str, float]]] = {phases: [] for phases in PHASES}
    with (
        temporary_folder("fedkit-bench-") as folder,
        _fleet(folder, run, ("--insecure",) if quick else ()) as fleet,
    ):
        idle = _memory(fleet)
        for repeat in range(repeats):
            for phases in PHASES if repeat % 2 == 0 else reversed(PHASES):
                measured[phases].append(_measure(fleet, phases, f"{phases}-{repeat}"))
    rows = [_row(phases, devices, idle, measured[phases]) for phases in PHASES]
    return {"benchmark": "fleet", "task": "digits", "seed": _SEED, "rounds": rounds, "rows": rows}


def _row(phases: str, devices: int, idle: int, measured: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "phases": phases,
        "devices": devices,
        "seconds_per_round": round(statistics.median(each["seconds"] for each in measured), 2),
        "bytes_per_round": round(statistics.median(each["bytes"] for each in measured)),
        "device_idle_bytes": idle,
        "device_peak_bytes": round(max(each["peak"] for each in measured)),
    }


@contextmanager
def _fleet(folder: Path, run: dict[str, Any], init: tuple[str, ...]) -> Iterator[Fleet]:
    """Make a fleet, start all of it, and stop it at the end."""
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in run.items()]
    address = f"127.0.0.1:{free_port()}"
    path, log = folder / "fleet", folder / "log"
    _fedkit(log, "init", str(path), "--address", address, "--with-data", *init, *flags)
    fleet, started = open_fleet(path), []
    try:
        _let_devices_run_both(fleet)
        started.append(_start(log, "server", str(path)))
        _wait(log, "listening on", 1)
        started += [_start(log, "device", str(fleet.device(i))) for i in range(fleet.devices)]
        _wait(log, "SuperNode ID", fleet.devices)
        time.sleep(1)  # Executors are still starting.
        yield fleet
    finally:
        for process in reversed(started):
            stop_group(process)
            forget_group(process)
        for home in (fleet.server, *map(fleet.device, range(fleet.devices))):
            kill_marked(f"FLWR_HOME={home / 'flwr'}")


def _fedkit(log: Path, *arguments: str) -> None:
    if code := _start(log, *arguments).wait():
        raise BenchError(f"fedkit fleet {arguments[0]} ended with {code}; it said:\n{tail(log)}")


def _start(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    guard()
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedkit", "fleet", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    tell_group(process)
    return process


def _wait(log: Path, words: str, times: int) -> None:
    deadline = time.monotonic() + 120
    while log.read_text(errors="replace").count(words) < times:
        if time.monotonic() > deadline:
            raise BenchError(f"a process did not say {words!r} within 120 s; log:\n{tail(log)}")
        time.sleep(0.1)


def _measure(fleet: Fleet, phases: str, name: str) -> dict[str, float]:
    """Run the fleet once; return the median round's seconds and bytes, and the peak of memory."""
    _use(fleet, phases)
    log = fleet.path.parent / "log"
    with _peak(fleet) as peak:
        _fedkit(log, "run", str(fleet.path), "--name", name)
    steps = [e for e in read_events(fleet.runs / name / EVENTS) if e["event"] == "step"]
    ends = [step["time"] for step in steps if step["phase"] == "round"]
    before = next(step["time"] for step in reversed(steps) if step["phase"] != "round")
    seconds = [end - start for start, end in zip([before, *ends], ends, strict=False)]
    lines = [x for x in RunFolder.open(fleet.runs / name).metrics() if x["phase"] == "round"]
    travelled = [line["message_bytes_down"] + line["message_bytes_up"] for line in lines]
    return {
        "seconds": statistics.median(seconds),
        "bytes": statistics.median(travelled),
        "peak": peak[0],
    }


def _let_devices_run_both(fleet: Fleet) -> None:
    """Name the app of `naive` to the devices, which by themselves run that of fedkit alone."""
    _use(fleet, "naive")
    line = f'app = "{app_digest(fleet.server / "app")}"\n'
    for file in (fleet.device(index) / DEVICE_FILE for index in range(fleet.devices)):
        write_atomic(file, file.read_bytes().replace(b'app = ""\n', line.encode()), 0o600)


def _use(fleet: Fleet, phases: str) -> None:
    """Put the app of one kind of phases into the fleet's folder."""
    source = APP if phases == "merged" else _NAIVE
    for file in ("client_app.py", "server_app.py"):
        shutil.copy(source / file, fleet.server / "app" / file)


@contextmanager
def _peak(fleet: Fleet) -> Iterator[list[int]]:
    """Look at the first device's memory until the end; the list's one figure is the most."""
    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            peak[0] = max(peak[0], _memory(fleet))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def _memory(fleet: Fleet) -> int:
    """Return the PSS of all processes of the first device, in bytes."""
    return shared_memory(marked(f"FLWR_HOME={fleet.device(0) / 'flwr'}"))


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of README's table."""
    head = (
        "| phases | devices | seconds per round | bytes per round, all devices "
        "| a device, idle | a device, at most |"
    )
    rows = (
        f"| {row['phases']} | {row['devices']} | {row['seconds_per_round']:.1f} "
        f"| {row['bytes_per_round']:,} | {markdown.mb(row['device_idle_bytes'])} "
        f"| {markdown.mb(row['device_peak_bytes'])} |"
        for row in result["rows"]
    )
    return markdown.table(head, rows)
