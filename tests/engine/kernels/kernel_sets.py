"""Every set of kernels that can be run here: compiled, spelled out in C, or emulated."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from fedkit.engine.kernels import native
from tests.sets import slow

if TYPE_CHECKING:
    from fedkit.bench.emulator import Processor

KERNELS = Path(native.__file__).parent
INTRINSICS = Path(__file__).with_name("intrinsics")

SPELLED_OUT = "avx512-in-c"
"""The kernels of 16 lanes, with intrinsics that are loops."""

EMULATED = {"neon-emulated": "neon", "plain-emulated": "plain"}
"""The kernels of aarch64."""


def names() -> list[Any]:
    """Return the names of all sets, as parameters.

    Slow is the spelled-out set where this processor runs those kernels by itself, and of the
    emulated sets the plain one: its C runs here too, and neon stands for another processor.
    """
    spelled_out = [SPELLED_OUT] if platform.machine() == "x86_64" else []
    if "avx512" in native.available():
        spelled_out = [slow(name) for name in spelled_out]
    return [*native.available(), *spelled_out, "neon-emulated", slow("plain-emulated")]


def missing(name: str) -> str:
    """Return what a set needs and this environment lacks; "" is nothing."""
    if name not in EMULATED:
        return ""
    lacking = [m for m in ("elftools", "unicorn", "ziglang") if not importlib.util.find_spec(m)]
    return f"not installed: {', '.join(lacking)}; pip install -e .[dev]" if lacking else ""


@functools.cache
def load(name: str, folder: Path) -> native.Kernels:
    """Return a set of kernels, compiled anew where the package does not hold it.

    Args:
        name: Of the set.
        folder: For what is compiled: once, whichever process of the tests comes first.
    """
    if name == SPELLED_OUT:
        return _spelled_out()
    if name in EMULATED:
        return _emulated(EMULATED[name], folder)
    return native.load_kernels(name)


def _spelled_out() -> native.Kernels:
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "avx512.c"), Path(folder, "avx512.so")
        # What avx512.c says, without the pragmas that let the compiler use the instructions.
        source.write_text('#define ISA_AVX512\n#include "all.h"\n')
        flags = ["-std=c99", "-O1", "-ffp-contract=off", "-Wno-psabi", "-fPIC", "-shared"]
        paths = [f"-I{INTRINSICS}", f"-I{KERNELS}"]
        sources = [str(source), str(KERNELS / "walk.c")]
        command = ["cc", *flags, *paths, *sources, "-o", str(library), "-lm", "-pthread"]
        subprocess.run(command, check=True)
        return native.Kernels(ctypes.CDLL(str(library)), "avx512", 16)


def _emulated(simd: str, folder: Path) -> native.Kernels:
    # Imported here: without the emulator its tests are skipped.
    from fedkit.bench.emulator import EmulatedKernels

    return EmulatedKernels(_processor(simd, folder), simd)


def _processor(simd: str, folder: Path) -> Processor:
    from fedkit.bench.emulator import Processor, build

    with FileLock(folder / f"{simd}.lock"):
        made, image = folder / simd, folder / f"{simd}.image"
        if not image.exists():
            made.mkdir(exist_ok=True)
            build(made, "-Os", "-g0", sets=[simd]).rename(image)
    return Processor(image)
