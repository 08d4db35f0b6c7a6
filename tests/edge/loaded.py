"""One simulation of the FPGA engine for many models: its memories are filled at run time.

Building a simulation takes ten seconds, running a small model a fraction of one. Here the engine is
built once with memories and addresses that are wide enough, and weights are widened to them.
Whether the widths that a model gives itself suffice is not seen here.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.targets.fpga import emitter as fpga
from edge.targets.fpga import yosys
from edge.targets.fpga.runner import _HARNESS, _compiler
from tests.naive.engine import words_of

LANES = 4
RAM_BYTES = 2**16
"""Of what it runs: lanes and memory for activations."""

_WIDE = {
    **{"LANES": LANES, "MAXIMUM": 1, "GAP": 16, "WEIGHT": 8},
    **{"ADDRESS": (RAM_BYTES - 1).bit_length(), "RAM_DEPTH": RAM_BYTES},
    **{"WEIGHT_ADDRESS": 16, "WEIGHT_DEPTH": 2**16, "TABLE_ADDRESS": 14, "TABLE_DEPTH": 2**14},
    **{"PROGRAM_ADDRESS": 12, "PROGRAM_DEPTH": 2**12},
}
_MOST_CYCLES = 10**7


class Hardware:
    """The engine, simulated."""

    def __init__(self, folder: Path) -> None:
        names = [f"{name}.v" for name in fpga._MODULES]
        for name in names:
            shutil.copy(fpga._HDL / name, folder)
        for number in range(LANES):
            (folder / f"weights_{number}.hex").write_text("0\n")
            (folder / f"filters_{number}.hex").write_text("0\n")
        (folder / "program.hex").write_text("0\n")
        settings = " ".join(f"-chparam {name} {value}" for name, value in _WIDE.items())
        script = (
            f"read_verilog -defer {' '.join(names)}; hierarchy -check -top engine {settings}; "
            "rename -top model; write_cxxrtl -O6 model.cc"
        )
        yosys.call("yosys", ["-q", "-p", script], folder)
        shutil.copy(_HARNESS, folder)
        shutil.copy(Path(__file__).with_suffix(".cc"), folder)
        options = ["-std=c++14", "-O0", "-DCXXRTL_NDEBUG", "-fPIC", "-shared", "-I."]
        command = [*_compiler(), *options, f"-I{yosys.simulator_headers()}", "loaded.cc"]
        subprocess.run([*command, "-o", "loaded.so"], cwd=folder, check=True)
        self._library = ctypes.CDLL(str(folder / "loaded.so"))
        self._library.model_new.restype = ctypes.c_void_p
        self._library.model_run.restype = ctypes.c_int64

    def run(
        self, files: Mapping[str, bytes], examples: NDArray[np.int8], out: int
    ) -> NDArray[np.int8]:
        """Return int8 [n, out]: the bytes that a model of `LANES` lanes gives for each example."""
        model = ctypes.c_void_p(self._library.model_new())
        for number, words in enumerate(_memories(files)):
            data = np.array(words, np.uint64)
            place = ctypes.c_void_p(data.ctypes.data)
            self._library.model_fill(model, number, place, ctypes.c_int64(len(data)))
        found = np.zeros((len(examples), out), np.int8)
        for pair in zip(np.ascontiguousarray(examples), found, strict=True):
            buffers = (
                part
                for each in pair
                for part in (ctypes.c_void_p(each.ctypes.data), ctypes.c_int64(each.size))
            )
            most = ctypes.c_int64(_MOST_CYCLES)
            assert self._library.model_run(model, *buffers, most) > 0, "the model never ends"
        self._library.model_delete(model)
        return found


def _memories(files: Mapping[str, bytes]) -> Iterator[list[int]]:
    """Yield the words of the program, and of each lane's weights and filters."""
    text = files["model.v"].decode()
    widths = {name: int(value) for name, value in re.findall(r"\.([A-Z_]+)\((\d+)\)", text)}
    assert widths["ADDRESS"] == _WIDE["ADDRESS"]  # distances are negative, and wrap
    yield words_of(files["program.hex"])
    for number in range(LANES):
        bits, mask = widths["WEIGHT"], 2 ** widths["WEIGHT"] - 1
        entries = words_of(files[f"weights_{number}.hex"])
        yield [word >> bits << 8 | _extended(word & mask, bits, 8) for word in entries]
        yield words_of(files[f"filters_{number}.hex"])


def _extended(value: int, bits: int, to: int) -> int:
    return value | (2**to - 2**bits if value >> (bits - 1) & 1 else 0)
