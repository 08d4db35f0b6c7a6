"""What a figure says of where it comes from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedkit.core import provenance

CPUINFO = """processor\t: 0
model name\t: Some Processor @ 2.00GHz
flags\t\t: fpu avx2 avx512f amx_int8

processor\t: 1
model name\t: Some Processor @ 2.00GHz
flags\t\t: fpu avx2 avx512f amx_int8
"""


def test_the_command_names_what_limits_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/fedkit", "bench", "wire"])
    monkeypatch.delenv("FEDKIT_SIMD", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert provenance.made_by()["command"] == "fedkit bench wire"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert provenance.made_by()["command"] == "ONEDNN_MAX_CPU_ISA=AVX2 fedkit bench wire"


def test_the_processor_is_named_with_its_instruction_sets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(provenance, "_CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    assert provenance.processor() == "Some Processor @ 2.00GHz (avx2, avx512f, amx_int8)"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 108.00\n")
    assert provenance.processor()
    (tmp_path / "cpuinfo").unlink()
    assert provenance.processor()
