"""The aarch64 kernels of training, run by an emulated processor inside this process's memory.

The kernels are compiled for aarch64 and run by unicorn. Host memory is mapped into the emulator
at its own addresses, so that structs and arrays mean the same on both sides.
"""

from __future__ import annotations

import ctypes
import functools
import math
import struct
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile
from unicorn import arm64_const as arm64
from unicorn import unicorn_const as unicorn

from edge.bench.build import compile_c as build_c
from fedkit.engine.kernels import native

KERNELS = Path(native.__file__).parent
RUNTIME = Path(__file__).with_name("emulator_runtime.c")

# Far from what Linux gives to programs, their heaps and libraries.
_IMAGE = 0x2000_0000_0000
_STACK, _STACK_BYTES = 0x3000_0000_0000, 1 << 20
_RETURN = _STACK
_CHUNK = 1 << 20
_FLOATING_POINT_ON = 3 << 20
_INSTRUCTION = 4  # bytes

_RETURN_INT = ("int_lanes", "int_rows", "int_walk", "int_sgd_steps")

_FUNCTIONS: tuple[Callable[[float], float], ...] = (math.exp, math.erfc)
"""What emulator_runtime.c asks for with `svc 0`, `svc 1`, ..."""


def build(folder: Path, *options: str, sets: Sequence[str] = ("neon", "plain")) -> Path:
    """Compile the kernels for aarch64 into one image without a C library.

    Args:
        folder: Where to.
        options: For the compiler: its level, and the processor.
        sets: Of kernels, that the image holds.
    """
    flags = ["-std=c99", *options, "-ffp-contract=off", "-fno-math-errno", "-fno-sanitize=all"]
    flags.append("-DFEDKIT_NO_THREADS")
    objects = [folder / f"{name}.o" for name in (*sets, "walk")]
    for built in objects:
        compile_c(*flags, "-c", KERNELS / f"{built.stem}.c", "-o", built)
    return link(objects, folder / "kernels.aarch64")


def link(objects: Sequence[Path], image: Path) -> Path:
    """Link objects of aarch64 into an image for `Processor`."""
    runtime = image.with_name("runtime.o")
    compile_c("-O2", "-fno-builtin", "-c", RUNTIME, "-o", runtime)
    flags = ["-static", "-nostdlib", "-Wl,--no-gc-sections", f"-Wl,--image-base={_IMAGE:#x}"]
    compile_c(*flags, *objects, runtime, "-o", image)
    return image


def compile_c(*arguments: str | Path) -> None:
    """Compile for aarch64; raises as `edge.bench.build.compile_c`."""
    build_c("-target", "aarch64-linux-musl", *map(str, arguments))


class Processor:
    """One emulated core with an image in its memory; one call at a time."""

    def __init__(self, image: Path, model: int | None = None) -> None:
        """Load an image; `model` is one of unicorn's UC_CPU_ARM64_*, else it has no dotprod."""
        # Imported as a name of no type: unicorn's methods have none.
        self._core: Any = import_module("unicorn").Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        if model is not None:
            self._core.ctl_set_cpu_model(model)
        self._lock = threading.Lock()
        self._address = self._load(image)
        self._core.mem_map(_STACK, _STACK_BYTES)
        self._core.reg_write(arm64.UC_ARM64_REG_CPACR_EL1, _FLOATING_POINT_ON)
        self._core.hook_add(unicorn.UC_HOOK_MEM_UNMAPPED, self._map)
        self._core.hook_add(unicorn.UC_HOOK_INTR, self._serve)

    def _load(self, image: Path) -> dict[str, int]:
        """Copy the segments into memory and return the address of each symbol."""
        with image.open("rb") as file:
            elf = ELFFile(file)
            for segment in elf.iter_segments("PT_LOAD"):
                begin, end = segment["p_vaddr"], segment["p_vaddr"] + segment["p_memsz"]
                page, size = begin & -4096, -(-end // 4096) * 4096 - (begin & -4096)
                self._core.mem_map(page, size)
                self._core.mem_write(begin, segment.data())
            table: Any = elf.get_section_by_name(".symtab")
            return {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}

    def _map(
        self, core: Any, access: int, address: int, size: int, value: int, data: object
    ) -> bool:
        """Map the host's memory around an address at the same address."""
        for chunk in {address & -_CHUNK, (address + size - 1) & -_CHUNK}:
            if not any(begin <= chunk <= end for begin, end, _ in core.mem_regions()):
                readable = unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE
                core.mem_map_ptr(chunk, _CHUNK, readable, ctypes.c_void_p(chunk))
        return True

    def _serve(self, core: Any, number: int, data: object) -> None:
        """Compute d0 = function(d0) for an `svc`, whose instruction holds the function's number."""
        after = core.reg_read(arm64.UC_ARM64_REG_PC)
        (instruction,) = struct.unpack("<I", core.mem_read(after - 4, 4))
        function = _FUNCTIONS[instruction >> 5 & 0xFFFF]
        core.reg_write(arm64.UC_ARM64_REG_D0, _bits("d", function(self._d0())))

    def _d0(self) -> float:
        bits = self._core.reg_read(arm64.UC_ARM64_REG_D0)
        return float(struct.unpack("<d", struct.pack("<Q", bits))[0])

    def address(self, name: str) -> int:
        """Return where a function lies."""
        return self._address[name]

    def call(self, function: str, *arguments: Any) -> float:
        """Call a function with ctypes arguments, as its C declaration has them; return d0."""
        with self._lock:
            self._run(function, arguments)
            return self._d0()

    def call_int(self, function: str, *arguments: Any) -> int:
        """Call a function that returns an int."""
        with self._lock:
            self._run(function, arguments)
            return int(self._core.reg_read(arm64.UC_ARM64_REG_W0))

    def count(self, run: Callable[[], object]) -> int:
        """Return how many instructions are executed while `run` calls functions."""
        counted = 0

        def count(core: Any, address: int, size: int, data: object) -> None:
            nonlocal counted
            counted += size

        hook = self._core.hook_add(unicorn.UC_HOOK_BLOCK, count)
        try:
            run()
        finally:
            self._core.hook_del(hook)
        return counted // _INSTRUCTION

    def _run(self, function: str, arguments: Sequence[Any]) -> None:
        integers, floats, stack = 0, 0, _STACK + _STACK_BYTES
        beyond: list[int] = []
        for argument in arguments:
            if isinstance(argument, ctypes.c_float):
                assert floats < 8, "the rest would go on the stack"
                register = arm64.UC_ARM64_REG_S0 + floats
                self._core.reg_write(register, _bits("f", argument.value))
                floats += 1
            elif integers < 8:
                self._core.reg_write(arm64.UC_ARM64_REG_X0 + integers, _integer(argument))
                integers += 1
            else:
                beyond.append(_integer(argument))
        # Eight bytes each, whatever the type; the stack pointer stays a multiple of 16.
        stack -= -(-len(beyond) // 2) * 16
        self._core.mem_write(stack, struct.pack(f"<{len(beyond)}Q", *beyond))
        self._core.reg_write(arm64.UC_ARM64_REG_SP, stack)
        self._core.reg_write(arm64.UC_ARM64_REG_LR, _RETURN)
        self._core.emu_start(self._address[function], _RETURN)


def _bits(kind: str, value: float) -> int:
    return int.from_bytes(struct.pack(f"<{kind}", value), "little")


def _integer(argument: Any) -> int:
    """Return an int, a ctypes integer or pointer, None or what byref() refers to, as a register."""
    if hasattr(argument, "_obj"):
        return ctypes.addressof(argument._obj)
    value = argument if isinstance(argument, int | None) else argument.value
    return (value or 0) & 0xFFFF_FFFF_FFFF_FFFF


@functools.cache
def processor(*options: str) -> Processor:
    """Return the one that all callers with these options of the compiler share."""
    with tempfile.TemporaryDirectory() as folder:
        return Processor(build(Path(folder), *options))


class EmulatedKernels(native.Kernels):
    """Stands in for compiled kernels; those of aarch64 are `neon` and `plain`, of 8 lanes."""

    def __init__(self, processor: Processor, simd: str) -> None:
        self.simd, self.lanes, self._processor = simd, 8, processor
        self.cross_entropy = self._find("cross_entropy")
        self.int_gemm_amx = self.int_pack_tiles = None

    def _find(self, name: str) -> native.Kernel:
        integer = name in _RETURN_INT
        whole = f"{name}_{self.simd}"
        found: Any = partial(self._processor.call_int if integer else self._processor.call, whole)
        found.__name__ = whole  # as that of a compiled one
        kernel: native.Kernel = found
        return kernel

    def step(self, kernel: native.Kernel) -> int:
        """See `Kernels.step`."""
        return self._processor.address(f"step_{kernel.__name__}")

    def begin_crew(self, threads: int) -> None:
        """See `Kernels.begin_crew`: one core has no threads."""

    def walk(
        self, steps: ctypes.Array[native.CStep], first: int, last: int, team: native.CTeam
    ) -> int:
        """See `Kernels.walk`."""
        table = ctypes.byref(steps), first, last, ctypes.byref(team)
        return self._processor.call_int("kernels_walk", *table)
