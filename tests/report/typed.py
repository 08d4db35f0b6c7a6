"""The command line as a person types it."""

from __future__ import annotations

import pytest

from fedkit.cli import main


def typed(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["fedkit", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)
