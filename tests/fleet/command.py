"""The command line, in this process."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from unittest import mock

from fedkit.cli import main


def command(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command in this process, as the program does; return its exit code and its words."""
    out, said, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(said),
        mock.patch.object(sys, "argv", ["fedkit", *map(str, arguments)]),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), said.getvalue()
