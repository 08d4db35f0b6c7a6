"""Processors that an emulator stands in for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedkit.core.errors import ConfigError

Family = Literal["cortex-m", "cortex-a"]


@dataclass(frozen=True)
class Target:
    """A processor, how to compile for it, and what executes it here.

    Attributes:
        name: As users give it.
        family: Cortex-M runs from flash, without an operating system.
        compiler: What clang calls it; sets the instructions that it may use.
        emulator: unicorn's name for the processor that executes them.
        goal: Which form of C it is given; see `edge.targets.c99.calls.Goal`.
        level: Of optimisation.
        modelled: What of the processor the figures know of.
    """

    name: str
    family: Family
    compiler: str
    emulator: str
    goal: Literal["speed", "size"]
    level: str
    modelled: str


def _cortex_m(name: str, emulator: str, instructions: str, extension: str = "") -> Target:
    compiler = name.replace("-", "_") + extension
    modelled = f"{instructions}; no pipeline, no wait states of flash"
    return Target(name, "cortex-m", compiler, emulator, "size", "-O2", modelled)


def _cortex_a(name: str, emulator: str, instructions: str) -> Target:
    compiler = name.replace("-", "_")
    modelled = f"{instructions}; no pipeline, no caches"
    return Target(name, "cortex-a", compiler, emulator, "speed", "-O3", modelled)


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        # unicorn has no M0+; a Cortex-M0 knows the same instructions.
        _cortex_m("cortex-m0plus", "UC_CPU_ARM_CORTEX_M0", "instructions of Armv6-M"),
        _cortex_m("cortex-m4", "UC_CPU_ARM_CORTEX_M4", "instructions of Armv7E-M with DSP"),
        _cortex_m("cortex-m7", "UC_CPU_ARM_CORTEX_M7", "instructions of Armv7E-M with DSP"),
        # DSP is an option of the M33 that zig does not take for granted.
        _cortex_m(
            "cortex-m33", "UC_CPU_ARM_CORTEX_M33", "instructions of Armv8-M with DSP", "+dsp"
        ),
        _cortex_a("cortex-a53", "UC_CPU_ARM64_A53", "instructions of Armv8-A with NEON"),
        # unicorn has no A76; its largest model knows the dot products.
        _cortex_a("cortex-a76", "UC_CPU_ARM64_MAX", "instructions of Armv8.2-A with dot products"),
    )
}


def find_target(name: str) -> Target:
    """Return a target.

    Raises:
        ConfigError: Nothing has that name.
    """
    if name not in TARGETS:
        raise ConfigError(f"unknown target {name!r}; allowed: {', '.join(TARGETS)}")
    return TARGETS[name]
