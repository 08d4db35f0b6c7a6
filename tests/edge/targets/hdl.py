"""Simulate one Verilog module cycle by cycle: from what its ports are given, what they hold."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge.targets.fpga import yosys
from edge.targets.fpga.runner import _compiler

HDL = Path(yosys.__file__).with_name("hdl")

UInt64s = NDArray[np.uint64]


def simulate(
    module: str,
    inputs: Mapping[str, ArrayLike],
    outputs: Sequence[str],
    parameters: Mapping[str, int] | None = None,
) -> dict[str, UInt64s]:
    """Run a module that has a port `clock`.

    Args:
        module: Its name, and that of its file.
        inputs: Port -> integers [cycles]; their low bits count, up to 64.
        outputs: Ports to look at.
        parameters: Of the module.

    Returns:
        Port -> uint64 [cycles + 1]: before each rising edge, and after the last.
    """
    given = [np.asarray(values).astype(np.int64).view(np.uint64) for values in inputs.values()]
    cycles = len(given[0])
    program = _program(
        module, tuple(inputs), tuple(outputs), cycles, tuple((parameters or {}).items())
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        main = folder / "main"
        main.write_bytes(program)
        main.chmod(0o755)
        np.stack(given, axis=1).tofile(folder / "in")
        subprocess.run([main], cwd=folder, check=True)
        found = np.fromfile(folder / "out", np.uint64).reshape(cycles + 1, len(outputs))
    return dict(zip(outputs, found.T, strict=True))


@functools.lru_cache(maxsize=1)
def _program(
    module: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    cycles: int,
    parameters: tuple[tuple[str, int], ...],
) -> bytes:
    """Return a program that simulates a module; those who use it again and again ask once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = "".join(f" -chparam {key} {value}" for key, value in parameters)
        # Copied, as YoWASP puts a folder of its own over /tmp, where a checkout may lie.
        sources = sorted(path for path in HDL.glob("*.v") if path.stem != "testbench")
        for source in sources:
            shutil.copy(source, folder)
        names = " ".join(path.name for path in sources)
        script = (
            f"read_verilog -defer {names}; hierarchy -check -top {module}{settings}; "
            "rename -top design; write_cxxrtl model.cc"
        )
        yosys.call("yosys", ["-q", "-p", script], folder)
        (folder / "main.cc").write_text(_main(inputs, outputs, cycles))
        options = ["-std=c++14", "-O0", "-DCXXRTL_NDEBUG", f"-I{yosys.simulator_headers()}"]
        subprocess.run([*_compiler(), *options, "main.cc", "-o", "main"], cwd=folder, check=True)
        return (folder / "main").read_bytes()


def signed(values: UInt64s, bits: int) -> NDArray[np.int64]:
    """Return numbers of two's complement."""
    return np.asarray((values.astype(np.int64) << (64 - bits)) >> (64 - bits))


def packed(values: ArrayLike, bits: int) -> NDArray[np.int64]:
    """Join small integers [cycles, lanes] to one per cycle, lane 0 in the low bits."""
    lanes = np.asarray(values).astype(np.int64)
    total = np.zeros(len(lanes), np.uint64)
    for number, lane in enumerate(lanes.T):
        low = lane.view(np.int64) & (2**bits - 1)
        total |= low.astype(np.uint64) << np.uint64(bits * number)
    return total.view(np.int64)


def _main(inputs: Sequence[str], outputs: Sequence[str], cycles: int) -> str:
    names = [f"p_{name.replace('_', '__')}" for name in (*inputs, *outputs)]
    sets = "\n".join(
        f"        top.{name}.set<uint64_t>(in[n * {len(inputs)} + {number}]);"
        for number, name in enumerate(names[: len(inputs)])
    )
    gets = "\n".join(
        f"    out[n * {len(outputs)} + {number}] = top.{name}.get<uint64_t>();"
        for number, name in enumerate(names[len(inputs) :])
    )
    return f"""\
#include <cstdint>
#include <fstream>
#include <vector>
#include "model.cc"
static cxxrtl_design::p_design top;
static std::vector<uint64_t> in({cycles * len(inputs)} + 1), out({(cycles + 1) * len(outputs)});
static void look(int n) {{
{gets}
}}
int main() {{
    std::ifstream("in", std::ios::binary).read((char *)in.data(), {8 * cycles * len(inputs)});
    for (int n = 0; n < {cycles}; n++) {{
        top.p_clock.set<bool>(false);
{sets}
        top.step();
        look(n);
        top.p_clock.set<bool>(true);
        top.step();
    }}
    top.p_clock.set<bool>(false);
    top.step();
    look({cycles});
    std::ofstream("out", std::ios::binary).write((char *)out.data(), 8 * out.size());
}}
"""
