"""Compile an exported C model on this machine and run it: for parity tests and host latency."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from edge import artifact, ir
from fedkit.errors import ExportError

FLAGS = {"speed": ("-O3", "-march=native"), "size": ("-Os",)}
"""Goal of a model -> what it is compiled with, if nothing else is asked for."""

_ALIGNMENT = 64
_WARM_UP = 10


class CompiledRunner:
    """A C model as a shared library, fed one example at a time as on a device."""

    def __init__(self, path: Path | str, flags: Sequence[str] | None = None) -> None:
        """Compile and load a model.

        Args:
            path: The folder that `edge.export.export_c99` made.
            flags: For the compiler, which is $CC, or cc; by default those of `FLAGS`.

        Raises:
            ExportError: The folder does not match its manifest or is none of this target, or
                there is no compiler, or it fails.
        """
        self.artifact = artifact.load(Path(path))
        if self.artifact.target != "c99":
            raise ExportError(
                f"{path} is made for {self.artifact.target!r}, not for C; export it with export_c99"
            )
        self._invoke, self._object = _compile(
            self.artifact, FLAGS[self.artifact.details["goal"]] if flags is None else flags
        )
        memory = np.zeros(self.artifact.details["arena_bytes"] + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        self._arena = memory[start : start + self.artifact.details["arena_bytes"]]
        (self._input,), (self._output,) = self.artifact.inputs, self.artifact.outputs

    def predict(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Classify float inputs.

        Args:
            inputs: float32 [n, c, h, w] or [n, f], as torch takes them.

        Returns:
            float32 [n, classes], dequantised logits.

        Raises:
            ExportError: The inputs do not fit the model.
        """
        return self._output.dequantize(self.predict_int8(self.quantize(inputs)))

    def predict_int8(self, inputs: NDArray[np.int8]) -> NDArray[np.int8]:
        """Classify inputs that are quantised already.

        Args:
            inputs: int8 [n, c, h, w] or [n, f], at the scale of the model's input.

        Returns:
            int8 [n, classes], at the scale of the model's output.

        Raises:
            ExportError: The inputs do not fit the model.
        """
        examples = np.ascontiguousarray(ir.to_graph_layout(inputs))
        if examples.shape[1:] != self._input.shape[1:] or examples.dtype != np.int8:
            raise ExportError(
                f"inputs are {inputs.dtype} {inputs.shape}; the model takes int8 [n, ...] with "
                f"{self._input.shape[1:]} in NHWC order"
            )
        results = np.empty((len(examples), *self._output.shape[1:]), np.int8)
        for example, result in zip(examples, results, strict=True):
            self._invoke(*self._addresses(example, result))
        return results

    def kept(self, example: NDArray[np.int8]) -> dict[str, NDArray[np.int8]]:
        """Run one example; return every activation of a model that was saved with `keep`.

        Args:
            example: int8 [1, h, w, c] or [1, f], in the graph's layout.

        Returns:
            Name -> int8 [1, h, w, c] or [1, 1, 1, f].
        """
        self._invoke(*self._addresses(example, np.empty(self._output.shape, np.int8)))
        return {
            name: self._activation(*place) for name, place in self.artifact.details["kept"].items()
        }

    def _activation(
        self, start: int, channels: int, height: int, width: int, row: int, plane: int
    ) -> NDArray[np.int8]:
        # An arena's bytes are 128 more than the integers that they stand for.
        shape, strides = (height, width, channels), (row, 1, plane)
        view = as_strided(self._arena[start:], shape, strides, writeable=False)
        return (view ^ 0x80).astype(np.int8)[None]

    def quantize(self, inputs: NDArray[np.float32]) -> NDArray[np.int8]:
        """Return float32 inputs as the int8 values that `predict` feeds to the model."""
        return self._input.quantize(inputs)

    def latency(self, repeats: int = 200) -> dict[str, float]:
        """Time single invocations of batch 1, after some to warm up.

        Returns:
            "median_us" and "p95_us": microseconds of one invocation.
        """
        example = np.zeros(self._input.shape, np.int8)
        result = np.empty(self._output.shape, np.int8)
        addresses = self._addresses(example, result)
        times = []
        for _ in range(_WARM_UP + repeats):
            start = time.perf_counter_ns()
            self._invoke(*addresses)
            times.append((time.perf_counter_ns() - start) / 1000)
        return {
            "median_us": float(np.median(times[_WARM_UP:])),
            "p95_us": float(np.percentile(times[_WARM_UP:], 95)),
        }

    def code_bytes(self) -> int:
        """Return the bytes of code and constants that the model was compiled to.

        Raises:
            ExportError: There is no `size`, which tells sections apart.
        """
        if shutil.which("size") is None:
            raise ExportError("there is no `size`; install binutils")
        with tempfile.NamedTemporaryFile(suffix=".o") as file:
            file.write(self._object)
            file.flush()
            told = subprocess.run(["size", file.name], capture_output=True, text=True, check=True)
        text, data, *_ = told.stdout.splitlines()[1].split()
        return int(text) + int(data)

    def _addresses(self, example: NDArray[np.int8], result: NDArray[np.int8]) -> tuple[int, ...]:
        return tuple(array.ctypes.data for array in (example, result, self._arena))


def _compile(model: artifact.Artifact, flags: Sequence[str]) -> tuple[Callable[..., int], bytes]:
    """Return `model_invoke` and the object file that it is linked from."""
    sources = [name for name in model.files if name.endswith(".c") and name != "main.c"]
    # All in one: reading the headers of vector instructions once is most of the time saved.
    text = "".join(f'#include "{name}"\n' for name in sources)
    options = ["-std=c99", *flags, "-fPIC", f"-I{model.path.resolve()}"]
    with tempfile.TemporaryDirectory() as folder:
        made, library = Path(folder) / "model.o", Path(folder) / "model.so"
        _call_compiler(model, [*options, "-c", "-x", "c", "-", "-o", str(made)], text)
        _call_compiler(model, [*flags, "-shared", str(made), "-o", str(library)])
        invoke = ctypes.CDLL(str(library)).model_invoke
        content = made.read_bytes()
    invoke.argtypes, invoke.restype = (ctypes.c_void_p,) * 3, ctypes.c_int
    return cast(Callable[..., int], invoke), content


def _call_compiler(model: artifact.Artifact, options: list[str], text: str = "") -> None:
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or shutil.which(compiler[0]) is None:
        named = " ".join(compiler)
        raise ExportError(f"there is no C compiler {named!r}; install gcc or set CC to one")
    ended = subprocess.run([*compiler, *options], input=text, capture_output=True, text=True)
    if ended.returncode != 0:
        reason = (ended.stderr.strip() or "no reason given").splitlines()[0]
        raise ExportError(f"{compiler[0]} cannot compile {model.path}: {reason}; see its flags")
