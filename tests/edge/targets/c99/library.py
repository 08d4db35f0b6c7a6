"""The C kernels for tests: compiled, and called through ctypes on tensors of their own.

Those of aarch64 are called in the same way, on an emulated processor.

Every tensor has memory of its own, of the size that the layout promises and EK_SLACK bytes more,
which must come back unchanged.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.targets.c99 import pack
from edge.targets.c99.pack import Phases, Planes
from edge.targets.c99.requant import Requant as Factors
from edge.targets.c99.requant import near
from fedkit.graph.ir import Window

C99 = Path(pack.__file__).parent / "kernels"
SOURCES = sorted(C99.glob("*.c"))
STEPS = Path(__file__).with_name("steps.c")
INTRINSICS = Path(__file__).with_name("intrinsics")
INTRINSICS_DSP = Path(__file__).with_name("intrinsics_dsp")
INTRINSICS512 = Path(__file__).with_name("intrinsics512")
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror")

Array = NDArray[Any]
Bytes = NDArray[np.uint8]


def need_gcc() -> None:
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc; sudo apt install gcc g++")


def need_avx2() -> None:
    info = Path("/proc/cpuinfo")
    if not info.exists() or not {"avx2", "fma"} <= set(info.read_text().split()):
        pytest.skip(f"this processor ({platform.machine()}) has no AVX2 or no FMA")


def need_emulator() -> None:
    lacking = [m for m in ("elftools", "unicorn", "ziglang") if not importlib.util.find_spec(m)]
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)}; pip install -e .[dev]")


def in_one(folder: Path) -> Path:
    """Write a source that holds all kernels; headers are then read once, which takes the time.

    It does not include them: clang warns of functions that nothing calls only in the file itself.
    """
    path = folder / "all.c"
    path.write_text("\n".join(Path(source).read_text(encoding="utf-8") for source in SOURCES))
    return path


def build(folder: Path, *flags: str) -> Path:
    """Compile all kernels into one shared library."""
    path = folder / "kernels.so"
    sources = [f"-I{C99}", str(in_one(folder)), str(STEPS), "-o", str(path)]
    command = ["gcc", "-std=c99", *flags, "-shared", "-fPIC", *sources]
    subprocess.run(command, check=True)
    return path


class Emulated:
    """All kernels on an emulated aarch64 processor, as ctypes shows a library."""

    def __init__(self, processor: Any) -> None:
        """Take what `emulate` made of them."""
        self.processor = processor

    def __getattr__(self, name: str) -> Any:
        return partial(self.processor.call_int, name)


def emulate(sources: Sequence[Path], simd: str, *flags: str) -> Any:
    """Compile sources for aarch64; return an emulated `Processor` with them in its memory."""
    # Imported here: without the emulator its tests are skipped.
    from unicorn.arm64_const import UC_CPU_ARM64_MAX

    from fedkit.bench import emulator

    flags = ("-fno-sanitize=all", *flags, *AARCH64[simd], "-std=c99")
    objects = [source.with_suffix(".o") for source in sources]
    for source, built in zip(sources, objects, strict=True):
        emulator.compile_c(*flags, "-c", source, "-o", built)
    image = emulator.link(objects, objects[0].with_suffix(".aarch64"))
    # The default has no dot products, which shows that "neon" needs none.
    return emulator.Processor(image, None if simd == "neon" else UC_CPU_ARM64_MAX)


X86 = {
    "native": ["-march=native"],
    "avx2": ["-mavx2"],
    "fma": ["-mavx2", "-mfma"],
    "vnni": ["-mavx2", "-mfma", f"-I{INTRINSICS}", "-Wno-psabi"],
    "avx512": ["-mavx2", "-mfma", f"-I{INTRINSICS512}", f"-I{INTRINSICS}", "-Wno-psabi"],
    "dsp": ["-D__ARM_FEATURE_DSP", "-D__ARM_FEATURE_SIMD32", f"-I{INTRINSICS_DSP}"],
    "plain": ["-DEK_PLAIN"],
}
AARCH64 = {
    "neon": ["-mcpu=cortex_a72"],
    "dotprod": ["-mcpu=cortex_a76"],
    "plain_aarch64": ["-mcpu=cortex_a76", "-DEK_PLAIN"],
}
"""Instruction sets, and the compiler's flags for them."""


def load(variant: str, folder: Path) -> InferenceKernels:
    """Compile kernels such as "avx2-O3"; skip the test where they cannot run."""
    simd, level = variant.split("-")
    if simd in AARCH64:
        need_emulator()
        return InferenceKernels(Emulated(emulate([in_one(folder)], simd, f"-{level}", f"-I{C99}")))
    need_gcc()
    if simd not in ("plain", "dsp"):
        need_avx2()
    return InferenceKernels(build(folder, *flags_of(variant)))


# Structs of ek.h

_INT, _BYTE, _AT = ctypes.c_int32, ctypes.c_uint8, ctypes.c_void_p


class CPlanes(ctypes.Structure):
    _fields_ = (
        *((name, _INT) for name in ("channels", "height", "width", "row", "plane", "lead")),
        ("zero", _BYTE),
    )


class CRequant(ctypes.Structure):
    _fields_ = (
        *((name, _AT) for name in ("bias", "multiplier", "shift")),
        *((name, _BYTE) for name in ("zero", "low", "high")),
    )


class CSum(ctypes.Structure):
    _fields_ = (
        *((name, _INT) for name in ("scale_a", "scale_b", "offset")),
        *((name, _BYTE) for name in ("shift", "zero", "low", "high")),
    )


class CSparse(ctypes.Structure):
    _fields_ = (
        ("out", CPlanes),
        ("requant", CRequant),
        ("in_row", _INT),
        *((name, _AT) for name in ("filters", "quads", "pairs", "sum")),
    )


class CStream(ctypes.Structure):
    _fields_ = (
        ("out", CPlanes),
        ("requant", CRequant),
        *((name, _INT) for name in ("in_row", "in_plane", "taps")),
        ("at", _AT),
        *((name, _INT) for name in ("group_in", "group_out", "bits")),
        *((name, _AT) for name in ("stream", "sum")),
    )


class CDense(ctypes.Structure):
    _fields_ = (
        ("out", CPlanes),
        ("requant", CRequant),
        *((name, _INT) for name in ("in_row", "taps")),
        *((name, _AT) for name in ("at", "weights", "sum")),
    )


class CLinear(ctypes.Structure):
    _fields_ = (("inputs", _INT), ("outputs", _INT), ("requant", CRequant), ("weights", _AT))


class CWindow(ctypes.Structure):
    _fields_ = tuple(
        (name, _INT)
        for name in (
            *("kernel_y", "kernel_x", "stride_y", "stride_x"),
            *("dilation_y", "dilation_x", "top", "left"),
        )
    )


class CPhases(ctypes.Structure):
    _fields_ = (
        *((name, _INT) for name in ("stride_y", "stride_x", "top", "left")),
        ("source", CPlanes),
        ("out", CPlanes),
    )


class CTable(ctypes.Structure):
    _fields_ = (("entries", _AT),)


class CGroupNorm(ctypes.Structure):
    _fields_ = (
        ("groups", _INT),
        *((name, _AT) for name in ("factor", "offset")),
        ("eps", ctypes.c_int64),
        *((name, _BYTE) for name in ("shift", "zero", "low", "high")),
    )


class CPlaces(ctypes.Structure):
    _fields_ = (*((name, _AT) for name in ("rows", "columns", "channels")), ("is_run", _INT))


class CPowers(ctypes.Structure):
    _fields_ = (("entries", _AT), ("step", ctypes.c_int64), ("log_one", ctypes.c_int64))


class CSteps(ctypes.Structure):
    _fields_ = tuple((name, _INT) for name in ("plane", "row", "pixel"))


class CPair(ctypes.Structure):
    _fields_ = (
        ("out", CPlanes),
        ("a", CSteps),
        ("b", CSteps),
        *((name, _BYTE) for name in ("zero_a", "zero_b")),
        *((name, _INT) for name in ("factor_a", "factor_b")),
        *((name, _BYTE) for name in ("shift", "zero", "low", "high")),
        ("constant", _AT),
    )


# What is called with


@dataclass(frozen=True)
class RequantArguments:
    """Requantisation of a layer; `zero`, `low`, `high` as int8 values.

    Attributes:
        bias: int32 [out], of inputs less their zero point.
        multiplier: int32 [out].
        shift: uint8 [out].
    """

    bias: Array
    multiplier: Array
    shift: Array
    zero: int
    low: int
    high: int


@dataclass(frozen=True)
class SumArguments:
    """A sum of two tensors; zero points and limits as int8 values."""

    scales: tuple[int, int]
    zeros: tuple[int, int]
    shift: int
    zero: int
    low: int
    high: int


@dataclass(frozen=True)
class NormArguments:
    """A norm over groups of channels; `zero`, `low`, `high` as int8 values.

    Attributes:
        groups: How many.
        factor: int32 [channels].
        offset: int64 [channels], with the half that rounds.
        eps: What is added under the root.
        shift: Of the result.
    """

    groups: int
    factor: Array
    offset: Array
    eps: int
    shift: int
    zero: int
    low: int
    high: int


@dataclass
class TensorBuffer:
    """A tensor in its own memory."""

    planes: Planes
    memory: Bytes = field(default_factory=lambda: np.zeros(0, np.uint8))

    def __post_init__(self) -> None:
        if not self.memory.size:
            self.memory = np.full(self.planes.size + pack.SLACK, 0xA5, np.uint8)

    @property
    def address(self) -> int:
        return self.memory.ctypes.data + self.planes.lead

    def values(self) -> Array:
        """Return the pixels as int8 values [c, h, w], and check all that lies around them."""
        p = self.planes
        rows = self.memory[p.lead : p.size].reshape(p.channels, p.height + p.halo_y, p.row)
        assert (self.memory[: p.lead] == p.zero).all(), "halo before"
        assert (rows[:, : p.height, p.width :] == p.zero).all(), "halo right"
        assert (rows[:, p.height :] == p.zero).all(), "halo below"
        assert (self.memory[p.size :] == 0xA5).all(), "written past its end"
        return rows[:, : p.height, : p.width].astype(np.int16) - 128


def vector(count: int) -> TensorBuffer:
    return TensorBuffer(Planes(count, 1, 1))


class InferenceKernels:
    """The functions of ek.h."""

    def __init__(self, library: Path | Emulated) -> None:
        self.library: Any = ctypes.CDLL(str(library)) if isinstance(library, Path) else library
        self._kept: list[Any] = []

    def load(self, image: Array, planes: Planes) -> TensorBuffer:
        """Put int8 values [c, h, w] into a tensor."""
        out = TensorBuffer(planes)
        nhwc = np.ascontiguousarray(image.transpose(1, 2, 0).astype(np.int8))
        self.library.ek_load(self._planes(planes), _at(nhwc), _AT(out.address))
        return out

    def store(self, x: TensorBuffer) -> Array:
        out = np.empty(x.planes.channels, np.int8)
        self.library.ek_store(out.size, _AT(x.address), _at(out))
        return out

    def split(self, phases: Phases, x: TensorBuffer) -> TensorBuffer:
        out = TensorBuffer(phases.planes)
        top, _, left, _ = phases.window.padding
        struct = CPhases(
            *phases.window.stride,
            top,
            left,
            planes_struct(phases.source),
            planes_struct(phases.planes),
        )
        self.library.ek_split(ctypes.byref(struct), _AT(x.address), _AT(out.address))
        return out

    def conv(
        self,
        kind: str,
        x: TensorBuffer,
        weights: Array,
        window: Window,
        requant: RequantArguments,
        out: Planes,
        added: tuple[SumArguments, TensorBuffer] | None = None,
        in_place: bool = False,
    ) -> TensorBuffer:
        """Convolve by the kernel `kind`: "sparse", "stream8", "stream4", "dense" or "full"."""
        groups = x.planes.channels // weights.shape[1]
        if window.stride == (1, 1):
            at = pack.distances(x.planes, window)
        else:
            phases = Phases(x.planes, window, out.row)
            at, x = phases.distances(window), self.split(phases, x)
        result = added[1] if added and in_place else TensorBuffer(out)
        common = planes_struct(out), self.requant(requant, weights, x.planes.zero), x.planes.row
        sum_at = self.sum_struct(added[0]) if added else None
        struct = self.conv_struct(kind, weights, at, common, sum_at, groups)
        other = _AT(added[1].address if added else None)
        arguments = [ctypes.byref(struct), _AT(x.address), other, _AT(result.address)]
        if kind != "sparse":
            scratch = np.full(self.scratch(kind, weights, at) // 4 + 1, 0x5A5A5A5A, np.int32)
            arguments.append(_at(scratch))
        getattr(self.library, f"ek_conv_{kind.rstrip('48')}")(*arguments)
        if kind != "sparse":
            assert scratch[-1] == 0x5A5A5A5A, "more scratch than was promised"
        return result

    def scratch(self, kind: str, weights: Array, at: Array) -> int:
        """Return the bytes of scratch that a kernel may use, a multiple of 4."""
        if kind.startswith("stream"):
            return pack.stream_scratch(weights)
        packed: Any = pack.full(weights, at) if kind == "full" else pack.dense(weights, at)
        return int(packed.scratch)

    def conv_struct(
        self, kind: str, weights: Array, at: Array, common: Any, sum_at: Any, groups: int
    ) -> ctypes.Structure:
        if kind == "sparse":
            packed = pack.sparse(weights, at, near(_arrays_of(common[1], len(weights)), weights))
            arrays = (packed.filters, packed.quads, packed.pairs)
            return CSparse(*common, *map(self.keep, arrays), sum_at)
        if kind == "dense":
            full = pack.dense(weights, at)
            return CDense(*common, full.taps, self.keep(full.at), self.keep(full.weights), sum_at)
        if kind == "full":
            every = pack.full(weights, at)
            places, values = self.keep(every.at), self.keep(every.weights)
            return CDense(*common, every.taps, places, values, sum_at)
        bits = int(kind[-1])
        plane = int(at[1, 0, 0] - at[0, 0, 0]) if len(at) > 1 else 0
        inner, outer = weights.shape[1], len(weights) // groups
        return CStream(
            *common, plane, at[0].size, self.keep(at[0]), inner, outer, bits,
            self.keep(pack.stream(weights, bits)), sum_at,
        )  # fmt: skip

    def linear(self, x: TensorBuffer, weights: Array, requant: RequantArguments) -> TensorBuffer:
        out = vector(len(weights))
        struct = CLinear(
            *weights.shape[::-1],
            self.requant(requant, weights, x.planes.zero),
            self.keep(weights),
        )
        self.library.ek_linear(ctypes.byref(struct), _AT(x.address), _AT(out.address))
        return out

    def add(
        self, how: SumArguments, a: TensorBuffer, b: TensorBuffer, out: TensorBuffer
    ) -> TensorBuffer:
        addresses = [_AT(tensor.address) for tensor in (a, b, out)]
        self.library.ek_add(_AT(self.sum_struct(how)), self._planes(out.planes), *addresses)
        return out

    def look_up(self, table: Bytes, x: TensorBuffer, out: TensorBuffer) -> TensorBuffer:
        struct = CTable(_at(table))
        addresses = _AT(x.address), _AT(out.address)
        self.library.ek_look_up(ctypes.byref(struct), self._planes(out.planes), *addresses)
        return out

    def pair(
        self, function: str, tensors: Sequence[TensorBuffer], out: Planes, how: Sequence[int]
    ) -> TensorBuffer:
        """Call `ek_mul` or `ek_sum_of`; a tensor of size 1 along an axis is repeated there."""
        whole = (out.channels, out.height, out.width)
        steps = []
        for p in (tensor.planes for tensor in tensors):
            each = zip((p.channels, p.height, p.width), whole, (p.plane, p.row, 1), strict=True)
            steps.append(CSteps(*(0 if size == 1 < most else step for size, most, step in each)))
        zeros = [tensor.planes.zero for tensor in tensors]
        struct = CPair(planes_struct(out), *steps, *zeros, *how, out.zero, 0, 255, None)
        result = TensorBuffer(out)
        addresses = [_AT(tensor.address) for tensor in (*tensors, result)]
        getattr(self.library, function)(ctypes.byref(struct), *addresses)
        return result

    def mean(self, x: TensorBuffer, requant: RequantArguments) -> TensorBuffer:
        out = vector(x.planes.channels)
        weights = np.ones((1, x.planes.height * x.planes.width), np.int8)
        struct = self.requant(requant, weights, x.planes.zero)
        self.library.ek_mean(
            ctypes.byref(struct), self._planes(x.planes), _AT(x.address), _AT(out.address)
        )
        return out

    def norm(self, kind: str, how: NormArguments, x: TensorBuffer, out: Planes) -> TensorBuffer:
        """Normalise by the kernel `kind`: "group" or "channel", whose first field is a flag."""
        result = TensorBuffer(out)
        arrays = self.keep(how.factor.astype(np.int32)), self.keep(how.offset.astype(np.int64))
        limits = (limit + 128 for limit in (how.zero, how.low, how.high))
        struct = CGroupNorm(how.groups, *arrays, how.eps, how.shift, *limits)
        planes = self._planes(x.planes), self._planes(out)
        getattr(self.library, f"ek_{kind}_norm")(
            ctypes.byref(struct), *planes, _AT(x.address), _AT(result.address)
        )
        return result

    def pool(self, kind: str, x: TensorBuffer, window: Window, out: Planes) -> TensorBuffer:
        """Pool by the kernel `kind`: "avg" or "max"."""
        result = TensorBuffer(out)
        top, _, left, _ = window.padding
        struct = CWindow(*window.kernel, *window.stride, *window.dilation, top, left)
        planes = self._planes(x.planes), self._planes(out)
        getattr(self.library, f"ek_{kind}_pool")(
            ctypes.byref(struct), *planes, _AT(x.address), _AT(result.address)
        )
        return result

    def take(self, x: TensorBuffer, places: Sequence[Array], out: Planes) -> TensorBuffer:
        """Take what is at other rows, columns and channels."""
        result = TensorBuffer(out)
        is_run = bool((np.diff(places[1]) == 1).all())
        struct = CPlaces(*(self.keep(each.astype(np.uint16)) for each in places), is_run)
        planes = self._planes(x.planes), self._planes(out)
        self.library.ek_take(ctypes.byref(struct), *planes, _AT(x.address), _AT(result.address))
        return result

    def softmax(
        self, kind: str, x: TensorBuffer, entries: Array, step: int, log_one: int, out: Planes
    ) -> TensorBuffer:
        """Call the kernel `kind`: "softmax" or "log_softmax"."""
        result = TensorBuffer(out)
        struct = CPowers(self.keep(entries.astype(np.uint32)), step, log_one)
        planes = self._planes(x.planes), self._planes(out)
        getattr(self.library, f"ek_{kind}")(
            ctypes.byref(struct), *planes, _AT(x.address), _AT(result.address)
        )
        return result

    def pad(self, x: TensorBuffer, out: Planes, top: int, left: int) -> TensorBuffer:
        result = TensorBuffer(out)
        planes = self._planes(x.planes), self._planes(out)
        self.library.ek_pad(*planes, top, left, _AT(x.address), _AT(result.address))
        return result

    def flatten(self, x: TensorBuffer, kind: str = "flatten") -> TensorBuffer:
        """Make a vector by the kernel `kind`: "flatten" or "interleave"."""
        out = vector(x.planes.channels * x.planes.height * x.planes.width)
        kernel = getattr(self.library, f"ek_{kind}")
        kernel(self._planes(x.planes), _AT(x.address), _AT(out.address))
        return out

    # Structs

    def requant(self, requant: RequantArguments, weights: Array, zero: int) -> CRequant:
        bias = pack.folded_bias(requant.bias, weights, zero)
        limits = (limit + 128 for limit in (requant.zero, requant.low, requant.high))
        arrays: tuple[Array, ...] = (
            bias,
            requant.multiplier.astype(np.int32),
            requant.shift.astype(np.uint8),
        )
        return CRequant(*map(self.keep, arrays), *limits)

    def sum_struct(self, how: SumArguments) -> int:
        zeros = how.zeros[0] + 128, how.zeros[1] + 128
        offset = pack.sum_offset(how.scales, zeros, how.shift)
        limits = (limit + 128 for limit in (how.zero, how.low, how.high))
        struct = CSum(*how.scales, offset, how.shift, *limits)
        return self.keep_struct(struct)

    def _planes(self, planes: Planes) -> Any:
        return ctypes.byref(planes_struct(planes))

    def keep_struct(self, struct: ctypes.Structure) -> int:
        self._kept.append(struct)
        return ctypes.addressof(struct)

    def keep(self, array: Array) -> int:
        array = np.ascontiguousarray(array)
        self._kept.append(array)
        return int(array.ctypes.data)


def planes_struct(p: Planes) -> CPlanes:
    return CPlanes(p.channels, p.height, p.width, p.row, p.plane, p.lead, p.zero)


def _arrays_of(requant: CRequant, count: int) -> Factors:
    """Return the arrays that a requantisation points to, of so many channels."""
    bias, multiplier, shift = (
        np.ctypeslib.as_array((kind * count).from_address(address))
        for kind, address in (
            (_INT, requant.bias),
            (_INT, requant.multiplier),
            (_BYTE, requant.shift),
        )
    )
    return Factors(bias, multiplier, shift, requant.zero, requant.low, requant.high)


def _at(array: Array) -> ctypes.c_void_p:
    return _AT(array.ctypes.data)


def flags_of(variant: str) -> Sequence[str]:
    """Return the compiler flags of a variant such as "avx2-O3"."""
    simd, level = variant.split("-")
    return [*X86[simd], f"-{level}"]
