"""Run a C model on an emulated processor, and count.

Counted are instructions executed, basic block by basic block, and the stack that was written to.
What an instruction costs on silicon, in cycles, time or energy, an emulator does not know.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.artifact import Artifact
from edge.bench.build import Image, build, compiler_version
from edge.bench.result import LayerCost, Quantity, ReferenceVectors, Result, bytes_of
from edge.bench.targets import Target
from fedkit.core.errors import BenchError

_PAGE = 4096
_STACK, _STACK_BYTES = 0x3000_0000, 1 << 16  # RAM of a Cortex-M ends at 0x3FFF_FFFF
_PAINT = 0xA5
_END = 0x3800_0000
_NEON_ON = 3 << 20

_Blocks = Counter[tuple[int, int]]
"""Address and bytes of a block -> how often it began."""


@dataclass(frozen=True)
class EmulatedRun:
    """One inference.

    Attributes:
        output: int8 [outputs].
        calls: Instructions of each call that `model_invoke` makes, in order.
        own: Instructions outside of these.
        stack_bytes: The most that was in use.
    """

    output: NDArray[np.int8]
    calls: tuple[int, ...]
    own: int
    stack_bytes: int


def emulate(
    model: Artifact, target: Target, examples: ReferenceVectors, flags: Sequence[str] = ()
) -> Result:
    """Compile a model for a target, check what it computes, and count what one inference takes.

    Args:
        model: Of target "c99", saved with its calls.
        target: The processor.
        examples: All are run and compared; counts are of the first.
        flags: For the compiler, besides the target's own.

    Returns:
        instructions, flash_bytes, ram_bytes (without the stack), stack_bytes; instructions of every
        layer; the same whenever it is asked for.

    Raises:
        BenchError: A package is missing, the model does not compile or crashes, or an integer
            differs.
    """
    _check_model(model)
    with tempfile.TemporaryDirectory(prefix="fedkit-bench-") as folder:
        image = build(model, target, Path(folder), flags)
    machine = Machine(image, target)
    runs = []
    for number, example in enumerate(examples.inputs):
        runs.append(machine.infer(example))
        examples.check(number, runs[-1].output, target.name)
    calls = model.details["calls"]
    if len(runs[0].calls) != len(calls):
        raise BenchError(
            f"{model.path} made {len(runs[0].calls)} calls of kernels, and its manifest says "
            f"{len(calls)}; export it again"
        )
    return Result(
        f"{model.path.name} {model.sha256[:12]}",
        target.name,
        "emulated",
        len(runs),
        _total(image, runs),
        tuple(
            LayerCost(function, source, {"instructions": Quantity(count, "instructions")})
            for (function, source), count in zip(calls, runs[0].calls, strict=True)
        ),
        _environment(image, target),
    )


def emulate_frame(
    model: Artifact, target: Target, samples: NDArray[np.int16], expected: NDArray[np.int8]
) -> int:
    """Return the instructions with which a model of sound makes a frame of its input.

    Args:
        model: Of target "c99", with a front end, and called `NAME`.
        target: The processor.
        samples: int16 [window].
        expected: int8 [channels], the frame.

    Raises:
        BenchError: A package is missing, the model does not compile, or an integer differs.
    """
    with tempfile.TemporaryDirectory(prefix="fedkit-bench-") as folder:
        image = build(model, target, Path(folder), firmware="firmware_listen.c")
    found = Machine(image, target, "bench_run").infer(samples.view(np.int8))
    ReferenceVectors(samples[None].view(np.int8), expected[None]).check(
        0, found.output, target.name
    )
    return found.own + sum(found.calls)


def _check_model(model: Artifact) -> None:
    if model.target != "c99" or "calls" not in model.details:
        raise BenchError(
            f"{model.path} is made for {model.target!r}, or by an older version; this needs C: "
            "export it again with `--target c99`"
        )


def _total(image: Image, runs: Sequence[EmulatedRun]) -> dict[str, Quantity]:
    return {
        "instructions": Quantity(sum(runs[0].calls) + runs[0].own, "instructions"),
        "flash_bytes": Quantity(image.flash_bytes, "bytes"),
        "ram_bytes": Quantity(image.ram_bytes, "bytes"),
        "stack_bytes": Quantity(max(run.stack_bytes for run in runs), "bytes"),
    }


def _environment(image: Image, target: Target) -> dict[str, str]:
    return {
        "compiler": compiler_version(),
        "flags": image.flags,
        "emulator": f"unicorn {importlib.metadata.version('unicorn')}, {target.emulator}",
        "modelled": target.modelled,
        **{name: str(size) for name, size in image.sections.items()},
    }


class Machine:
    """An emulated processor with a model in its memory."""

    def __init__(self, image: Image, target: Target, function: str = "model_invoke") -> None:
        """Load an image, to tell apart the calls that a function of it makes.

        Raises:
            BenchError: unicorn is not installed.
        """
        self._image, self._target, self._function = image, target, function
        self._thumb = target.family == "cortex-m"
        self._core = _core(target)
        self._lengths: dict[tuple[int, int], int] = {}
        for start, size in _pages([*image.reserved, (_STACK, _STACK_BYTES)]):
            self._core.mem_map(start, size)
        for address, content in image.segments.items():
            self._core.mem_write(address, content)

    def infer(self, example: NDArray[np.int8]) -> EmulatedRun:
        """Run one inference.

        Raises:
            BenchError: The program crashes or refuses to run.
        """
        self._write("bench_in", bytes_of(example))
        self._core.mem_write(_STACK, bytes([_PAINT]) * _STACK_BYTES)
        own, calls = self._counted()
        output = np.frombuffer(self._read("bench_out"), np.int8)
        return EmulatedRun(
            output,
            tuple(self._instructions(blocks) for blocks in calls),
            self._instructions(own),
            self._stack_bytes(),
        )

    def _counted(self) -> tuple[_Blocks, list[_Blocks]]:
        """Run; return what the function executed itself, and what each of its calls did."""
        own: _Blocks = Counter()
        calls: list[_Blocks] = [Counter()]
        begin, size = self._image.symbols[self._function]
        begin &= ~1
        end = begin + size

        # A block of the function ends in a call; what comes outside of it next belongs to that.
        def count(core: Any, address: int, size: int, data: object) -> None:
            if begin <= address < end:
                own[address, size] += 1
                calls.append(Counter())
            else:
                calls[-1][address, size] += 1

        hook = self._core.hook_add(_unicorn().unicorn_const.UC_HOOK_BLOCK, count)
        try:
            self._start()
        finally:
            self._core.hook_del(hook)
        own += calls[0] + calls[-1]  # `bench_run` before and after
        return own, [blocks for blocks in calls[1:-1] if blocks]

    def _start(self) -> None:
        entry, result = self._image.symbols["bench_run"][0], self._register("R0", "W0")
        self._core.reg_write(self._register("SP", "SP"), _STACK + _STACK_BYTES)
        self._core.reg_write(self._register("LR", "LR"), _END | self._thumb)
        try:
            self._core.emu_start(entry | self._thumb, _END)
        except _unicorn().UcError as error:
            where = self._core.reg_read(self._register("PC", "PC"))
            raise BenchError(f"{self._target.name} crashed at {where:#x}: {error}") from error
        if self._core.reg_read(result) != 0:
            raise BenchError(f"{self._target.name}: model_invoke refused its arena")

    def _register(self, arm: str, arm64: str) -> int:
        if self._thumb:
            return int(getattr(import_module("unicorn.arm_const"), f"UC_ARM_REG_{arm}"))
        return int(getattr(import_module("unicorn.arm64_const"), f"UC_ARM64_REG_{arm64}"))

    def _instructions(self, blocks: Mapping[tuple[int, int], int]) -> int:
        return sum(times * self._length(block) for block, times in blocks.items())

    def _length(self, block: tuple[int, int]) -> int:
        """Return how many instructions a block has."""
        if block not in self._lengths:
            code = self._core.mem_read(*block)
            self._lengths[block] = thumb_length(code) if self._thumb else len(code) // 4
        return self._lengths[block]

    def _stack_bytes(self) -> int:
        stack = np.frombuffer(self._core.mem_read(_STACK, _STACK_BYTES), np.uint8)
        written = np.flatnonzero(stack != _PAINT)
        return _STACK_BYTES - int(written[0]) if len(written) else 0

    def _write(self, name: str, content: bytes) -> None:
        address, size = self._image.symbols[name]
        if len(content) != size:
            raise BenchError(f"an example has {len(content)} bytes, and the model takes {size}")
        self._core.mem_write(address, content)

    def _read(self, name: str) -> bytes:
        return bytes(self._core.mem_read(*self._image.symbols[name]))


def _unicorn() -> Any:
    """Import it; it has no types."""
    try:
        return import_module("unicorn")
    except ModuleNotFoundError as error:
        raise BenchError("unicorn is not installed; run `pip install 'fedkit[bench]'`") from error


def _core(target: Target) -> Any:
    unicorn = _unicorn()
    const = unicorn.unicorn_const
    if target.family == "cortex-m":
        core = unicorn.Uc(const.UC_ARCH_ARM, const.UC_MODE_THUMB | const.UC_MODE_MCLASS)
        core.ctl_set_cpu_model(getattr(import_module("unicorn.arm_const"), target.emulator))
        return core
    arm64 = import_module("unicorn.arm64_const")
    core = unicorn.Uc(const.UC_ARCH_ARM64, const.UC_MODE_ARM)
    core.ctl_set_cpu_model(getattr(arm64, target.emulator))
    core.reg_write(arm64.UC_ARM64_REG_CPACR_EL1, _NEON_ON)
    return core


def _pages(pieces: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return whole pages that hold all pieces of memory, none twice."""
    pages = {
        page
        for start, size in pieces
        for page in range(start // _PAGE, -(-(start + size) // _PAGE))
    }
    return [(page * _PAGE, _PAGE) for page in sorted(pages)]


def thumb_length(code: bytes) -> int:
    """Return how many Thumb instructions there are in a row.

    >>> thumb_length(bytes.fromhex("7047 4ff00100".replace(" ", "")))
    2

    Args:
        code: Halfwords; one that begins with 0b11101, 0b11110 or 0b11111 has another behind it.
    """
    count = at = 0
    while at < len(code):
        at += 4 if code[at + 1] >> 3 >= 0b11101 else 2
        count += 1
    return count
