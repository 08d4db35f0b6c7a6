"""A device's memory on disk: killed at any point, a device answers as if it never had been."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedkit.core.errors import DataError
from fedkit.device.memory import DurableMemory
from fedkit.methods.interface import Phase
from fedkit.wire.messages import Packet


class Counting:
    """Adds what it is asked to what it remembers, and counts how often it is called."""

    calls = 0

    def __call__(self, phase: Phase, request: Packet, memory: Packet) -> tuple[Packet, Packet]:
        self.calls += 1
        total = memory.arrays.get("total", np.zeros(2)) + request.arrays["x"]
        return Packet({"sum": 10 * total}, {"phase": phase}), Packet({"total": total}, {"n": 1})


def request(number: int, value: float = 0.0) -> Packet:
    return Packet({"x": np.full(2, value or float(number))}, {"round": number})


def ask(folder: Path, handle: Counting, number: int, value: float = 0.0, run: str = "a") -> float:
    """Ask as a process of its own would, that knows the folder alone."""
    reply = DurableMemory(folder, run).answer(handle, "train", request(number, value))
    assert reply.numbers == {"phase": "train"}
    return float(reply.arrays["sum"][0])


def test_what_is_remembered_survives_the_process(tmp_path: Path) -> None:
    handle = Counting()
    assert [ask(tmp_path, handle, n) for n in (1, 2, 3)] == [10, 30, 60]


def test_a_number_without_a_dimension_stays_one(tmp_path: Path) -> None:
    def handle(phase: Phase, request: Packet, memory: Packet) -> tuple[Packet, Packet]:
        return request, Packet({"kept": request.arrays["x"]}, {})

    asked = Packet({"x": np.array(0.5)}, {"round": 1})
    for _ in range(2):  # computed, and read from the file
        reply = DurableMemory(tmp_path, "a").answer(handle, "train", asked)
        assert reply.arrays["x"].shape == ()


def test_asked_the_same_again_it_replies_the_same_and_computes_nothing(tmp_path: Path) -> None:
    handle = Counting()
    assert [ask(tmp_path, handle, n) for n in (1, 2, 2, 2, 3)] == [10, 30, 30, 30, 60]
    assert handle.calls == 3


def test_a_server_that_lost_a_round_finds_the_memory_of_before(tmp_path: Path) -> None:
    handle = Counting()
    assert [ask(tmp_path, handle, n) for n in (1, 2)] == [10, 30]
    assert ask(tmp_path, handle, 2, value=5.0) == 60  # another model came, not the old one's sum
    assert ask(tmp_path, handle, 3) == 90


def test_rounds_that_were_missed_are_no_gap(tmp_path: Path) -> None:
    handle = Counting()
    assert [ask(tmp_path, handle, n) for n in (1, 5, 6)] == [10, 60, 120]


def test_a_run_begun_anew_starts_with_nothing_and_forgets_the_future(tmp_path: Path) -> None:
    handle = Counting()
    for number in (1, 2, 3):
        ask(tmp_path, handle, number)
    assert ask(tmp_path, handle, 1, value=7.0) == 70
    assert ask(tmp_path, handle, 2) == 90


def test_runs_do_not_mix_and_old_ones_are_removed(tmp_path: Path) -> None:
    handle = Counting()
    for run in "abcd":
        assert ask(tmp_path, handle, 1, run=run) == 10
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) <= 2


def test_two_steps_are_kept(tmp_path: Path) -> None:
    handle = Counting()
    for number in range(1, 9):
        ask(tmp_path, handle, number)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * len(data)],
    ids=["empty", "truncated", "noise"],
)
def test_a_damaged_file_is_as_if_it_were_not_there(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    handle = Counting()
    for number in (1, 2):
        ask(tmp_path, handle, number)
    newest = max(tmp_path.rglob("*.safetensors"))
    newest.write_bytes(damage(newest.read_bytes()))
    assert ask(tmp_path, handle, 2) == 30
    assert ask(tmp_path, handle, 3) == 60


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"memory .* cannot be written"):
        DurableMemory(tmp_path / "file", "a")


def test_a_write_that_is_cut_off_leaves_the_step_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = Counting()
    ask(tmp_path, handle, 1)

    def cut(path: Path, data: bytes) -> None:
        path.with_name(f".{path.name}.1.tmp").write_bytes(data[: len(data) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedkit.device.memory.write_atomic", cut)
        with pytest.raises(KeyboardInterrupt):
            ask(tmp_path, handle, 2)
    assert ask(tmp_path, handle, 2) == 30


def test_what_is_remembered_after_a_measurement_comes_before_the_next_round(tmp_path: Path) -> None:
    memory = DurableMemory(tmp_path, "run")
    asked = [
        ("train", Packet({}, {"round": 1})),
        ("moments", Packet({}, {"round": 1, "level": 70})),
        ("evaluate", Packet({}, {"round": 1})),
        ("train", Packet({}, {"round": 2})),
    ]
    for number, (phase, request) in enumerate(asked):
        before = memory.before(phase, request)  # type: ignore[arg-type]
        assert before.numbers.get("step", -1) == number - 1
        memory.keep(phase, request, Packet({}, {"step": number}), Packet({}))  # type: ignore[arg-type]
