"""Boards over ssh: a real sshd on this machine stands in for one."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from edge.artifact import Artifact
from edge.bench import ssh
from edge.bench.result import ReferenceVectors
from edge.bench.ssh import Board, measure
from edge.define.interpret_int8 import evaluate_int8
from edge.export import int8_graph, save_c99
from fedkit.core.errors import BenchError
from fedkit.graph import ir
from tests.edge.targets.c99.library import need_emulator, need_gcc
from tests.processes import HANG, wait_for
from tests.sets import slow

SHAPE = (3, 8, 8)
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@dataclass(frozen=True)
class Sshd:
    """An sshd for this user alone."""

    board: Board
    temporary: Path

    def leftovers(self) -> list[str]:
        """Return the runners that still run, and what lies in the folder for temporary files."""
        running = []
        for process in Path("/proc").glob("[0-9]*/exe"):
            try:
                target = str(process.readlink())
            except OSError:
                continue
            if target.startswith(str(self.temporary)):
                running.append(target)
        return running + [path.name for path in self.temporary.iterdir()]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def make_key(path: Path) -> Path:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Sshd]]:
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("there is no sshd; sudo apt install openssh-server")
    started = []

    def start(temporary: Path | None = None, hasty: bool = False) -> Sshd:
        folder = tmp_path_factory.mktemp("sshd")
        temporary = temporary or tmp_path_factory.mktemp("board")
        port, user_key = free_port(), make_key(folder / "user")
        shutil.copy(folder / "user.pub", folder / "authorized")
        settings = {
            "Port": port,
            "ListenAddress": "127.0.0.1",
            "HostKey": make_key(folder / "host"),
            "PidFile": folder / "pid",
            "AuthorizedKeysFile": folder / "authorized",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "UsePAM": "no",
            "StrictModes": "no",
            "SetEnv": " ".join([f"TMPDIR={temporary}", *(hasty_path(folder) if hasty else ())]),
        }
        write_settings(folder / "sshd_config", settings)
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        command = [str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")]
        with (folder / "log").open("wb") as log:
            started.append(subprocess.Popen(command, stderr=log, start_new_session=True))
        wait_for(lambda: listens(port))
        host_key = (folder / "host.pub").read_text()
        (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key}")
        client = {
            "HostName": "127.0.0.1",
            "Port": port,
            "IdentityFile": user_key,
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": folder / "known",
        }
        write_settings(folder / "ssh_config", client)
        host = f"{getpass.getuser()}@board"
        return Sshd(Board(host, ("-F", str(folder / "ssh_config"))), temporary)

    yield start
    for process in started:
        process.terminate()
        process.wait(HANG)


def hasty_path(folder: Path) -> list[str]:
    """Variables with which `cc` takes a third of the time, as it does not optimise."""
    compiler = folder / "bin" / "cc"
    compiler.parent.mkdir()
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("cc")} "$@" -O0\n')
    compiler.chmod(0o755)
    return [f'"PATH={compiler.parent}:{os.environ["PATH"]}"']


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    path.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def server(sshd: Callable[..., Sshd]) -> Sshd:
    return sshd(hasty=True)


@pytest.fixture(scope="module")
def optimising(sshd: Callable[..., Sshd]) -> Sshd:
    """A board whose compiler is that of this machine."""
    return sshd()


@pytest.fixture(scope="module")
def graph() -> ir.Graph:
    inputs = np.random.default_rng(0).standard_normal((20, *SHAPE)).astype(np.float32)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 10))
    return int8_graph(model.eval(), inputs)


@pytest.fixture(scope="module")
def model(graph: ir.Graph, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("model") / "c99"
    return save_c99(graph, np.zeros((1, *SHAPE), np.float32), folder, {})


@pytest.fixture(scope="module")
def examples(graph: ir.Graph) -> ReferenceVectors:
    inputs = np.random.default_rng(1).integers(-128, 128, (3, *SHAPE[1:], 3)).astype(np.int8)
    return ReferenceVectors(inputs, evaluate_int8(graph, inputs, "half_up"))


@pytest.fixture
def cross_compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """zig, or this machine's compiler in its place: for its own kind of processor both do."""
    if request.param == "zig":
        need_emulator()
        return
    need_gcc()

    def compile_here(target: str, triple: str, *arguments: str) -> None:
        assert (target, triple) == ("-target", f"{os.uname().machine}-linux-musl")
        flags = [each for each in arguments if not each.startswith("-mcpu=")]
        level = ["-mavx2", "-mfma"] if "-mcpu=x86_64_v3" in arguments else []
        subprocess.run(["gcc", *level, *flags], check=True)

    monkeypatch.setattr(ssh, "compile_c", compile_here)


@pytest.mark.parametrize(
    ("where", "cross_compiler"),
    [slow(("here", "gcc")), slow(("here", "zig")), ("there", "gcc")],
    indirect=["cross_compiler"],
)
@pytest.mark.parametrize("compiler", ["server", slow("optimising")])
@pytest.mark.usefixtures("cross_compiler")
def test_a_board_gives_the_interpreters_integers_and_its_times(
    where: Any,
    compiler: str,
    model: Artifact,
    examples: ReferenceVectors,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    server: Sshd = request.getfixturevalue(compiler)
    counter = tmp_path / "energy"
    counter.write_text("123456\n")
    result = measure(model, server.board, examples, 50, where=where, energy=str(counter))
    assert result.how == "measured"
    assert result.examples == 3
    assert 0 < result["latency_median_us"] <= result["latency_p95_us"] < 1e6
    assert 1e4 < result["peak_bytes"] < 1e8
    assert result["energy_uj"] == 0, "the count stood still"
    assert result.environment["machine"] == os.uname().machine
    assert ("zig" in result.environment["compiler"]) == (where == "here")
    assert server.leftovers() == []


@pytest.mark.slow
def test_a_wrong_integer_stops_it(
    server: Sshd, model: Artifact, examples: ReferenceVectors
) -> None:
    wrong = examples.expected.copy()
    wrong[2, 1] ^= 1
    with pytest.raises(BenchError, match=r"gives -?\d+ for output \(1,\) of example 2"):
        measure(model, server.board, replace(examples, expected=wrong), 5)
    assert server.leftovers() == []


def test_a_wrong_host_and_a_wrong_key_are_told_apart(
    server: Sshd, model: Artifact, examples: ReferenceVectors, tmp_path: Path
) -> None:
    nowhere = Board("user@no-such-board.invalid")
    with pytest.raises(BenchError, match=r"cannot reach user@no-such-board.invalid.*resolve"):
        measure(model, nowhere, examples)
    closed = Board(f"ssh://user@127.0.0.1:{free_port()}")
    with pytest.raises(BenchError, match="Connection refused"):
        measure(model, closed, examples)
    key = ("-i", str(make_key(tmp_path / "other")), *server.board.options)
    other = tmp_path / "config"
    text = Path(server.board.options[1]).read_text()
    lines = [line for line in text.splitlines() if not line.startswith("IdentityFile")]
    other.write_text("\n".join([*lines, f"IdentityFile {key[1]}"]) + "\n")
    with pytest.raises(BenchError, match="Permission denied"):
        measure(model, replace(server.board, options=("-F", str(other))), examples)
    known = replace(server.board, options=(*server.board.options, "-oUserKnownHostsFile=/dev/null"))
    with pytest.raises(BenchError, match=r"Host key verification failed.*without a question"):
        measure(model, known, examples)
    assert server.leftovers() == []


def test_a_full_board_says_so(
    sshd: Callable[..., Sshd], model: Artifact, examples: ReferenceVectors, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root alone")
    try:
        full = sshd(small, hasty=True)
        with pytest.raises(BenchError, match="No space left on device"):
            measure(model, full.board, examples)
        assert full.leftovers() == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def planted(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Let the runner do this once its alarm is set."""
    text = Path(ssh.__file__).with_name("runner.c").read_text()
    mark = "    const int failed"
    assert mark in text
    runner = folder / "runner.c"
    text = text.replace(mark, f"    {code}\n{mark}")
    runner.write_text(text.replace("#include <stdio.h>", "#include <signal.h>\n#include <stdio.h>"))
    monkeypatch.setattr(ssh, "_RUNNER", runner)


@pytest.mark.slow
def test_a_crash_is_named(
    server: Sshd,
    model: Artifact,
    examples: ReferenceVectors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need_gcc()
    planted(monkeypatch, tmp_path, "raise(SIGSEGV);")
    with pytest.raises(BenchError, match=r"crashed on \w+@board: SIGSEGV"):
        measure(model, server.board, examples)
    planted(monkeypatch, tmp_path, 'puts("hello");')
    with pytest.raises(BenchError, match="printed something other than the runner does"):
        measure(model, server.board, examples)
    planted(monkeypatch, tmp_path, "no C at all")
    with pytest.raises(BenchError, match=r"board failed .*error"):
        measure(model, server.board, examples)
    assert server.leftovers() == []


@pytest.mark.slow
def test_a_model_that_hangs_is_stopped(
    server: Sshd,
    model: Artifact,
    examples: ReferenceVectors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need_gcc()
    planted(monkeypatch, tmp_path, "for (;;) sleep(1);")
    with pytest.raises(BenchError, match="did not end within 1 s"):
        measure(model, server.board, examples, limit=1)
    assert server.leftovers() == []
    # One that does not even hear its alarm is killed from here.
    planted(monkeypatch, tmp_path, "signal(SIGALRM, SIG_IGN); for (;;) sleep(1);")
    monkeypatch.setattr(ssh, "_SECONDS", 5)
    with pytest.raises(BenchError, match="did not answer within 6 s"):
        measure(model, server.board, examples, limit=1)
    assert server.leftovers() == []


def test_a_board_without_a_compiler_needs_a_processor_that_zig_knows(
    server: Sshd, model: Artifact, examples: ReferenceVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = dict(ssh._about(server.board), machine="sparc64", compiler="")
    monkeypatch.setattr(ssh, "_about", lambda board: about)
    with pytest.raises(BenchError, match="is a 'sparc64' and has no `cc`"):
        measure(model, server.board, examples)
    assert server.leftovers() == []


def test_the_temperature_is_told_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for told, expected in (("48312\n", 48.312), ("", None), ("nonsense", None)):
        monkeypatch.setattr(Board, "run", lambda *_, told=told: told)
        assert ssh._heat(Board("board")) == expected
    assert ssh._temperatures(40.0, 41.5)["temperature_after"].value == 41.5
    assert ssh._temperatures(None, 40.0) == {}
