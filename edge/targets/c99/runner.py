"""Compile an exported C model on this machine and run it: for parity tests and host latency."""

from __future__ import annotations

import ctypes
import math
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from edge import artifact
from edge.targets.c_names import NAME, PROGRAMS, check_name, output_names
from edge.targets.tflite.runner import Runner
from fedkit.core.errors import ExportError

FLAGS = {"speed": ("-O3", "-march=native"), "size": ("-Os",)}
"""Goal of a model -> what it is compiled with, if nothing else is asked for."""

_ALIGNMENT = 64


class CompiledRunner(Runner):
    """A C model as a shared library, fed one example at a time as on a device."""

    _order = "NHWC"

    def __init__(
        self, path: Path | str, flags: Sequence[str] | None = None, changed: bool = False
    ) -> None:
        """Compile and load a model: its code runs here, even a stranger's.

        Args:
            path: The folder that `edge.export.export_c99` made.
            flags: For the compiler, which is $CC, or cc; by default those of `FLAGS`.
            changed: Take files that are not those of the manifest.

        Raises:
            ExportError: The folder does not match its manifest or is of another target, or
                there is no compiler, or it fails.
        """
        self.artifact = artifact.load(Path(path), changed)
        if self.artifact.target != "c99":
            raise ExportError(
                f"{path} is made for {self.artifact.target!r}, not for C; export it with export_c99"
            )
        goal, size = self.artifact.detail("goal", str), self.artifact.detail("arena_bytes", int)
        self._input, self._outputs = artifact.ports(self.artifact)
        self._function, self._object = _compile(
            self.artifact, FLAGS.get(goal, ()) if flags is None else flags, changed
        )
        memory = np.zeros(size + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        self._arena = memory[start : start + size]
        ports = (self._input, *self._outputs)
        self._held = [np.zeros(port.shape, port.dtype) for port in ports]
        self._addresses = tuple(each.ctypes.data for each in (*self._held, self._arena))

    def _classify(self, example: NDArray[Any]) -> list[NDArray[Any]]:
        self._held[0][...] = example
        if code := self._function(*self._addresses):
            raise ExportError(f"{name_of(self.artifact)}_invoke returns {code}; model.h says why")
        return self._held[1:]

    def _invoke(self) -> None:
        self._function(*self._addresses)

    def kept(self, example: NDArray[Any]) -> dict[str, NDArray[np.int8]]:
        """Run one example; return every activation of a model that was saved with `keep`.

        Args:
            example: int8 [1, h, w, c] or [1, f], in the graph's layout.

        Returns:
            Name -> int8 [1, h, w, c] or [1, 1, 1, f].

        Raises:
            ExportError: The manifest does not say where they lie, or says a place outside.
        """
        self._classify(example)
        places = self.artifact.detail("kept", dict)
        return {name: self._activation(*self._place(name, place)) for name, place in places.items()}

    def _place(self, name: str, place: Any) -> list[int]:
        """Return where an activation lies, if that is in the arena."""
        is_known = isinstance(place, list) and len(place) == 6
        if is_known and all(type(each) is int and 0 <= each <= len(self._arena) for each in place):
            start, channels, height, width, row, plane = place
            last = start + (channels - 1) * plane + (height - 1) * row + width - 1
            if min(channels, height, width) >= 1 and last < len(self._arena):
                return list(place)
        raise ExportError(
            f"the manifest of {self.artifact.path} is damaged (activation {name[:60]!r} lies at "
            f"{place!r:.60}, outside of the arena); export the model again"
        )

    def _activation(
        self, start: int, channels: int, height: int, width: int, row: int, plane: int
    ) -> NDArray[np.int8]:
        # An arena's bytes are 128 more than the integers that they stand for.
        shape, strides = (height, width, channels), (row, 1, plane)
        view = as_strided(self._arena[start:], shape, strides, writeable=False)
        return (view ^ 0x80).astype(np.int8)[None]

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


def _compile(
    model: artifact.Artifact, flags: Sequence[str], changed: bool
) -> tuple[Callable[..., int], bytes]:
    """Return the model's function and the object file that it is linked from."""
    name = name_of(model)
    sources = [each for each in model.files if each.endswith(".c") and each not in PROGRAMS]
    # All in one: reading the headers of vector instructions once is most of the time saved.
    text = "".join(f'#include "{each}"\n' for each in sources) + _sizes(model, name.upper())
    with tempfile.TemporaryDirectory() as folder:
        made, library = Path(folder) / "made.o", Path(folder) / "made.so"
        copy = Path(folder) / "sources"
        copy.mkdir()
        artifact.unpack(model, copy, changed)
        options = ["-std=c99", *flags, "-fPIC", f"-I{copy}", "-c", "-x", "c", "-"]
        _call_compiler(model, [*options, "-o", str(made)], text)
        _call_compiler(model, [*flags, "-shared", str(made), "-o", str(library)])
        invoke = getattr(ctypes.CDLL(str(library)), f"{name}_invoke")
        content = made.read_bytes()
    count = 2 + len(model.outputs)  # of the input and the arena too
    invoke.argtypes, invoke.restype = (ctypes.c_void_p,) * count, ctypes.c_int
    return cast(Callable[..., int], invoke), content


def _sizes(model: artifact.Artifact, prefix: str) -> str:
    """Return C that does not compile unless the manifest's sizes, which memory has, are true."""
    x, sizes = model.inputs[0], [math.prod(port.shape) for port in model.outputs]
    told = {
        "INPUT_BYTES": math.prod(x.shape) * np.dtype(x.dtype).itemsize,
        **{
            f"{name}_BYTES": size
            for name, size in zip(output_names(len(sizes)), sizes, strict=True)
        },
        "ARENA_BYTES": model.details["arena_bytes"],
    }
    true = " && ".join(f"{prefix}_{name} == {value}" for name, value in told.items())
    return f"typedef char manifest_tells_other_sizes[{true} ? 1 : -1];\n"


def name_of(model: artifact.Artifact) -> str:
    """Return what the identifiers of a C model begin with.

    Raises:
        ExportError: The manifest names none that C could have.
    """
    name = str(model.details.get("name", NAME))
    check_name(name)
    return name


def _call_compiler(model: artifact.Artifact, options: list[str], text: str = "") -> None:
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or shutil.which(compiler[0]) is None:
        named = " ".join(compiler)
        raise ExportError(f"there is no C compiler {named!r}; install gcc or set CC to one")
    ended = subprocess.run([*compiler, *options], input=text, capture_output=True, text=True)
    if ended.returncode != 0:
        reason = (ended.stderr.strip() or "no reason given").splitlines()[0]
        raise ExportError(f"{compiler[0]} cannot compile {model.path}: {reason}; see its flags")
