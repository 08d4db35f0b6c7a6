"""Whatever ends a command ends all that it started, and a signal ends it in good order."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedkit.core import watch
from tests.processes import HANG, catches, left_running, started, wait_for
from tests.sets import slow_but

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux")

SLEEP = "import time; time.sleep(3600)"
NESTED = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
time.sleep(3600)
"""
"""A program that starts another in a session of its own, as Flower and Ray do."""

PARENT = f"""
import os, subprocess, sys, time
from fedkit.core import supervise
supervise.guard()
supervise.guard()
with supervise.temporary_folder("fedkit-test-") as folder:
    subprocess.Popen([sys.executable, "-c", {NESTED!r}], start_new_session=True)
    print(folder, flush=True)
    time.sleep(3600)
"""


UNHEARD = """
import os, signal, subprocess, sys
script, folder = sys.argv[1:]
command = [sys.executable, "-I", "-S", script, str(os.getpid()), "a-mark-that-nobody-carries"]
watcher = subprocess.Popen(command, stdin=subprocess.PIPE)
os.kill(watcher.pid, signal.SIGSTOP)
watcher.stdin.write(f"folder {folder}\\n".encode())
watcher.stdin.flush()
print(watcher.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_said_before_anybody_listened_is_heard(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    command = [sys.executable, "-c", UNHEARD, watch.__file__, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        watcher = int(process.stdout.readline())
        process.wait()
        os.kill(watcher, signal.SIGCONT)
        wait_for(lambda: not folder.exists())


@pytest.mark.parametrize(
    "number",
    slow_but(
        (signal.SIGKILL, signal.SIGTERM),
        (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT),
    ),
)
def test_what_a_process_started_ends_with_it(number: int, tmp_path: Path) -> None:
    mark = f"FEDKIT_TEST={tmp_path}"
    with started(tmp_path, "-c", PARENT) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        wait_for(lambda: len(left_running(mark)) == 4)  # three programs and the watcher
        assert folder.is_dir()
        process.send_signal(number)
        wait_for(lambda: not left_running(mark) and not folder.exists())


def test_another_process_is_left_alone(tmp_path: Path) -> None:
    with started(tmp_path / "other", "-c", SLEEP) as other:
        with started(tmp_path / "own", "-c", PARENT) as process:
            wait_for(lambda: len(left_running(f"FEDKIT_TEST={tmp_path / 'own'}")) == 4)
            process.kill()
            wait_for(lambda: not left_running(f"FEDKIT_TEST={tmp_path / 'own'}"))
        assert other.poll() is None


def test_an_orderly_end_leaves_nothing_either(tmp_path: Path) -> None:
    program = f"""
import subprocess, sys
from fedkit.core import supervise
supervise.guard()
subprocess.Popen([sys.executable, "-c", {NESTED!r}], start_new_session=True)
"""
    mark = f"FEDKIT_TEST={tmp_path}"
    with started(tmp_path, "-c", program) as process:
        process.communicate(timeout=HANG)
        assert process.returncode == 0
        wait_for(lambda: not left_running(mark))


def test_commands_within_commands_end_with_the_outermost(tmp_path: Path) -> None:
    outer = f"""
import subprocess, sys, time
from fedkit.core import supervise
supervise.guard()
subprocess.Popen([sys.executable, "-c", {PARENT!r}], start_new_session=True)
time.sleep(3600)
"""
    mark = f"FEDKIT_TEST={tmp_path}"
    with started(tmp_path, "-c", outer) as process:
        wait_for(lambda: len(left_running(mark)) == 6)  # four programs, two watchers
        process.kill()
        wait_for(lambda: not left_running(mark))
        assert not left_running(mark)


def test_a_program_that_takes_the_place_of_a_command_is_watched_too(tmp_path: Path) -> None:
    program = f"""
import os, sys
from fedkit.core import supervise
supervise.guard()
supervise.stay_guarded_over_exec()
os.execv(sys.executable, [sys.executable, "-c", {NESTED!r}])
"""
    mark = f"FEDKIT_TEST={tmp_path}"
    with started(tmp_path, "-c", program) as process:
        wait_for(lambda: any("start_new_session" not in line for line in left_running(mark)))
        wait_for(lambda: len(left_running(mark)) == 3)
        time.sleep(1.5)  # The watcher has looked for its parent by then, and has not missed it.
        assert len(left_running(mark)) == 3
        process.kill()
        wait_for(lambda: not left_running(mark))


def test_only_whole_words_of_the_mark_count() -> None:
    environment = b"A=1\0FEDKIT_MARK=ab:cd\0B=FEDKIT_MARK\0FLWR_HOME=/tmp/x/node-1\0"
    found = {mark: watch._carries(environment, mark.encode()) for mark in ("ab", "cd", "abc", "b")}
    assert found == {"ab": True, "cd": True, "abc": False, "b": False}
    assert watch._carries(environment, b"FLWR_HOME=/tmp/x")
    assert not watch._carries(environment, b"HOME=/tmp/x")


# Signals

# The programs take naps: a signal that comes just before a long sleep begins is not seen before the
# sleep ends.

ORDERLY = """
import sys, time
from fedkit.core import signals
try:
    with signals.ended_by_signals():
        try:
            print("ready", flush=True)
            [time.sleep(0.1) for _ in range(36000)]
        finally:
            print("cleaned", flush=True)
except signals.Ended as stop:
    print(signals.stop_words(stop), flush=True)
    sys.exit(128 + stop.number)
"""


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGINT, "stopped by Ctrl-C"),
        (signal.SIGTERM, "stopped by SIGTERM"),
        (signal.SIGHUP, "stopped, as the terminal was closed"),
    ],
)
def test_a_signal_lets_every_finally_run(number: int, words: str, tmp_path: Path) -> None:
    with started(tmp_path, "-c", ORDERLY) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=HANG)
    assert (out, err, process.returncode) == (f"cleaned\n{words}\n", "", 128 + number)


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    program = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + ORDERLY
    with started(tmp_path, "-c", program) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=HANG)
    assert process.returncode == 143


STUBBORN = ORDERLY.replace(
    'print("cleaned", flush=True)',
    'print("cleaning", flush=True); [time.sleep(0.1) for _ in range(36000)]',
)


def test_who_asks_again_later_means_at_once(tmp_path: Path) -> None:
    with started(tmp_path, "-c", STUBBORN) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "cleaning\n"
        process.send_signal(signal.SIGTERM)  # a second one of the same burst
        time.sleep(1.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HANG)
    assert (err, process.returncode) == ("stopped by Ctrl-C\n", 130)


IMPORTING = ORDERLY.replace("[time.sleep(0.1) for _ in range(36000)]", "import takes_long")
SWALLOWING = ORDERLY.replace(
    "[time.sleep(0.1) for _ in range(36000)]",
    """
            class Slow:
                def __del__(self):
                    print("deleting", flush=True)
                    [time.sleep(0.1) for _ in range(36000)]
            Slow()
            [time.sleep(0.1) for _ in range(36000)]
""",
)


def test_a_signal_during_an_import_ends_at_once_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "takes_long.py").write_text(
        "import time\nprint('importing', flush=True)\n[time.sleep(0.1) for _ in range(36000)]"
    )
    with started(tmp_path, "-c", IMPORTING, PYTHONPATH=str(tmp_path)) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "importing\n"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=HANG)
    assert (out, err, process.returncode) == ("", "stopped by Ctrl-C\n", 130)


def test_a_signal_that_python_would_swallow_ends_at_once(tmp_path: Path) -> None:
    with started(tmp_path, "-c", SWALLOWING) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "deleting\n"]
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=HANG)
    assert (err, process.returncode) == ("stopped by SIGTERM\n", 143)


def start_up(folder: Path, seconds: float, number: int) -> tuple[str, int]:
    """Start the command, and stop it so long after its first moment; return its words and code."""
    command = f"run --in-process --devices 2 --rounds 500 --out {folder} --name r"
    with started(folder, "-m", "fedkit", *command.split()) as process:
        wait_for(lambda: catches(process.pid, signal.SIGTERM) or process.poll() is not None)
        time.sleep(seconds)
        process.send_signal(number)
        _, err = process.communicate(timeout=HANG)
        wait_for(lambda: not left_running(f"FEDKIT_TEST={folder}"))
    return err, process.returncode


def assert_clean_start_up(folder: Path, seconds: float, number: int) -> None:
    err, code = start_up(folder, seconds, number)
    assert code == 128 + number, (seconds, err)
    assert "Traceback" not in err and "terminate called" not in err, (seconds, err)
    assert "stopped" in err, (seconds, err)


@pytest.mark.parametrize("seconds", slow_but((0.0, 1.5), (0.0, 0.4, 1.5)))
def test_ctrl_c_during_start_up_is_one_line(seconds: float, tmp_path: Path) -> None:
    assert_clean_start_up(tmp_path, seconds, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_a_signal_at_any_moment_of_start_up_is_one_line(seed: int, tmp_path: Path) -> None:
    moments = random.Random(seed)
    number = moments.choice([signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    assert_clean_start_up(tmp_path, moments.uniform(0, 8), number)


# A closed terminal


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_closed_terminal_ends_the_command_in_good_order(tmp_path: Path) -> None:
    """The terminal's other end is closed: every write to it fails from then on."""
    controller, terminal = os.openpty()
    done = tmp_path / "done"
    program = f"""
import fcntl, signal, sys, termios, time
from pathlib import Path
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the caller of the tests may ignore it (nohup)
from fedkit.core import signals
try:
    with signals.ended_by_signals():
        try:
            Path({str(tmp_path / "ready")!r}).touch()
            [time.sleep(0.1) for _ in range(36000)]
        finally:
            print("a last word", file=sys.stderr, flush=True)
            Path({str(done)!r}).touch()
except signals.Ended as stop:
    sys.exit(128 + stop.number)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    try:
        wait_for((tmp_path / "ready").exists)
        os.close(controller)
        assert process.wait(HANG) == 129
        assert done.exists()
    finally:
        process.kill()
        process.wait()
