"""Run folders that a power cut or a full disk damaged: told in a line, or read where whole."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedkit.cli import job, summary
from fedkit.config import make_config
from fedkit.core.errors import CheckpointError, FedkitError
from fedkit.core.names import check_name, find_run
from fedkit.server.checkpoint import RunFolder
from fedkit.server.events import EventLog, read_events
from fedkit.server.record import record
from sim.scenario import make_scenario
from tests.command_line import fedkit

CONFIG = make_config(
    {
        "devices": 2,
        "rounds": 2,
        "epochs": 1,
        "examples_per_device": 30,
        "test_examples": 50,
        "server_epochs": 1,
        "sparse_epochs": 1,
    }
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and its summary, as `fedkit run` leaves them but for the artifact."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    scenario = make_scenario(CONFIG)
    folder = record(scenario, scenario.local_fleet(), path, lambda step: None)
    folder.write_json("summary.json", {**summary.figures(folder), "finished": True})
    return path


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def unfinished(run: Path) -> Path:
    (run / "summary.json").unlink()
    return run


@pytest.mark.parametrize(
    "end",
    [b"\0" * 200, b'{"phase": "rou', b"\xff\xfe\n", b"[1, 2]\n", b"null\n", b"\0" * 99 + b"\n"],
)
def test_lines_that_are_not_whole_are_passed_over(end: bytes, run: Path) -> None:
    before = summary.show(unfinished(run))
    sound = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(sound + end)
    assert summary.show(run) == before
    cut = sound[: sound.rindex(b"\n", 0, -1) + 9]
    (run / "metrics.jsonl").write_bytes(cut + b"\0" * 50)
    assert summary.show(run)["rounds"] == 1


def test_resuming_writes_what_a_power_cut_took(run: Path, tmp_path: Path) -> None:
    sound = (run / "metrics.jsonl").read_bytes()
    config = (run / "config.toml").read_text()
    assert "\nrounds = 2\n" in config
    (run / "config.toml").write_text(config.replace("\nrounds = 2\n", "\nrounds = 5\n"))
    longer = RunFolder.open(run).config
    # A line that the checkpoint does not know is of a step that was lost with it.
    lost = json.loads(sound.splitlines()[-1]) | {"round": 3}
    (run / "metrics.jsonl").write_bytes(sound + json.dumps(lost).encode() + b"\n" + b"\0" * 30)
    RunFolder.resume(run, longer)
    assert (run / "metrics.jsonl").read_bytes() == sound


def test_a_step_is_on_the_disk_before_the_next_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = os.fsync

    def note(file: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        sync(file)

    monkeypatch.setattr(os, "fsync", note)
    scenario = make_scenario(CONFIG)
    record(scenario, scenario.local_fleet(), tmp_path / "run", lambda step: None)
    assert synced.count("metrics.jsonl") == 2 + CONFIG.rounds


BROKEN_SUMMARIES = {
    "half": lambda text: text[: len(text) // 2],
    "zeros": lambda text: "\0" * len(text),
    "a list": lambda text: "[]",
    "a number": lambda text: "3",
    "nothing known": lambda text: "{}",
    "texts for numbers": lambda text: text.replace('"density": 0.1', '"density": "0.1"'),
}


@pytest.mark.parametrize("damage", BROKEN_SUMMARIES.values(), ids=BROKEN_SUMMARIES)
def test_a_damaged_summary_is_named_and_the_rest_is_shown_without_it(
    damage: Callable[[str], str], run: Path
) -> None:
    path = run / "summary.json"
    written = json.loads(path.read_text())
    path.write_text(damage(json.dumps(written | {"density": 0.1})))
    with pytest.raises(CheckpointError, match=r"summary\.json is damaged .* remove it"):
        summary.show(run)
    assert summary.show(unfinished(run))["rounds"] == CONFIG.rounds


def test_a_run_without_its_checkpoint_still_shows_its_rounds(run: Path) -> None:
    (run / "checkpoint" / "model.safetensors").write_bytes(b"\0" * 100)
    shown = summary.show(unfinished(run))
    assert (shown["rounds"], shown["bytes_dense_fedavg"]) == (CONFIG.rounds, 0)
    with pytest.raises(CheckpointError, match="cannot be read"):
        RunFolder.resume(run, CONFIG)


# Any damage


def mutate(folder: Path, chance: random.Random) -> None:
    """Damage one file of a run folder in one way."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = chance.choice(files)
    content = bytearray(path.read_bytes())
    at = chance.randrange(len(content) + 1)
    kind = chance.randrange(9)
    if kind == 0:
        content = content[:at]
    elif kind == 1:
        content[at:] = bytes(len(content) - at)
    elif kind == 2:
        for _ in range(chance.randint(1, 20)):
            content[chance.randrange(len(content))] = chance.randrange(256)
    elif kind == 3:
        content += content[at:]
    elif kind == 4:
        content = bytearray(chance.choice(FOREIGN))
    elif kind == 5 and path.suffix in (".json", ".jsonl"):
        content = bytearray(swapped(bytes(content), chance))
    elif kind == 6:
        content[at:at] = chance.choice(FOREIGN)
    path.unlink()
    if kind == 7:
        path.mkdir()
    elif kind != 8:
        path.write_bytes(content)


FOREIGN = [b"", b"\0", b"null", b"[]", b"{}", b"1e999", b'{"a": 1}\n', b"\xff\xfe", b"[" * 5000]
VALUES: list[Any] = [None, -1, 0, 2**70, 1e308, "x", [], {}, True, [[]], "\x1b[2J", float("nan")]


def swapped(content: bytes, chance: random.Random) -> bytes:
    """Give a key of a JSON object another value, or take it away."""
    text = content.decode(errors="replace")
    lines = text.splitlines() if text.count("\n{") else [text]
    number = chance.randrange(len(lines))
    try:
        found = json.loads(lines[number])
    except (ValueError, RecursionError):
        return content
    if not isinstance(found, dict) or not found:
        return content
    key = chance.choice(list(found))
    found[key] = chance.choice(VALUES)
    if chance.random() < 0.2:
        del found[key]
    lines[number] = json.dumps(found)
    return ("\n".join(lines) + "\n").encode()


def assert_told_or_carried_on(whole: Path, folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    shutil.copytree(whole, folder)
    if chance.random() < 0.5:
        (folder / "summary.json").unlink()
    for _ in range(chance.randint(1, 3)):
        mutate(folder, chance)
    for ask in (lambda: summary.show(folder), lambda: go_on(folder)):
        try:
            ask()
        except FedkitError as error:
            assert str(error), seed
    shutil.rmtree(folder)


def go_on(folder: Path) -> None:
    config, path = job.to_resume(folder.name, folder.parent, {})
    with RunFolder.open(path).held():
        RunFolder.resume(path, config).load()


def test_damaged_folders_are_told_or_carried_on(whole: Path, tmp_path: Path) -> None:
    for seed in range(150):
        assert_told_or_carried_on(whole, tmp_path / "run", seed)


@pytest.mark.slow
def test_ten_thousand_damaged_folders_are_told_or_carried_on(whole: Path, tmp_path: Path) -> None:
    for seed in range(1000, 11_000):
        assert_told_or_carried_on(whole, tmp_path / "run", seed)


def test_events_that_are_not_whole_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events"
    EventLog(path)("one")
    with path.open("ab") as file:
        file.write(b'\0\0\n\xff\n[]\nnull\n{"time": 1}\n' + b"[" * 5000 + b"\n")
    EventLog(path)("two")
    assert [event["event"] for event in read_events(path)] == ["one", "two"]


# Full disks and names


SMALL = "--devices 2 --rounds 1 --epochs 1 --examples-per-device 30 --server-epochs 0"
QUICKLY = f"{SMALL} --sparse-epochs 0 --in-process"


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_one_line_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with full_disk(20_000):
        assert fedkit(f"run {QUICKLY} --name r", monkeypatch) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "the step cannot be stored in runs/r: File too large" in told
    assert "then go on with --resume" in told and "Traceback" not in told
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["r"]
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    assert fedkit("run --resume r --in-process --json", monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["rounds"] == 1


@pytest.mark.parametrize("way", [QUICKLY, SMALL], ids=["in process", "Flower"])
def test_a_place_that_cannot_be_written_is_one_line_and_leaves_nothing(
    way: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    for out in ("/proc/nowhere", str(tmp_path / "file" / "runs")):
        assert fedkit(f"run {way} --name r --out {out}", monkeypatch) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert f"run folder {out}/r cannot be made" in told
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


GOOD = ["a", "A.b_c-1", "x" * 100, "_", "2026"]
BAD = ["", ".", "..", ".x", "-x", "a/b", "../a", "a'b", 'a"b', "a b", "ä", "a\n", "a\0", "x" * 101]


@pytest.mark.parametrize("name", GOOD)
def test_a_name_is_letters_digits_and_a_few_marks(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", [*BAD, "x" * 300])
def test_what_is_no_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(FedkitError, match=r"cannot name a run; give 1 to 100 letters"):
        check_name(name)
    with pytest.raises(FedkitError):
        find_run(tmp_path, name)
    if name:
        with pytest.raises(FedkitError):
            job.folder_for(CONFIG, name, tmp_path)


def test_a_run_is_found_by_its_name_or_as_the_last(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "one")
    shutil.copytree(whole, tmp_path / "two")
    os.utime(tmp_path / "two", (1, 1))
    assert find_run(tmp_path, "two") == tmp_path / "two"
    assert find_run(tmp_path, "last") == tmp_path / "one"
    with pytest.raises(CheckpointError, match=r"no run 'three' in .*; there are: one, two"):
        find_run(tmp_path, "three")
    with pytest.raises(CheckpointError, match="there are: none"):
        find_run(tmp_path / "nowhere", "last")
