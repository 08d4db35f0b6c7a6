"""The compiled kernels, loaded with ctypes."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_uint32,
    c_void_p,
)
from pathlib import Path
from typing import Any

from fedkit.core.errors import EngineError

VERSION = 21
"""Version of the structs below and of what calls mean; the library states its own."""

SIMD = ("avx512", "avx2", "neon", "plain")
"""Instruction sets, fastest first."""

INSTALL = (
    "install a C compiler (Debian/Ubuntu: sudo apt install gcc) and then fedkit again "
    "(pip install --force-reinstall --no-deps fedkit; in a checkout: pip install -e .)"
)
"""How to get the kernels where they are missing."""


class CGrid(Structure):
    """`struct grid` of kernels.h."""

    _fields_ = (
        ("base", c_float * 3),
        ("step", c_float * 3),
        ("limit", c_float),
        ("first", c_int32 * 2),
    )


class CRange(Structure):
    """`struct range` of kernels.h."""

    _fields_ = (("least", c_float), ("most", c_float))


class CStored(Structure):
    """`struct stored` of kernels.h; it and a tensor know each other."""


class CTensor(Structure):
    """`struct tensor` of kernels.h."""

    _fields_ = (
        ("x", c_void_p),
        ("gradient", c_void_p),
        ("scale", c_void_p),
        ("shift", c_void_p),
        ("a", c_void_p),
        ("b", c_void_p),
        ("c", c_void_p),
        ("mean", c_void_p),
        ("sums", c_void_p),
        ("ranges", POINTER(CRange)),
        ("stored", POINTER(CStored)),
        ("examples", c_int64),
        ("channels", c_int32),
        ("plane", c_int32),
        ("activation", c_int32),
        ("l1", c_int32),
    )


CStored._fields_ = (
    ("tensor", POINTER(CTensor)),
    ("codes", c_void_p),
    ("grids", POINTER(CGrid)),
    ("bits", c_int32),
    ("key_low", c_uint32),
    ("key_high", c_uint32),
)


class CPadding(Structure):
    """`struct padding` of kernels.h."""

    _fields_ = (("top", c_int32), ("left", c_int32), ("height", c_int32), ("width", c_int32))


class CNorm(Structure):
    """`struct norm` of kernels.h."""

    _fields_ = (
        ("tensor", POINTER(CTensor)),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("weight_gradient", c_void_p),
        ("bias_gradient", c_void_p),
        ("scale", c_void_p),
        ("shift", c_void_p),
        ("mean", c_void_p),
        ("a", c_void_p),
        ("b", c_void_p),
        ("c", c_void_p),
        ("center", c_void_p),
        ("spread", c_void_p),
        ("signs", c_void_p),
        ("eps", c_double),
        ("l1", c_int32),
    )


class Windows(Structure):
    """`struct windows` of kernels.h."""

    _fields_ = (
        ("in_height", c_int32),
        ("in_width", c_int32),
        ("out_height", c_int32),
        ("out_width", c_int32),
        ("kernel_y", c_int32),
        ("kernel_x", c_int32),
        ("stride_y", c_int32),
        ("stride_x", c_int32),
        ("pad_y", c_int32),
        ("pad_x", c_int32),
    )


class CStep(Structure):
    """`struct step` of walk.h."""

    _fields_ = (
        ("run", c_void_p),
        ("pointers", c_void_p * 3),
        ("real", c_double),
        ("numbers", c_int32 * 2),
        ("sums", c_void_p * 2),
        ("counts", c_int64 * 2),
        ("units", c_int32),
        ("begin", c_int32),
    )


class CTeam(Structure):
    """`struct team` of walk.h."""

    _fields_ = (
        ("crew", c_void_p),
        ("scratch", c_void_p),
        ("sums", c_void_p),
        ("scratch_floats", c_int64),
        ("sums_floats", c_int64),
        ("threads", c_int32),
    )


Kernel = Callable[..., Any]


class Kernels:
    """The kernels of one instruction set; each is an attribute named as in the C sources.

    Attributes:
        simd: One of `SIMD`.
        lanes: Examples of a tile.
        cross_entropy: Returns the loss; all others return an int, or nothing.
        int_gemm_amx: A product of matrices in tiles, where the processor has them.
        int_pack_tiles: What it reads.
    """

    cross_entropy: Any
    int_gemm_amx: Kernel | None
    int_pack_tiles: Kernel | None

    def __init__(self, library: ctypes.CDLL, simd: str, lanes: int) -> None:
        self.simd, self.lanes, self._library = simd, lanes, library
        self.cross_entropy = self._find("cross_entropy")
        self.cross_entropy.restype = c_double
        # Tiles come with AVX-512, whose lack in tests or by request they share.
        tiles = simd == "avx512" and hasattr(library, "kernels_amx") and library.kernels_amx()
        self.int_gemm_amx = library.int_gemm_amx if tiles else None
        self.int_pack_tiles = library.int_pack_tiles if tiles else None

    def __getattr__(self, name: str) -> Any:
        """Find a kernel the first time it is asked for."""
        if name.startswith("_"):
            raise AttributeError(name)
        kernel = self._find(name)
        setattr(self, name, kernel)
        return kernel

    def begin_crew(self, threads: int) -> int | None:
        """Return the address of threads that walk together, or None: there is no need of any.

        They start with their first walk, and last until `end_crew`; a fork starts its own.
        """
        begin = self._library.kernels_begin_crew
        begin.restype = c_void_p
        found: int | None = begin(threads)
        return found

    def end_crew(self, crew: int | None) -> None:
        """End what `begin_crew` returned."""
        self._library.kernels_end_crew(c_void_p(crew))

    def walk(self, steps: ctypes.Array[CStep], first: int, last: int, team: CTeam) -> int:
        """Take the steps `first` to `last` - 1, and return how many threads did."""
        return int(self._library.kernels_walk(steps, first, last, byref(team)))

    def step(self, kernel: Kernel) -> int:
        """Return the address of what calls one of these kernels with the arguments of a step."""
        found = self._symbol(f"step_{kernel.__name__}", "give it a row in steps.h")
        return ctypes.cast(found, c_void_p).value or 0

    def _find(self, name: str) -> Kernel:
        found: Kernel = self._symbol(f"{name}_{self.simd}", "name its header in all.h")
        return found

    def _symbol(self, name: str, advice: str) -> Any:
        try:
            return getattr(self._library, name)
        except AttributeError as error:
            raise EngineError(
                f"the compiled kernels have no {name}; {advice}, and build them anew "
                "(pip install -e .)"
            ) from error


def available() -> tuple[str, ...]:
    """Return the instruction sets that this processor runs, fastest first; none: no library."""
    library = _library()
    return () if library is None else tuple(simd for simd in SIMD if _lanes(library, simd))


@functools.cache
def load_kernels(simd: str = "") -> Kernels:
    """Return the kernels of an instruction set.

    Args:
        simd: One of `SIMD`; "" takes that of the variable FEDKIT_SIMD, or else the fastest.

    Raises:
        EngineError: There is no compiled library, it cannot be loaded or is of another version, or
            it or the processor lacks the instruction set.
    """
    library = _library()
    if library is None:
        raise EngineError(f"the compiled kernels of the sparse engine are missing; {INSTALL}")
    found, simd = available(), simd or os.environ.get("FEDKIT_SIMD", "")
    if simd and simd not in found:
        raise EngineError(
            f"instruction set {simd!r} cannot be used here; this processor runs {', '.join(found)}"
        )
    simd = simd or found[0]
    return Kernels(library, simd, _lanes(library, simd))


@functools.cache
def _library() -> ctypes.CDLL | None:
    for path in sorted(Path(__file__).parent.glob("_kernels*")):
        if path.suffix in (".so", ".pyd", ".dylib"):
            return _load(path)
    return None


def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        version = library.kernels_version()
    except (OSError, AttributeError) as error:
        raise EngineError(f"{path} cannot be loaded: {error}; {INSTALL}") from error
    if version != VERSION:
        raise EngineError(
            f"{path} is version {version} of the kernels, this fedkit drives version {VERSION}; "
            f"{INSTALL}"
        )
    return library


def _lanes(library: ctypes.CDLL, simd: str) -> int:
    try:
        return int(getattr(library, f"kernels_lanes_{simd}")())
    except AttributeError:
        return 0
