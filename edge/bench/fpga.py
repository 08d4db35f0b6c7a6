"""What Verilog costs on a chip: synthesised by yosys, and placed and routed by nextpnr.

Figures of ECP5 and iCE40 are of a routed design where `Figures.fmax_mhz` is given; those of
Xilinx 7, for which there is no free router by pip, are yosys' alone. All are estimates of open
tools: a vendor's tools find others.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge import artifact
from edge.targets.fpga import yosys
from fedkit.core.errors import ExportError

_SEED = 1
_GOAL_MHZ = 150
_HDL = Path(yosys.__file__).with_name("hdl")


@dataclass(frozen=True)
class Figures:
    """What a design takes.

    Attributes:
        luts: Of 4 inputs, or 6 on Xilinx 7; those of carry chains count on ECP5 and iCE40.
        ffs: Flip-flops.
        dsp: Multiplier blocks.
        bram: Memory blocks, of 18 kbit (ECP5), 4 kbit (iCE40), 18 or 36 kbit (Xilinx 7).
        fmax_mhz: Clock that the routed design allows; None if it was not routed.
    """

    luts: int
    ffs: int
    dsp: int
    bram: int
    fmax_mhz: float | None = None


@dataclass(frozen=True)
class _Device:
    """How to synthesise for a family, and the names of its cells in reports.

    Attributes:
        synthesis: Command of yosys. Without wide multiplexers, which trade LUTs for speed.
        without_dsp: Option of it.
        router: Tool and arguments; none if there is no router.
        cells: What to count: LUTs, flip-flops, multipliers, memories, each a pattern.
        routed: Names of the same in nextpnr's report.
    """

    synthesis: str
    with_dsp: str
    without_dsp: str
    cells: tuple[str, str, str, str]
    router: tuple[str, ...] = ()
    routed: tuple[str, str, str, str] = ("", "", "", "")


DEVICES: Mapping[str, _Device] = {
    "ecp5": _Device(
        "synth_ecp5 -abc9 -nowidelut",
        "",
        "-nodsp",
        ("LUT4", "TRELLIS_FF", "MULT18X18D", "DP16KD"),
        (
            *("nextpnr-ecp5", "--25k", "--package", "CABGA381", "--speed", "6"),
            "--out-of-context",
        ),
        ("TRELLIS_COMB", "TRELLIS_FF", "MULT18X18D", "DP16KD"),
    ),
    "ice40": _Device(
        "synth_ice40 -abc9 -device hx",
        "",
        "",
        ("SB_LUT4", "SB_DFF.*", "SB_MAC16", "SB_RAM40_4K.*"),
        ("nextpnr-ice40", "--hx8k", "--package", "ct256", "--pcf-allow-unconstrained"),
        ("ICESTORM_LC", "", "ICESTORM_DSP", "ICESTORM_RAM"),
    ),
    "xilinx7": _Device(
        "synth_xilinx -family xc7 -abc9 -noiopad -noclkbuf -nowidelut",
        "",
        "-nodsp",
        ("LUT[1-6]", "FD.E", "DSP48E1", "RAMB(18|36)E1"),
    ),
}
"""LFE5U-25F, speed 6; iCE40 HX8K; any of Xilinx 7."""


def synthesise_block(
    module: str,
    device: str,
    parameters: Mapping[str, int] | None = None,
    route: bool = True,
) -> Figures:
    """Return what one of the modules in edge/targets/fpga/hdl takes, without multiplier blocks.

    Args:
        module: Its name.
        device: One of `DEVICES`.
        parameters: Of the module.
        route: Whether to place and route, where there is a router.

    Raises:
        ExportError: A tool is missing or fails.
    """
    sources = sorted(path.name for path in _HDL.glob("*.v") if path.stem != "testbench")
    settings = "".join(f" -chparam {key} {value}" for key, value in (parameters or {}).items())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source in sources:
            shutil.copy(_HDL / source, folder)
        return _synthesise(folder, sources, module, settings, device, False, route)


def synthesise_model(
    path: Path, device: str = "ecp5", dsp: bool = True, route: bool = True
) -> Figures:
    """Return what an exported model takes.

    Args:
        path: The folder that `edge.export.save_fpga` made.
        device: One of `DEVICES`.
        dsp: Whether multipliers may be blocks.
        route: As for `synthesise_block`.

    Raises:
        ExportError: The artifact is damaged or of another target, or a tool is missing or fails.
    """
    found = artifact.load(path)
    if found.target != "fpga":
        raise ExportError(f"{path} is made for {found.target!r}, not for an FPGA; export it anew")
    sources = [name for name in found.files if name.endswith(".v") and name != "testbench.v"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifact.unpack(found, folder)
        return _synthesise(folder, sources, "model", "", device, dsp, route)


def _synthesise(
    folder: Path,
    sources: Sequence[str],
    top: str,
    settings: str,
    device: str,
    dsp: bool,
    route: bool,
) -> Figures:
    family = DEVICES[device]
    option = family.with_dsp if dsp else family.without_dsp
    script = (
        f"read_verilog -defer {' '.join(sources)}; hierarchy -check -top {top}{settings}; "
        f"{family.synthesis} {option} -top {top}; write_json design.json; "
        "tee -o stat.json stat -json"
    )
    yosys.call("yosys", ["-q", "-p", script], folder)
    synthesised = _counted(json.loads((folder / "stat.json").read_text()), family)
    # Without a route to make, iCE40's pins would only be in the way.
    packs = family.router and (route or "--out-of-context" in family.router)
    return _packed(folder, family, synthesised, route) if packs else synthesised


def _counted(stat: Mapping[str, object], family: _Device) -> Figures:
    cells: Mapping[str, int] = stat["design"]["num_cells_by_type"]  # type: ignore[index]
    luts, ffs, dsp, bram = (
        sum(count for name, count in cells.items() if re.fullmatch(pattern, name))
        for pattern in family.cells
    )
    return Figures(luts, ffs, dsp, bram)


def _packed(folder: Path, family: _Device, synthesised: Figures, route: bool) -> Figures:
    """Return what nextpnr makes of a design: with its carry chains and, if routed, its clock."""
    tool, *arguments = family.router
    goal = ("--freq", str(_GOAL_MHZ), "--timing-allow-fail", "--seed", str(_SEED), "--quiet")
    files = ("--json", "design.json", "--report", "report.json")
    yosys.call(tool, [*arguments, *goal, *files, *(() if route else ("--no-route",))], folder)
    report = json.loads((folder / "report.json").read_text())
    used = {name: figures["used"] for name, figures in report["utilization"].items()}
    luts, ffs, dsp, bram = (used.get(name, 0) for name in family.routed)
    clocks = [clock["achieved"] for clock in report["fmax"].values()] if route else []
    fmax = round(min(clocks), 1) if clocks else None
    return Figures(luts, ffs or synthesised.ffs, dsp, bram, fmax)
