"""Names and files that are anything: each command ends with one clear message and leaves nothing.

`FEDKIT_FUZZ=20000 pytest tests/test_fuzz_names_and_files.py` tries so many mutations; the default
is a sample. All run in this process, with the output of a process: stdout refuses what UTF-8 cannot
write.
"""

from __future__ import annotations

import functools
import io
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import typer

from fedkit.cli import main

MUTATIONS = int(os.environ.get("FEDKIT_FUZZ", "400"))

CONFIG = b"""task = "no-such-task"
devices = 4
density = 0.25
partition = "iid"
lr = 1e-1
exempt = "first, last"
engine = "auto"
"""

GRID = b"""name = "fuzzed"
[run]
task = "no-such-task"
rounds = 2
[axes]
method = ["dense", "fedtiny"]
density = [0.1, 0.5]
seed = [1, 2, 3]
"""

HOSTILE = (
    *("", " ", ".", "..", "/", "//", "-", "--", "-x", "a/b", "../../x", "a\nb", "a\tb", "a\r\n"),
    *("\x1b[2J", "\x1b]0;title\x07", "[bold]x[/bold]", "[/]", "[link=x]", "%s%n", "{x}", "$(id)"),
    *("`id`", "; id", "| id", "'", '"', "\\", "a b", "é", "日本", "\u202eabc", "\u200b", "ﬀ", "İ"),
    *("\udcff", "a" * 300, "日" * 100, "nul", "CON", "~", "*", "?", "a:b", ":", "::", "a:b:c"),
    *("os:path", "sys:exit", "os.path:sep", "..:x", ".:x", "a.:x", "no such:x", "1:1", "http://x/"),
    *("nan", "inf", "-inf", "1e400", "-0", "0x10", "1_0", "9" * 400, "-1", "1.5", "true", "[]"),
    *(
        "\uff11\uff12",
        "\u0663",
        "None",
        "null",
        "tests:x",
        "fedkit.tasks.digits:_load",
        "fedkit.tasks.task:Task",
    ),
)

RUN_KEYS: tuple[str, ...] = (
    "task",
    "model",
    "method",
    "seed",
    "devices",
    "partition",
    "alpha",
    "density",
    "noise",
)
RUN_KEYS += ("exempt", "engine", "precision", "rounds", "lr", "dp-clip", "deadline", "uplink-bits")


def fedkit(*words: str) -> tuple[int, str]:
    """Run a command; return its exit code and all that it printed."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace", write_through=True)
    given, sys.argv = sys.argv, ["fedkit", *words]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as ended:
        printed = out.buffer.getvalue() + err.buffer.getvalue()
        return int(ended.code or 0), printed.decode()
    finally:
        sys.argv = given
    return 0, ""


def files(folder: Path) -> set[str]:
    """Return all paths below a folder, pipes and loops too."""
    return {
        os.path.join(at, name)
        for at, folders, names in os.walk(folder)
        for name in (*folders, *names)
    }


def check_refused(home: Path, *words: str) -> None:
    before = files(home)
    code, printed = fedkit(*words)
    told = f"fedkit {words!r} -> {code}: {printed[-2000:]}"
    assert code == 2, told
    assert "Traceback" not in printed and printed.strip(), told
    assert all(c.isprintable() or c == "\n" for c in printed), told
    assert files(home) == before, told


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # Ninety-nine parts of such a command are the making of its parser.
    monkeypatch.setattr(typer.main, "get_command", COMMAND)
    return tmp_path


COMMAND = functools.cache(typer.main.get_command)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with some changed, cut, doubled or put in."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        what = rng.randrange(6)
        if what == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif what == 1:
            del out[at:]
        elif what == 2:
            out[at:at] = rng.randbytes(rng.randint(1, 9))
        elif what == 3:
            del out[at : at + rng.randint(1, 20)]
        elif what == 4:
            out[at:at] = out[: rng.randint(0, 60)]
        else:
            out[at:at] = rng.choice(HOSTILE).encode(errors="surrogatepass")
    return bytes(out)


def mutated_text(text: str, rng: random.Random) -> str:
    """Return a name with something put in, cut or exchanged; without NUL, as a shell passes it."""
    at = rng.randrange(len(text) + 1)
    part = rng.choice(
        (*HOSTILE, chr(rng.randrange(1, 0xD800)), chr(rng.randrange(0x10000, 0x11000)))
    )
    return rng.choice((text[:at] + part + text[at:], text[:at] + part, part + text[at:], part))


# Kinds of mutation: each yields the words of a command that cannot succeed


def config_files(home: Path, rng: random.Random) -> list[str]:
    (home / "own.toml").write_bytes(mutated(CONFIG, rng))
    return ["run", "--config", "own.toml", "--task", "no-such-task", "--in-process"]


def grid_files(home: Path, rng: random.Random) -> list[str]:
    (home / "grid.toml").write_bytes(mutated(GRID, rng))
    return ["compare", "grid.toml"]


def flags(home: Path, rng: random.Random) -> list[str]:
    key, value = rng.choice(RUN_KEYS), mutated_text("0.5", rng)
    if key == "task":
        return ["run", f"--task={value}"]
    return ["run", f"--{key}={value}", "--task", "no-such-task"]


def names_of_runs(home: Path, rng: random.Random) -> list[str]:
    name, out = mutated_text("done", rng), mutated_text("runs", rng)
    return ["run", f"--name={name}", f"--out={out}", "--task", "no-such-task"]


def paths(home: Path, rng: random.Random) -> list[str]:
    command = rng.choice(("show", "inspect", "eval", "check", "export", "compare"))
    return [command, "--", mutated_text(rng.choice(("runs/a", "own.bin", "pipe", "loop")), rng)]


def file_contents(home: Path, rng: random.Random) -> list[str]:
    command = rng.choice(("inspect", "eval", "check", "compare", "show", "export"))
    ending = rng.choice(("", ".tflite", ".onnx", ".graph", ".json", ".toml", "-c99", "-fpga"))
    magic = rng.choice((b"", b"TFL3", b"\x08\x07", b"{}", b"[[", b"\x93NUMPY", b"PK\x03\x04"))
    target = home / f"own{ending}"
    target.write_bytes(magic + rng.randbytes(rng.randint(0, 300)))
    manifest = home / f"{target.name}.json"
    if rng.random() < 0.5 and manifest != target:
        manifest.write_bytes(mutated(b'{"target": "tflite", "sha256": "00", "format": 3}', rng))
    return [command, str(target)]


def run_folders(home: Path, rng: random.Random) -> list[str]:
    """A folder that only looks like a run."""
    folder = home / "looks"
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_bytes(mutated(CONFIG, rng))
    checkpoint = folder / "checkpoint"
    checkpoint.unlink(missing_ok=True)
    if rng.random() < 0.3:
        checkpoint.write_bytes(b"")
    return [rng.choice(("show", "export")), str(folder)]


def names_for_plans(home: Path, rng: random.Random) -> list[str]:
    if rng.random() < 0.5:
        return ["plan", "own.plan", f"--task={mutated_text('no-such:task', rng)}"]
    return ["plan", "own.plan", f"--model={mutated_text('resnet9', rng) or 'x'}"]


def names_of_benchmarks(home: Path, rng: random.Random) -> list[str]:
    if rng.random() < 0.5:
        return ["bench", "--", mutated_text("wirre", rng)]
    option = rng.choice(("target", "artifact", "ssh"))
    return ["bench", "wire", f"--{option}={mutated_text('x', rng) or 'x'}"]


KINDS: tuple[Callable[[Path, random.Random], list[str]], ...] = (
    *(config_files, grid_files, flags, names_of_runs, paths, file_contents, run_folders),
    *(names_for_plans, names_of_benchmarks),
)


@pytest.fixture
def odd_files(home: Path) -> Iterator[None]:
    """Lay out a pipe, a socket, loops of links and the like."""
    os.mkfifo(home / "pipe")
    (home / "loop").symlink_to("loop")
    (home / "nowhere").symlink_to("missing")
    (home / "folder").mkdir()
    (home / "empty.toml").touch()
    with (home / "giant").open("wb") as file:
        file.truncate(1 << 40)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        yield


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_mutations_end_in_one_clear_message(
    kind: Callable[[Path, random.Random], list[str]], home: Path, odd_files: None
) -> None:
    rng = random.Random(kind.__name__)
    for _ in range(max(1, MUTATIONS // len(KINDS))):
        check_refused(home, *kind(home, rng))


ODD = (
    "pipe",
    "loop",
    "nowhere",
    "folder",
    "giant",
    "socket",
    "/dev/zero",
    "/dev/null",
    "missing/x",
)
COMMANDS = ("show", "inspect", "eval", "check", "export", "compare")


@pytest.mark.parametrize("path", ODD)
def test_what_is_no_file_is_refused_and_nobody_waits(
    path: str, home: Path, odd_files: None
) -> None:
    for command in COMMANDS:
        check_refused(home, command, path)
    check_refused(home, "run", "--config", path, "--in-process", "--task", "no-such-task")


@pytest.mark.parametrize("path", ["pipe", "folder", "loop", "/dev/null", "missing/own.plan"])
def test_a_plan_is_written_nowhere_else(path: str, home: Path, odd_files: None) -> None:
    check_refused(home, "plan", path)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_everywhere(name: str, home: Path) -> None:
    check_refused(home, "run", f"--task={name}")
    check_refused(home, "plan", "own.plan", f"--task={name}")
    check_refused(home, "run", f"--method={name}", "--task", "no-such-task")
