"""The command, as people type it, in the process of a test."""

from __future__ import annotations

import sys

import pytest

from fedkit.cli import main


def fedkit(arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["fedkit", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)
