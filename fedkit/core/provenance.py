"""Where a figure comes from: the command, the commit and the processor that made it."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

_LIMITS = ("ONEDNN_MAX_CPU_ISA", "FEDKIT_SIMD")
"""Variables that decide which instructions torch's products and our kernels may use."""

_EXTENSIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_CPUINFO = Path("/proc/cpuinfo")


def made_by() -> dict[str, str]:
    """Return the command line of this process, the commit of the code and the processor.

    The command names variables that limit instruction sets, where they are set. The commit is ""
    outside git.
    """
    limits = [f"{name}={os.environ[name]}" for name in _LIMITS if os.environ.get(name)]
    program = Path(sys.argv[0]).name.replace("__main__.py", "fedkit")
    command = shlex.join([*limits, program, *sys.argv[1:]])
    return {"command": command, "commit": _commit(), "processor": processor()}


def processor() -> str:
    """Return the processor's name and which of the instruction sets that matter here it has."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    fields = [line.partition(":") for line in reversed(lines)]
    found = {key.strip(): value.strip() for key, _, value in fields}
    flags = set(found.get("flags", "").split())
    extensions = [name for name in _EXTENSIONS if name in flags]
    name = found.get("model name", platform.machine())
    return f"{name} ({', '.join(extensions)})" if extensions else name


def _commit() -> str:
    """Return the commit, with `-dirty` where the code differs from it; "" outside git."""
    describe = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    here = Path(__file__).parent
    try:
        ended = subprocess.run(describe, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return ended.stdout.strip()
