"""A second emulator, of other authors, counts the same instructions (within 2 %)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from edge.artifact import Artifact
from edge.bench.build import compile_c
from edge.bench.emulate import emulate
from edge.bench.result import ReferenceVectors
from edge.bench.targets import TARGETS
from edge.define.interpret_int8 import evaluate_int8
from edge.export import int8_graph, save_c99
from tests.edge.models import pruned
from tests.edge.targets.c99.library import need_emulator, need_gcc

HERE = Path(__file__).parent
SHAPE = (16, 16, 16)


def counted(model: Artifact, example: bytes, folder: Path) -> tuple[int, bytes]:
    """Return what one inference takes under QEMU: two less one; and its output."""
    target = TARGETS["cortex-a76"]
    sources = [str(model.path / name) for name in model.files if name.endswith(".c")]
    sources = [each for each in sources if not each.endswith("main.c")]
    program, plugin = folder / "program", folder / "count.so"
    machine = ("-target", "aarch64-linux-musl", f"-mcpu={target.compiler}", target.level)
    flags = ("-std=c99", "-fno-sanitize=all", "-fomit-frame-pointer", "-static", "-o", str(program))
    compile_c(*machine, f"-I{model.path}", *sources, str(HERE / "repeat.c"), *flags)
    shared = ("-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(plugin))
    subprocess.run(["gcc", *shared, str(HERE / "count.c")], check=True)

    def run(times: int) -> tuple[int, bytes]:
        command = ["qemu-aarch64", "-cpu", "max", "-plugin", str(plugin)]
        ended = subprocess.run(
            [*command, str(program), str(times)], input=example, capture_output=True, check=True
        )
        found = re.search(rb"instructions (\d+)", ended.stderr)
        assert found is not None, ended.stderr
        return int(found[1]), ended.stdout

    (once, output), (twice, _) = run(1), run(2)
    return twice - once, output


@pytest.mark.slow
@pytest.mark.parametrize("density", [1.0, 0.05])
def test_qemu_counts_as_unicorn_does(density: float, tmp_path: Path) -> None:
    """A dense and a sparse convolution for Cortex-A76."""
    need_emulator()
    need_gcc()
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed; run `apt-get install qemu-user`")
    body = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU())
    layer = pruned(body, density) if density < 1 else body
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    inputs = np.random.default_rng(0).standard_normal((8, *SHAPE)).astype(np.float32)
    graph = int8_graph(nn.Sequential(layer, head).eval(), inputs)
    model = save_c99(graph, inputs, tmp_path / "model", {})
    codes = np.random.default_rng(1).integers(-128, 128, (1, 16, 16, 16)).astype(np.int8)
    expected = evaluate_int8(graph, codes)
    ours = emulate(model, TARGETS["cortex-a76"], ReferenceVectors(codes, expected))["instructions"]
    theirs, output = counted(model, codes.tobytes(), tmp_path)
    assert output == expected.tobytes()
    print(f"density {density}: unicorn {ours}, QEMU {theirs}")
    assert abs(theirs - ours) <= 0.02 * ours
