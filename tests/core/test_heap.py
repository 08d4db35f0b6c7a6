from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from fedkit.core import heap
from fedkit.core.heap import keep_small, return_free_blocks
from tests.imports import ROOT

_glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"),
    reason="another C library keeps its memory in its own ways",
)

PROGRAM = """
import sys
from fedkit.bench.process import memory
from fedkit.core.heap import keep_small

if sys.argv[1] == "small":
    keep_small()
del (raises := [bytearray(b"1") * (24 << 20)])[:]  # glibc: up to so many bytes from the heap now
before = memory("VmRSS")
large = bytearray(b"1") * (16 << 20)
behind = [bytearray(20 << 10) for _ in range(120)]
del large
print((memory("VmRSS") - before) >> 20)
"""


@_glibc
@pytest.mark.parametrize(("process", "left"), [("usual", 16), ("small", 0)])
def test_a_large_block_is_given_back_though_small_ones_lie_behind_it(
    process: str, left: int
) -> None:
    command = [sys.executable, "-c", PROGRAM, process]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert abs(int(ended.stdout) - left) <= 4


def test_a_c_library_that_has_no_such_choice_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str | None]()
    monkeypatch.setattr(heap, "_small", False)
    monkeypatch.setattr(ctypes, "CDLL", asked.append)
    return_free_blocks()
    assert asked == []  # in a process that need not be small nothing is asked for
    keep_small()
    return_free_blocks()
    assert asked == [None, None]


BETWEEN = """
from fedkit.bench.process import memory
from fedkit.core.heap import keep_small, return_free_blocks

keep_small()
blocks = [bytearray(20 << 10) for _ in range(1200)]
del blocks[:-1]  # the last one lies behind all others
before = memory("VmRSS")
return_free_blocks()
print((before - memory("VmRSS")) >> 20)
"""


@_glibc
def test_free_blocks_between_others_are_given_back() -> None:
    command = [sys.executable, "-c", BETWEEN]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 20 <= int(ended.stdout) <= 24
