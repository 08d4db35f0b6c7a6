"""What the program of a C artifact says of files, as integers, and what it refuses."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.artifact import Artifact
from edge.check import graph_of
from edge.define.interpret_int8 import evaluate_int8
from fedkit.graph import ir

FLAGS = {
    "plain": "-O0",
    "fast": "-O3 -march=native",
    "sanitized": "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all",
}


def built(made: Artifact, program: str, flags: str = "-O0") -> Path:
    command = ["make", "-s", "test", program, f"CFLAGS={flags} -Werror"]
    subprocess.run(command, cwd=made.path, check=True)
    return made.path / program


def told(program: Path, files: Sequence[Path]) -> tuple[list[list[str]], NDArray[np.int8]]:
    """Return the words of each line before the outputs, and the outputs of all, int8 [n, c]."""
    ended = subprocess.run([program, "-o", *files], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    lines = [line.split("\t") for line in ended.stdout.splitlines()]
    outputs = [[int(value) for value in line[-1].split()] for line in lines]
    return [line[:-1] for line in lines], np.array(outputs, np.int8)


def refused(program: Path, file: Path) -> str:
    """Return what is said of a file that is not taken."""
    ended = subprocess.run([program, file], capture_output=True, text=True, errors="replace")
    assert ended.returncode == 1 and ended.stderr.startswith(str(file))
    return ended.stderr.removeprefix(str(file)).strip()


def defined(made: Artifact, inputs: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return what the interpreter makes of inputs as torch takes them, int8 [n, c]."""
    codes = made.inputs[0].quantize(ir.to_graph_layout(inputs))
    found = [evaluate_int8(graph_of(made), code[None], "half_up") for code in codes]
    return np.concatenate(found).reshape(len(inputs), -1)
