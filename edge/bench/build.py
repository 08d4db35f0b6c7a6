"""Cross-compile C models by zig, which comes from PyPI, and read what they take."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.artifact import Artifact
from edge.bench.targets import Target
from edge.targets.c99.runner import name_of
from edge.targets.c_names import PROGRAMS, generic_names
from fedkit.core.errors import BenchError

_HERE = Path(__file__).parent
_HEADERS = {"cortex-m": "thumb-freestanding-eabi", "cortex-a": "aarch64-linux-musl"}
# Linked without a C library: zig gives memcpy and memset, and division where there is none.
_BARE = {"cortex-m": "thumb-freestanding-eabi", "cortex-a": "aarch64-freestanding"}
_FLAGS = (
    *("-std=c99", "-g0", "-fno-sanitize=all", "-fomit-frame-pointer"),
    *("-ffunction-sections", "-fdata-sections"),
)


@dataclass(frozen=True)
class Image:
    """A linked program.

    Attributes:
        segments: Address -> bytes to load there.
        reserved: Address and size of each piece of memory that it uses.
        symbols: Name -> address and size.
        sections: Name -> bytes, of those that a processor has in its memory.
        flags: It was compiled with.
    """

    segments: Mapping[int, bytes]
    reserved: tuple[tuple[int, int], ...]
    symbols: Mapping[str, tuple[int, int]]
    sections: Mapping[str, int]
    flags: str

    @property
    def flash_bytes(self) -> int:
        """Code, constants and the initial values of variables."""
        return sum(size for name, size in self.sections.items() if name != ".bss")

    @property
    def ram_bytes(self) -> int:
        """Variables: arena, input and output; not the stack."""
        return self.sections.get(".data", 0) + self.sections.get(".bss", 0)


def build(
    model: Artifact,
    target: Target,
    folder: Path,
    flags: Sequence[str] = (),
    firmware: str = "firmware.c",
) -> Image:
    """Compile and link a C model for a target, with what calls it.

    Args:
        model: Of target "c99".
        target: The processor.
        folder: Where to put what is made.
        flags: For the compiler, besides the target's own.
        firmware: What calls it, a source of ours.

    Raises:
        BenchError: zig is not installed, or it fails; or the model has several outputs.
    """
    check_one_output(model)
    sources = [model.path / name for name in model.files if name.endswith(".c")]
    sources = [path for path in sources if path.name not in PROGRAMS] + [_HERE / firmware]
    finding = (f"-I{model.path}", *generic_names(name_of(model)))
    return build_sources(sources, target, folder, finding, flags)


def build_sources(
    sources: Sequence[Path],
    target: Target,
    folder: Path,
    finding: Sequence[str],
    flags: Sequence[str] = (),
    hard_float: bool = False,
) -> Image:
    """Compile sources of C99 for a target, and link them without a C library.

    Args:
        sources: One of them has `int bench_run(void)`.
        target: The processor.
        folder: Where to put what is made.
        finding: Flags that say where headers lie, or what names mean.
        flags: For the compiler, besides the target's own.
        hard_float: Compute with floats by the instructions of a Cortex-M that has them.

    Raises:
        BenchError: zig is not installed, or it fails.
    """
    hard = "hf" if hard_float else ""
    mine = (f"-mcpu={target.compiler}", target.level, *flags)
    common = ("-target", _HEADERS[target.family] + hard, *_FLAGS, *mine, *finding)

    def compiled(source: Path) -> str:
        made = str(folder / f"{source.stem}.o")
        compile_c(*common, "-c", str(source), "-o", made)
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    script = ("-T", str(_HERE / "firmware.ld"), "-Wl,--entry=bench_run", "-Wl,--gc-sections")
    bare = ("-target", _BARE[target.family] + hard, f"-mcpu={target.compiler}", *script)
    compile_c(*bare, *objects, "-o", str(folder / "model.elf"))
    return read_image(folder / "model.elf", " ".join(mine))


def check_one_output(model: Artifact) -> None:
    """Raise a BenchError for what our programs that call a C model do not call."""
    if len(model.outputs) != 1:
        raise BenchError(
            f"{model.path} has {len(model.outputs)} outputs, and what is measured is a model with "
            "one; export the model with that one"
        )


def compile_c(*arguments: str) -> None:
    """Call zig's C compiler.

    Raises:
        BenchError: It is not installed, or fails; says what it said.
    """
    command = [sys.executable, "-m", "ziglang", "cc", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode != 0:
        if "No module named ziglang" in ended.stderr:
            raise BenchError("ziglang is not installed; run `pip install 'fedkit[bench]'`")
        said = ended.stderr.strip()
        raise BenchError(f"zig cannot compile {arguments[-3]}: {said[-2000:] or 'no reason given'}")


def compiler_version() -> str:
    """Return which zig compiles."""
    return f"ziglang {importlib.metadata.version('ziglang')}"


def read_image(path: Path, flags: str = "") -> Image:
    """Read an ELF file."""
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        elf = ELFFile(file)
        loaded = [each for each in elf.iter_segments("PT_LOAD") if each["p_memsz"]]
        table: Any = elf.get_section_by_name(".symtab")
        sections = [each for each in elf.iter_sections() if each["sh_flags"] & 2]  # SHF_ALLOC
        return Image(
            {each["p_vaddr"]: each.data() for each in loaded},
            tuple((each["p_vaddr"], each["p_memsz"]) for each in loaded),
            {each.name: (each["st_value"], each["st_size"]) for each in table.iter_symbols()},
            {each.name: each["sh_size"] for each in sections if each["sh_size"]},
            flags,
        )
