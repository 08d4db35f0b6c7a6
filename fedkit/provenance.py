"""Where a figure comes from: the command and the commit that made it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path


def made_by() -> dict[str, str]:
    """Return the command line of this process and the commit of the code, if it is in git."""
    arguments = [Path(sys.argv[0]).name.replace("__main__.py", "fedkit"), *sys.argv[1:]]
    return {"command": shlex.join(arguments), "commit": _commit()}


def _commit() -> str:
    """Return the commit, with `-dirty` where the code differs from it; "" outside git."""
    describe = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    here = Path(__file__).parent
    try:
        ended = subprocess.run(describe, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return ended.stdout.strip()
