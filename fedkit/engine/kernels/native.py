"""The compiled kernels, loaded with ctypes."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from ctypes import POINTER, Structure, c_double, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

from fedkit.core.errors import EngineError

VERSION = 7
"""Version of the structs below and of what calls mean; the library states its own."""

SIMD = ("avx512", "avx2", "neon", "plain")
"""Instruction sets, fastest first."""

INSTALL = (
    "install a C compiler (Debian/Ubuntu: sudo apt install gcc) and then fedkit again "
    "(pip install --force-reinstall --no-deps fedkit; in a checkout: pip install -e .)"
)
"""How to get the kernels where they are missing."""


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
        ("examples", c_int64),
        ("channels", c_int32),
        ("plane", c_int32),
        ("activation", c_int32),
        ("l1", c_int32),
    )


class CMap(Structure):
    """`struct map` of kernels.h."""

    _fields_ = (
        ("first", c_void_p),
        ("tap", c_void_p),
        ("offset", c_void_p),
        ("from_", c_void_p),
        ("matrix", c_void_p),
        ("slot_in", c_void_p),
        ("slot_out", c_void_p),
        ("rows", c_int32),
        ("taps", c_int32),
        ("from_step", c_int32),
        ("slots", c_int32),
    )


class CPadding(Structure):
    """`struct padding` of kernels.h."""

    _fields_ = (("top", c_int32), ("left", c_int32), ("height", c_int32), ("width", c_int32))


class CConv(Structure):
    """`struct conv` of kernels.h."""

    _fields_ = (
        ("source", POINTER(CTensor)),
        ("target", POINTER(CTensor)),
        ("values", c_void_p),
        ("bias", c_void_p),
        ("used_in", c_void_p),
        ("used_out", c_void_p),
        ("full_offset", c_void_p),
        ("line_in", c_void_p),
        ("line_out", c_void_p),
        ("forward", CMap),
        ("backward", POINTER(CMap)),
        ("in_", CPadding),
        ("out", CPadding),
        ("in_height", c_int32),
        ("in_width", c_int32),
        ("out_height", c_int32),
        ("out_width", c_int32),
        ("lines", c_int32),
        ("line_length", c_int32),
        ("phases", c_int32),
        ("tiles", c_int32),
        ("tiles_per_part", c_int32),
        ("groups", c_int32),
        ("full_taps", c_int32),
        ("stride", c_int32),
        ("direct", c_int32),
        ("statistics", c_int32),
        ("accumulate", c_int32),
        ("finish", c_int32),
    )


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


class CLayer(Structure):
    """`struct layer` of kernels.h."""

    _fields_ = (
        ("source", POINTER(CTensor)),
        ("target", POINTER(CTensor)),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("weight_gradient", c_void_p),
        ("bias_gradient", c_void_p),
        ("mean", c_void_p),
        ("inverse", c_void_p),
        ("eps", c_double),
        ("l1", c_int32),
        ("accumulate", c_int32),
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


class CPool(Structure):
    """`struct pool` of kernels.h."""

    _fields_ = (
        ("source", POINTER(CTensor)),
        ("target", POINTER(CTensor)),
        ("windows", Windows),
        ("maximum", c_int32),
        ("accumulate", c_int32),
    )


Kernel = Callable[..., Any]


class Kernels:
    """The kernels of one instruction set; each is an attribute named as in the C sources."""

    def __init__(self, library: ctypes.CDLL, simd: str, lanes: int) -> None:
        self.simd, self.lanes = simd, lanes
        for name in _NAMES:
            setattr(self, name, getattr(library, f"{name}_{simd}"))
        self.cross_entropy.restype = c_double
        # Tiles come with AVX-512, whose lack in tests or by request they share.
        tiles = simd == "avx512" and hasattr(library, "kernels_amx") and library.kernels_amx()
        self.int_gemm_amx: Kernel | None = library.int_gemm_amx if tiles else None
        self.int_pack_tiles: Kernel | None = library.int_pack_tiles if tiles else None

    load_examples: Kernel
    read_examples: Kernel
    conv_forward: Kernel
    conv_backward: Kernel
    conv_full_gradient: Kernel
    conv_transpose: Kernel
    add_forward: Kernel
    copy_forward: Kernel
    copy_backward: Kernel
    pool_forward: Kernel
    pool_backward: Kernel
    tensor_moments: Kernel
    finish_gradient: Kernel
    norm_forward: Kernel
    norm_backward: Kernel
    layer_forward: Kernel
    layer_gradients: Kernel
    layer_backward: Kernel
    cross_entropy: Any
    sgd: Kernel
    int_load_examples: Kernel
    int_copy_rows: Kernel
    int_read_codes: Kernel
    int_conv_forward: Kernel
    int_conv_backward: Kernel
    int_add_forward: Kernel
    int_copy_forward: Kernel
    int_copy_backward: Kernel
    int_pool_forward: Kernel
    int_pool_backward: Kernel
    int_layer_forward: Kernel
    int_layer_sums: Kernel
    int_layer_backward: Kernel
    int_raw_sums: Kernel
    int_raw_squares: Kernel
    int_raw_spread: Kernel
    int_requantise: Kernel
    int_read_squares: Kernel
    int_finish: Kernel
    int_passed_peak: Kernel
    int_sgd: Kernel
    int_column_peaks: Kernel
    int_quantize: Kernel
    int_quantize8: Kernel
    int_pack_panels: Kernel
    int_gemm: Kernel
    int_lanes: Any
    int_rows: Any


_NAMES = tuple(name for name in Kernels.__annotations__ if name not in ("simd", "lanes"))


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
