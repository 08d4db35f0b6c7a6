"""systemd reads from a unit what was meant, whatever a path holds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkit.config import make_config
from fedkit.core.errors import FleetError
from fedkit.fleet import units
from fedkit.fleet.folder import make_fleet
from sim.simulation import APP


def settings_of(unit: str) -> dict[str, str]:
    """The settings of a unit as systemd takes its lines: continued by a backslash, or comments."""
    found: dict[str, str] = {}
    for line in unit.replace("\\\n", " ").split("\n"):
        if line.strip() and line.lstrip()[0] not in "#;[":
            name, _, value = line.partition("=")
            assert name.strip() not in found or name == "Wants", f"{name} is set twice"
            found[name.strip()] = value.strip()
    return found


def words(value: str, command: bool = False) -> list[str]:
    """The words of a setting by systemd.syntax(7), systemd.unit(5) and systemd.service(5).

    Words are parted by spaces; between quotes spaces count, and a backslash takes the next
    character; then `%%` is a per cent sign, any other `%` a specifier; and in the arguments of a
    command `$$` is a dollar sign, any other `$` a variable.
    """
    found: list[str] = []
    at = 0
    while at < len(value):
        if value[at] == " ":
            at += 1
            continue
        word, quote = "", ""
        while at < len(value) and (quote or value[at] != " "):
            char = value[at]
            if char == "\\":
                at += 1
                assert value[at] in "\\\"'", f"an escape of systemd's own: {value[at]}"
                word += value[at]
            elif char == quote:
                quote = ""
            elif char in "\"'" and not quote:
                quote = char
            else:
                word += char
            at += 1
        assert not quote, "a quote is not closed"
        found.append(word)
    return [plain(word, "$" if command and index else "") for index, word in enumerate(found)]


def plain(word: str, signs: str) -> str:
    for sign in "%" + signs:
        assert sign not in word.replace(2 * sign, ""), f"{word!r} asks systemd to put something in"
        word = word.replace(2 * sign, sign)
    return word


ODD = ["my fleet", "100%", "%n", "a'b", 'a"b', "back\\slash", "tail\\", "$HOME", "${x}", "a;b",
       "#x", "ünï", "-x", "@x", "a\\x20b", "%%", "x=y", "; rm -rf",
       "\U0001f600", "~", "*"]  # fmt: skip


def assert_means(unit: str, folder: str, what: str) -> None:
    found = settings_of(unit)
    program, *arguments = words(found["ExecStart"], command=True)
    assert Path(program).is_absolute() and program.endswith("/fedkit")
    assert arguments == ["fleet", what, folder]
    assert words(found["ReadWritePaths"]) == [folder]
    assert set(found) == set(settings_of(units.server_unit(Path("/plain"))))


@pytest.mark.parametrize("name", ODD)
def test_an_odd_path_is_one_word(name: str) -> None:
    folder = f"/srv/{name}/fleet"
    assert_means(units.server_unit(Path(folder)), folder, "server")


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1))
@settings(deadline=None, max_examples=300)
def test_a_path_is_one_word_or_is_refused(name: str) -> None:
    folder = f"/srv/x{name}"
    try:
        unit = units.server_unit(Path(folder))
    except FleetError:
        assert not folder.isprintable()
    else:
        assert folder.isprintable()
        assert_means(unit, folder, "server")


@pytest.mark.parametrize(
    "name", ["a\nUser=root", "a\rb", "a\tb", "a\x1b[2Jb", "a\x85b", "a\u2028b"]
)
def test_a_path_that_no_unit_can_hold_is_refused_and_leaves_nothing(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(FleetError, match="cannot stand in a systemd unit"):
        make_fleet(tmp_path / name, "host:8000", make_config({"devices": 1}), APP, insecure=False)
    assert list(tmp_path.iterdir()) == []


def test_services_run_confined_and_never_as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    for uid, account in ((0, "fedkit"), (4_000_001, "4000001")):
        monkeypatch.setattr("os.geteuid", lambda uid=uid: uid)
        for unit in (units.server_unit(Path("/f")), units.device_unit("device-000")):
            found = settings_of(unit)
            assert found["User"] in (account, "fedkit") and found["User"] not in ("root", "0")
            assert (found["NoNewPrivileges"], found["UMask"]) == ("yes", "0077")
            assert (found["ProtectSystem"], found["CapabilityBoundingSet"]) == ("strict", "")
    assert (
        settings_of(units.device_unit("device-007"))["ReadWritePaths"] == "/opt/fedkit/device-007"
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", ["plain", "my fleet", "100%n", 'a"b', "back\\slash", "$HOME"])
def test_systemd_finds_nothing_wrong(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    file = tmp_path / "fedkit-server.service"
    file.write_text(units.server_unit(folder))
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=600
    )
    mine = [line for line in checked.stderr.splitlines() if "fedkit-server" in line]
    assert mine == [], checked.stderr
