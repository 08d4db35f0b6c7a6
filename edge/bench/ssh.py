"""Measure a C model on a board that ssh reaches: latency, memory, temperature.

The model and a small runner go to a folder of their own there, are compiled by the board's `cc` or,
if it has no compiler, here by zig, and run for a limited time. What the model gives is compared
before any figure is taken from what comes back; the folder is removed whatever happens.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import signal
import statistics
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edge.artifact import Artifact
from edge.bench.build import check_one_output, compile_c
from edge.bench.result import Quantity, ReferenceVectors, Result, bytes_of
from edge.targets.c99.runner import name_of
from edge.targets.c_names import PROGRAMS, generic_names
from fedkit.core.errors import BenchError

_RUNNER = Path(__file__).with_name("runner.c")
_SECONDS = 60  # for each step but the runner's
_ZIG = {
    "aarch64": "aarch64-linux-musl",
    "armv7l": "arm-linux-musleabihf",
    "x86_64": "x86_64-linux-musl",
}
_ABOUT = r"""
echo "machine=$(uname -m)"
echo "system=$(uname -sr)"
echo "compiler=$(cc --version 2>/dev/null | head -n 1)"
echo "processor=$(sed -n 's/^\(model name\|Model\)[^:]*: *//p' /proc/cpuinfo | head -n 1)"
echo "features=$(sed -n 's/^\(flags\|Features\)[^:]*: *//p' /proc/cpuinfo | head -n 1)"
echo "governor=$(cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null)"
"""
_HEAT = "cat /sys/class/thermal/thermal_zone*/temp 2>/dev/null | sort -n | tail -n 1"

Where = Literal["", "here", "there"]


@dataclass(frozen=True)
class Board:
    """What ssh reaches.

    Attributes:
        host: As ssh takes it: a host, user@host, ssh://user@host:port or a name of its config.
        options: For ssh.
    """

    host: str
    options: Sequence[str] = ()

    def run(self, command: str, given: bytes = b"", seconds: float = _SECONDS) -> str:
        """Run a command of the board's shell; return what it prints.

        Raises:
            BenchError: The board cannot be reached, or the command fails or takes too long.
        """
        ended = self.ended(command, given, seconds)
        if ended.returncode:
            raise BenchError(
                f"{self.host} failed ({_reason(ended)}); the command was: {command.strip()[:200]}"
            )
        return ended.stdout.decode(errors="replace")

    def ended(
        self, command: str, given: bytes = b"", seconds: float = _SECONDS
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command; return how it ended; errors as for `run` but those of the command."""
        settings = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-T", *self.options)
        try:
            ended = subprocess.run(
                ["ssh", *settings, "--", self.host, f"exec sh -c {shlex.quote(command)}"],
                input=given,
                capture_output=True,
                timeout=seconds,
            )
        except FileNotFoundError as error:
            raise BenchError("there is no ssh here; install openssh-client") from error
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{self.host} did not answer within {seconds:.0f} s") from error
        if ended.returncode == 255:
            raise BenchError(
                f"cannot reach {self.host} by ssh: {_reason(ended)}; see that "
                f"`ssh {self.host} true` works without a question"
            )
        return ended


def measure(
    model: Artifact,
    board: Board,
    examples: ReferenceVectors,
    repeats: int = 200,
    limit: int = 60,
    where: Where = "",
    energy: str = "",
) -> Result:
    """Measure a model on a board.

    Args:
        model: Of target "c99".
        board: Where.
        examples: All are run and compared before anything is reported; the first is timed.
        repeats: How often.
        limit: Seconds that the runner may take.
        where: Compile it there, or here; by default there if the board has a compiler.
        energy: A file of the board that counts microjoules.

    Returns:
        latency_median_us, latency_p95_us, peak_bytes of the process, and where the board tells
        them temperature_before, temperature_after, energy_uj of one inference.

    Raises:
        BenchError: The board cannot be reached or has no room, the model does not compile, crashes
            or takes too long there, an integer differs, or there are several outputs.
    """
    check_one_output(model)
    about = _about(board)
    with _folder(board) as folder:
        there = where == "there" or (where == "" and bool(about["compiler"]))
        flags = _install(model, board, folder, about, examples, there)
        before = _heat(board)
        told = _run(board, folder, repeats, limit, energy)
        after = _heat(board)
    for number, output in enumerate(told["outputs"]):
        examples.check(number, np.array(output, np.int8), board.host)
    return Result(
        f"{model.path.name} {model.sha256[:12]}",
        board.host,
        "measured",
        len(told["outputs"]),
        {**_quantities(told, repeats), **_temperatures(before, after)},
        environment={
            **{key: text for key, text in about.items() if key != "features" and text},
            "compiler": about["compiler"] if there else "zig, here",
            "flags": flags,
            "repeats": str(repeats),
        },
    )


def _about(board: Board) -> dict[str, str]:
    lines = (line.partition("=") for line in board.run(_ABOUT).splitlines())
    return {key: text.strip() for key, _, text in lines}


@contextlib.contextmanager
def _folder(board: Board) -> Iterator[str]:
    """Make a folder on the board; in the end stop what runs in it, and remove it."""
    made = board.run('mktemp -d "${TMPDIR:-/tmp}/fedkit-bench.XXXXXX"').strip()
    folder = shlex.quote(made)
    clear = f"kill -9 $(cat {folder}/pid 2>/dev/null) 2>/dev/null; rm -rf {folder}"
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(BenchError):
            board.run(clear)
        raise
    board.run(clear)


def _install(
    model: Artifact,
    board: Board,
    folder: str,
    about: Mapping[str, str],
    examples: ReferenceVectors,
    there: bool,
) -> str:
    """Put the runner into the folder; return the flags that it was compiled with."""
    headers = [model.path / name for name in model.files if name.endswith(".h")]
    sources = [model.path / name for name in model.files if name.endswith(".c")]
    sources = [path for path in sources if path.name not in PROGRAMS] + [_RUNNER]
    inputs = {"inputs.bin": bytes_of(examples.inputs)}
    if not there:
        program, flags = _cross_compiled(model, sources, about)
        _send(board, folder, {"runner": program, **inputs})
        return flags
    files = {path.name: path.read_bytes() for path in (*headers, *sources)}
    _send(board, folder, {**files, **inputs})
    native = "-mcpu=native" if about["machine"].startswith(("aarch64", "arm")) else "-march=native"
    flags = f"-std=c99 -O3 {native}"
    names = shlex.join(generic_names(name_of(model)))
    board.run(f"cd {folder} && cc {flags} {names} *.c -o runner", seconds=5 * _SECONDS)
    return flags


def _cross_compiled(
    model: Artifact, sources: Sequence[Path], about: Mapping[str, str]
) -> tuple[bytes, str]:
    machine = about["machine"]
    if machine not in _ZIG:
        raise BenchError(
            f"the board is a {machine!r} and has no `cc`; programs can be made here for "
            f"{', '.join(_ZIG)}: install a C compiler on the board"
        )
    features = about["features"].split()
    level = "-mcpu=generic+dotprod" if "asimddp" in features else ""
    level = "-mcpu=x86_64_v3" if machine == "x86_64" and "avx2" in features else level
    flags = ["-std=c99", "-O3", "-g0", "-fno-sanitize=all", *level.split()]
    with tempfile.TemporaryDirectory(prefix="fedkit-bench-") as folder:
        made = Path(folder) / "runner"
        target = ("-target", _ZIG[machine], "-static", f"-I{model.path}")
        names = generic_names(name_of(model))
        compile_c(*target, *flags, *names, *map(str, sources), "-o", str(made))
        return made.read_bytes(), " ".join(flags)


def _send(board: Board, folder: str, files: Mapping[str, bytes]) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    board.run(f"tar -x -f - -C {folder}", packed.getvalue())


def _run(board: Board, folder: str, repeats: int, limit: int, energy: str) -> dict[str, Any]:
    """Run it; return what it says."""
    arguments = shlex.join([str(repeats), str(limit), *([energy] if energy else [])])
    # The number of a process that has ended may be another's soon.
    wait = "echo $! > pid; wait $!; code=$?; rm -f pid; exit $code"
    command = f"cd {folder} && {{ ./runner {arguments} & {wait}; }}"
    ended = board.ended(command, seconds=limit + _SECONDS)
    if ended.returncode - 128 == signal.SIGALRM:
        raise BenchError(f"the model did not end within {limit} s on {board.host}; it was stopped")
    if ended.returncode:
        raise BenchError(f"the model crashed on {board.host}: {_reason(ended)}")
    try:
        told: dict[str, Any] = json.loads(ended.stdout)
    except ValueError as error:
        raise BenchError(
            f"{board.host} printed something other than the runner does: {ended.stdout[:100]!r}; "
            "see that its shell prints nothing when it starts"
        ) from error
    return told


def _reason(ended: subprocess.CompletedProcess[bytes]) -> str:
    said = ended.stderr.decode(errors="replace").strip().splitlines()
    if ended.returncode > 128 and ended.returncode != 255:
        number = ended.returncode - 128
        return next((s.name for s in signal.Signals if s == number), f"signal {number}")
    wrong = [line for line in said if "error:" in line]  # what a compiler says around it is long
    return " / ".join(wrong[:1] or said[-3:]) or f"exit code {ended.returncode}"


def _quantities(told: Mapping[str, Any], repeats: int) -> dict[str, Quantity]:
    times = sorted(told["nanoseconds"])
    found = {
        "latency_median_us": Quantity(statistics.median(times) / 1e3, "us"),
        "latency_p95_us": Quantity(times[int(0.95 * (len(times) - 1))] / 1e3, "us"),
    }
    if told["peak_kib"] >= 0:
        found["peak_bytes"] = Quantity(1024 * told["peak_kib"], "bytes")
    if "microjoules" in told:
        found["energy_uj"] = Quantity(told["microjoules"] / repeats, "uJ")
    return found


def _heat(board: Board) -> float | None:
    """Return the temperature of the hottest zone, in degrees C, if the board tells it."""
    told = board.run(_HEAT).strip()
    return int(told) / 1e3 if told.lstrip("-").isdigit() else None


def _temperatures(before: float | None, after: float | None) -> dict[str, Quantity]:
    if before is None or after is None:
        return {}
    return {
        "temperature_before": Quantity(before, "degrees C"),
        "temperature_after": Quantity(after, "degrees C"),
    }
