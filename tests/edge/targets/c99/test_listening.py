"""The C of the front end gives the integers of its definition, whatever compiles and feeds it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.artifact import Port
from edge.bench.build import compile_c
from edge.targets.c99 import literals
from edge.targets.c99.listening import FRONT_END
from fedkit.preprocess.audio import Audio
from fedkit.preprocess.log_mel import LogMel
from tests.edge.targets.c99.library import WARNINGS, need_emulator, need_gcc
from tests.preprocess.sounds import FRONT_ENDS, Sound, sounds
from tests.sets import slow_but

PROGRAM = Path(__file__).with_name("listen.c")
PORT = Port("input", "int8", (1, 2, 3, 1), 0.023, -5)
SANITIZED = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

NATIVE = {
    "gcc -O0": ("gcc", "-O0"),
    "gcc -O3": ("gcc", "-O3", "-march=native"),
    "clang -O2": ("clang", "-O2"),
    "sanitized": ("gcc", *SANITIZED),
}
EMULATED = {
    "arm": ("qemu-arm", "arm-linux-musleabihf"),
    "aarch64": ("qemu-aarch64", "aarch64-linux-musl"),
}


def sources(front_end: LogMel, folder: Path) -> list[str]:
    """Write the sources of a front end; return those that are compiled."""
    made = FRONT_END.texts(Audio(front_end, 2, ("a", "b")), PORT, 2, "model")
    for name, text in made.items():
        (folder / name).write_text(text)
    return [str(folder / name) for name in FRONT_END.sources] + [str(PROGRAM), f"-I{folder}"]


def heard(command: Sequence[str], sound: Sound, block: int) -> NDArray[np.int8]:
    ended = subprocess.run(
        [*command, str(block)], input=sound.tobytes(), capture_output=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr.decode()
    return np.frombuffer(ended.stdout, np.int8)


def assert_is_defined(command: Sequence[str], front_end: LogMel) -> None:
    block = 1
    for kind, sound in sounds(front_end).items():
        levels = front_end.levels(sound)
        wanted = PORT.quantize(levels.astype(np.float32) / np.float32(32))
        np.testing.assert_array_equal(heard(command, sound, block), wanted.ravel(), kind)
        block = 3 * block % 1009


@pytest.mark.parametrize("name", slow_but(["default"], FRONT_ENDS))
@pytest.mark.parametrize("compiler", slow_but(["gcc -O0"], NATIVE))
def test_c_gives_the_integers_of_the_definition(compiler: str, name: str, tmp_path: Path) -> None:
    command, *flags = NATIVE[compiler]
    if shutil.which(command) is None:
        pytest.skip(f"there is no {command}")
    program = tmp_path / "listen"
    options = ["-std=c99", *WARNINGS, *flags, *sources(FRONT_ENDS[name], tmp_path)]
    subprocess.run([command, *options, "-o", str(program)], check=True)
    assert_is_defined([str(program)], FRONT_ENDS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", FRONT_ENDS)
@pytest.mark.parametrize("processor", EMULATED)
def test_an_emulated_arm_gives_them_too(processor: str, name: str, tmp_path: Path) -> None:
    emulator, machine = EMULATED[processor]
    if shutil.which(emulator) is None:
        pytest.skip(f"{emulator} is not installed; run `apt-get install qemu-user`")
    need_emulator()
    program = tmp_path / "listen"
    flags = ("-target", machine, "-std=c99", "-O2", "-static", "-fno-sanitize=all")
    compile_c(*flags, *sources(FRONT_ENDS[name], tmp_path), "-o", str(program))
    assert_is_defined([emulator, str(program)], FRONT_ENDS[name])


def test_names_of_classes_are_strings_of_c(tmp_path: Path) -> None:
    need_gcc()
    names = ('a"b\\', "??/", "ä µ", "%d", "yes")
    text = ",".join(literals.literal(name) for name in names)
    program = f"#include <stdio.h>\nint main(void) {{ const char *n[] = {{{text}}};\n"
    program += "for (int i = 0; i < 5; i++) puts(n[i]);\nreturn 0; }\n"
    (tmp_path / "names.c").write_text(program)
    subprocess.run(
        ["gcc", "-std=c99", *WARNINGS, "names.c", "-o", "names"], cwd=tmp_path, check=True
    )
    told = subprocess.run([tmp_path / "names"], capture_output=True, check=True).stdout
    assert told.decode().splitlines() == list(names)
