"""What a folder of somebody else's holds reaches the terminal as text, and as nothing more."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedkit import cli
from fedkit.cli import look, tables
from fedkit.cli.fleet_status import ago, status_table
from fedkit.cli.terminal import Terminal
from fedkit.config import RunConfig
from fedkit.core.text import terminal_lines, terminal_text
from fedkit.server.status import FleetStatus
from tests.fleet.command import command

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08"
HOSTILE = f"{ESCAPES}[red]x[/red][link=http://evil]:smiley:[/nothing]\u202e"


def shown(renderable: Any, width: int = 80) -> str:
    out = io.StringIO()
    Terminal(file=out, width=width, force_terminal=True, color_system=None).print(renderable)
    return out.getvalue()


def assert_harmless(text: str) -> None:
    assert all(character.isprintable() or character == "\n" for character in text), ascii(text)


RUN: dict[str, Any] = {
    "run": HOSTILE,
    "task": HOSTILE,
    "devices": HOSTILE,
    "rounds": 3,
    "rounds_planned": HOSTILE,
    "density": 0.1,
    "bytes_down": 1e6,
    "bytes_up": 1e6,
    "bytes_dense_fedavg": 0,
    "bytes_dense_fedavg_measured": False,
    "seconds": 1.0,
    "finished": False,
    "test_examples": HOSTILE,
    "artifact": HOSTILE,
    "artifact_bytes": 10,
    "latency_median_us": 1.0,
    "latency_p95_us": 1.0,
    "runtime": HOSTILE,
}
LAYER = {"source": HOSTILE, "kind": HOSTILE, "shape": [1, 2], "density": 0.1, "weights": 0,
         "macs": 0, "macs_kept": 0, "kept": 0, "bytes": 0, "error": None}  # fmt: skip
TALLY = {"tensor": HOSTILE, "source": HOSTILE, "position": [0], "actual": 1, "expected": 2}
TABLES = {
    "run": lambda: tables.run_table(RUN),
    "artifact": lambda: tables.artifact_table(RUN),
    "rows": lambda: tables.rows_table({"benchmark": HOSTILE, "rows": [{HOSTILE: HOSTILE}]}),
    "inspect": lambda: look.inspect_table({"artifact": HOSTILE, "rows": [LAYER]}),
    "check": lambda: look.check_table(
        {"artifact": HOSTILE, "runtime": HOSTILE, "rounding": HOSTILE, "examples": 1,
         "integers": 1, "mismatches": 1, "largest_steps": 1, "same_class": 1.0, "first": TALLY,
         "layers": [HOSTILE], "guards": [{"source": HOSTILE}], "out_of_range": HOSTILE,
         "float_error": {"output": 0.1, "same_class": 1.0, "layers": {HOSTILE: 0.1}}}
    ),
    "status": lambda: status_table(
        {"fleet": HOSTILE, "server": "up", "run": HOSTILE, "rounds": 1, "round": 1,
         "accuracy": 0.5, "density": 0.1, "bytes_down": 1, "bytes_up": 1,
         "metric": {"name": HOSTILE, "higher_is_better": True, "form": ".3g"},
         "devices": [{"device": 0, "name": HOSTILE, "connection": HOSTILE}]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_table_shows_hostile_text_as_it_is(name: str) -> None:
    text = shown(TABLES[name](), width=400)
    assert_harmless(text)
    assert "\\x1b]0;owned\\x07" in text and "[red]x[/red]" in text and ":smiley:" in text


@given(st.text())
@settings(deadline=None)
def test_no_text_is_more_than_text(text: str) -> None:
    table = Table("", text, title=text, caption=text)
    table.add_row(text, Text("ours"))
    assert_harmless(shown(table, width=200))
    assert_harmless(shown(text))
    assert terminal_lines(text) == "\n".join(terminal_text(line) for line in text.split("\n"))


def test_another_console_would_have_let_it_pass() -> None:
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system=None).print(f"{ESCAPES}[red]x[/red]")
    assert "\x1b]0;owned" in out.getvalue() and "[red]" not in out.getvalue()


def write_run(folder: Path, **summary: Any) -> Path:
    folder.mkdir()
    (folder / "config.toml").write_text(f'task = "{RunConfig().task}"\n')
    (folder / "summary.json").write_text(json.dumps({**RUN, **summary}))
    return folder


def test_fedkit_show_of_a_hostile_folder(tmp_path: Path) -> None:
    code, out, said = command("show", write_run(tmp_path / "run"))
    assert code == 0, said
    assert_harmless(out + said)
    assert "[red]x[/red]" in out.replace("\n", "")


def test_an_error_of_a_hostile_folder_is_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "run\x1b[2J[red]"
    folder.mkdir()
    (folder / "config.toml").write_text('"\\u001b[2J" = "[/nothing]"\n')
    code, out, said = command("show", folder)
    assert code == 2
    assert_harmless(out + said)
    assert "\\x1b[2J" in said


def test_every_console_of_the_command_line_is_such_a_terminal() -> None:
    for path in Path(cli.__file__).parent.glob("*.py"):
        if path.name != "terminal.py":
            assert "Console(" not in path.read_text(encoding="utf-8"), path


def test_the_status_names_the_metric() -> None:
    step = {"event": "step", "round": 1, "density": 0.5, "accuracy": 0.1234, "bytes_down": 1,
            "bytes_up": 1}  # fmt: skip
    error = {"name": "mean error", "higher_is_better": False, "form": ".3g"}
    for about, line in (({}, "accuracy 12.34%"), ({"metric": error}, "mean error 0.123")):
        status = FleetStatus()
        status.add({**step, **about})
        found = {**vars(status), "fleet": "f", "server": "up", "run": "r", "devices": []}
        assert line in " ".join(shown(status_table(found)).split())


@pytest.mark.parametrize("connection", ["online", "offline", "registered", "unregistered"])
def test_the_status_is_whole_at_80_columns(connection: str) -> None:
    devices: list[dict[str, Any]] = [
        {"device": index, "name": str(index), "connection": connection} for index in range(3)
    ]
    most = {"answers": 9_999_999, "refused": 999_999, "failed": 99_999, "absent": 99_999,
            "bytes_up": 999e9, "peak_bytes": 999e6, "seen": 1e9, "quarantined": False}  # fmt: skip
    devices.append({"device": 8, "name": "n" * 300, "connection": connection, **most})
    for number, quarantined in ((999_999, False), (7, True)):
        device = {"device": number, "name": str(number), "connection": connection}
        devices.append({**device, **most, "quarantined": quarantined})
    text = shown(
        status_table(
            {"fleet": "/srv/" + "fleet" * 30, "server": "down, or no device is registered",
             "run": "r" * 100, "rounds": 100000, "round": 99999, "accuracy": 1.0, "density": 1.0,
             "bytes_down": 1e15, "bytes_up": 1e15, "devices": devices}
        )
    )  # fmt: skip
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert text.count("\u2026") == 1  # a name of 300 characters is cut, and nothing else
    (row,) = (line.split() for line in lines if line.split()[:1] == ["999999"])
    assert row[1] == connection and row[-4:] == ["999", "GB", "999", "MB"]
    assert sum(line.split()[:2] == ["7", "quarantined"] for line in lines) == 1


@pytest.mark.parametrize(
    ("back", "words"),
    [(0.5, "0 s ago"), (59, "59 s ago"), (61, "1 min ago"), (7200, "2 h ago"), (9e6, "104 d ago"),
     (-1000, "0 s ago")],
)  # fmt: skip
def test_times_are_told_as_how_long_ago(
    back: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert ago(1e9 - back) == words
    assert ago(0) == "never"
