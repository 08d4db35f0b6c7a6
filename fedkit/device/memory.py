"""A device's memory on disk: what it remembers of a run survives it, whenever it is killed.

Flower keeps what a device remembers in the memory of its SuperNode. A board loses power, so its
memory is a file per step, written whole, with the reply in it:

- asked the same again, it answers with the same reply and computes nothing;
- asked an earlier step again, by a server that lost a round, it goes back to what it remembered
  before that step. The last two steps are kept, a server never loses more; and while a round's
  questions for statistics come, the last two steps that were none.

Files of other runs than the last two are removed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from fedkit.core.errors import DataError
from fedkit.core.files import write_atomic
from fedkit.core.spill import Packing
from fedkit.methods.interface import Phase
from fedkit.wire.messages import Packet, packet_digest

Handle = Callable[[Phase, Packet, Packet], tuple[Packet, Packet]]
"""Answers a request by a memory: the reply, and the new memory (`Device.handle`)."""

LASTING = ("kept.", "remainder", "local.")
"""What the names of arrays begin with that only the device knows."""

_KEPT_STEPS, _KEPT_RUNS = 2, 2
_OBJECTS = 2000  # Bytes of what holds a memory's arrays.
_MEMORY, _REPLY = "memory.", "reply."
_BEFORE_TRAINING = {"survey": 0, "moments": 0, "losses": 1}
_SPAN = 10_000  # Room for a round's questions after its training, one per level of norms.


class DurableMemory:
    """What one device remembers of one run.

    Args:
        folder: Of all runs of this device; made if it is not there.
        run: Names the run; the same when a server resumes it.

    Raises:
        DataError: The folder cannot be written.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._folder = folder / hashlib.sha256(run.encode()).hexdigest()[:16]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._folder.touch()
        except OSError as error:
            raise DataError(
                f"the device's memory {folder} cannot be written ({error.strerror}); name a folder "
                "on its own storage: set state in its node config"
            ) from error
        _forget_runs(folder)

    def answer(self, handle: Handle, phase: Phase, request: Packet) -> Packet:
        """Answer a request, and remember on disk before the reply leaves."""
        step, asked = _step(phase, request), _asked(phase, request)
        done = self._load(step)
        if done is not None and done[0] == asked:
            return done[2]
        reply, memory = handle(phase, request, self.before(phase, request))
        self._save(step, asked, memory, reply)
        return reply

    def before(self, phase: Phase, request: Packet) -> Packet:
        """Return what was remembered before the step of a request; nothing where that is lost."""
        earlier = [number for number in self._steps() if number < _step(phase, request)]
        found = next((found for n in reversed(earlier) if (found := self._load(n))), None)
        return found[1] if found else Packet({})

    def keep(self, phase: Phase, request: Packet, memory: Packet, reply: Packet) -> None:
        """Remember on disk what was answered to a request, and the memory after it."""
        self._save(_step(phase, request), _asked(phase, request), memory, reply)

    def last_reply(self, phase: Phase, request: Packet) -> Packet:
        """Return the reply that was given in the step of a request.

        Raises:
            DataError: There is none.
        """
        if (done := self._load(step := _step(phase, request))) is None:
            raise DataError(f"this device has given no reply in step {step}")
        return done[2]

    def _steps(self) -> list[int]:
        return sorted(int(path.stem) for path in self._folder.glob("[0-9]*.safetensors"))

    def _path(self, step: int) -> Path:
        return self._folder / f"{step:08d}.safetensors"

    def _save(self, step: int, asked: str, memory: Packet, reply: Packet) -> None:
        arrays = {_MEMORY + name: array for name, array in memory.arrays.items()}
        arrays |= {_REPLY + name: array for name, array in reply.arrays.items()}
        about = {
            "asked": asked,
            "memory": json.dumps(dict(memory.numbers)),
            "reply": json.dumps(dict(reply.numbers)),
        }
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        write_atomic(self._path(step), save(contiguous, about))
        earlier = [number for number in self._steps() if number <= step]
        main = [number for number in earlier if number % _SPAN == 0]
        keep = {*earlier[-_KEPT_STEPS:], *main[-_KEPT_STEPS:]}
        for old in set(self._steps()) - keep:
            self._path(old).unlink(missing_ok=True)

    def _load(self, step: int) -> tuple[str, Packet, Packet] | None:
        """Return what was asked in a step, remembered after it and replied, or None."""
        try:
            with safe_open(self._path(step), framework="numpy") as file:
                about = file.metadata()
                arrays = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            memory, reply = (
                Packet(
                    {n.removeprefix(kind): a for n, a in arrays.items() if n.startswith(kind)},
                    json.loads(about[kind.removesuffix(".")]),
                )
                for kind in (_MEMORY, _REPLY)
            )
            return about["asked"], memory, reply
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None  # Never written, or damaged: the server sends what is missing.


def _packed(memory: Packet) -> bytes:
    arrays = {name: np.ascontiguousarray(array) for name, array in memory.arrays.items()}
    return save(arrays, {"memory": json.dumps(dict(memory.numbers))})


def _unpacked(data: bytes) -> Packet:
    length = int.from_bytes(data[:8], "little")
    about = json.loads(data[8 : 8 + length])["__metadata__"]
    return Packet(load(data), json.loads(about["memory"]))


MEMORIES = Packing[Packet](lambda memory: memory.nbytes + _OBJECTS, _packed, _unpacked)
"""How what devices of a simulation remember is kept; for `fedkit.core.spill.Spill`."""


class LastingMemory:
    """What a simulated device must not forget, for a run that goes on in another process.

    A server sends again whatever it knows, so most devices write nothing here; those of methods
    that sum over rounds do, and those that keep what rounding lost.

    Args:
        folder: Of this device, in the run's folder; made when there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def before(self, phase: Phase, request: Packet) -> Packet:
        """See `DurableMemory.before`."""
        if not self._folder.is_dir():
            return Packet({})
        return DurableMemory(self._folder, "").before(phase, request)

    def keep(self, phase: Phase, request: Packet, memory: Packet, reply: Packet) -> None:
        """Remember on disk what was answered, if no server could tell the device again."""
        if any(name.startswith(LASTING) for name in memory.arrays):
            DurableMemory(self._folder, "").keep(phase, request, memory, reply)


def _asked(phase: Phase, request: Packet) -> str:
    return f"{phase} {packet_digest(request)}"


def _step(phase: Phase, request: Packet) -> int:
    """Return a number that grows from message to message of a run."""
    number, level = (request.numbers.get(key) for key in ("round", "level"))
    if phase == "moments" and isinstance(number, int) and isinstance(level, int):
        # Those before training end before the losses are asked for.
        return (1 + number) * _SPAN + 1 + level if number else level
    if phase == "evaluate" and isinstance(number, int):
        return (2 + number) * _SPAN - 1  # the last of its round
    if phase != "train" or not isinstance(number, int):
        return _BEFORE_TRAINING.get(phase, 0) * _SPAN
    return (1 + number) * _SPAN


def _forget_runs(folder: Path) -> None:
    runs = sorted((path for path in folder.iterdir() if path.is_dir()), key=_modified)
    for path in runs[:-_KEPT_RUNS]:
        shutil.rmtree(path, ignore_errors=True)


def _modified(path: Path) -> float:
    return path.stat().st_mtime
