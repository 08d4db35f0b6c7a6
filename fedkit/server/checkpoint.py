"""The run folder: configuration, metrics as they happen, checkpoint, and what is made from it.

    runs/<name>/
        config.toml                     every key of the run
        partition.npz, partition.svg    which examples each simulated device holds, and a picture
        metrics.jsonl                   one line per step, appended as it happens
        checkpoint/structure.json       format, names and shapes; written once
        checkpoint/model.safetensors    kept values, masks and statistics; replaced whole each step
    checkpoint/first.safetensors    masks that training began with, a bit per weight; written once
        summary.json                    the final figures
        model-int8.graph                the integer graph that all artifacts are made from
        model-int8.tflite, .onnx, -c99  artifacts; each has a manifest, beside or in it
        flower.log, error.txt           what Flower printed; why a run ended early

A reader never sees half a file: everything but metrics.jsonl is written under a temporary name and
renamed. Of metrics.jsonl a reader takes the lines that are whole: a power cut may leave half a line
at its end, or zeros. A run folder is never written into by a second run: the writer holds a
lock on its config.toml, which the system frees however the writer ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import tomli_w
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from fedkit.config import RunConfig, make_config, read_config
from fedkit.core.errors import CheckpointError, FedkitError
from fedkit.core.files import read_whole, remove_partial, write_atomic
from fedkit.server.rounds import Report, StepPhase
from fedkit.server.shares import Shares
from fedkit.sparse.bits import Bits, trimmed
from fedkit.sparse.changes import are_changes
from fedkit.sparse.layout import Layout
from fedkit.sparse.packed import PackedMasks, packed
from fedkit.sparse.state import Masks, ModelState
from fedkit.wire import messages
from fedkit.wire.messages import Packet

_HOLDS = "FEDKIT_HOLDS"
"""Variable that names the run folders, a line each, which this process or one above it holds."""

SHARES = "partition.npz"

FIRST_MASKS = "first.safetensors"

FORMAT = 2
"""Version of the checkpoint files; a reader refuses others."""

_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError),
    *(SafetensorError, FedkitError),
)
"""What reading damaged files may raise."""


@dataclass(frozen=True)
class Checkpoint:
    """A stored model: its state, its layout, the step it comes from and its run's config."""

    state: ModelState
    layout: Layout
    round: int
    config: RunConfig
    phase: StepPhase


class RunFolder:
    """One run on disk.

    Args:
        path: The folder; made by `create`, looked up by `open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: RunConfig) -> RunFolder:
        """Make a new run folder and write its config.

        Raises:
            CheckpointError: The folder exists, or cannot be made.
        """
        cls.check_free(path)
        unnamed = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unnamed.mkdir()
            write_atomic(unnamed / "config.toml", tomli_w.dumps(config.as_dict()).encode())
            unnamed.rename(path)  # fails where another run took the name in the meantime
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise _taken(path) from error
            raise CheckpointError(
                f"run folder {path} cannot be made: {error.strerror}; give another --out"
            ) from error
        finally:
            shutil.rmtree(unnamed, ignore_errors=True)
        return cls(path)

    @staticmethod
    def check_free(path: Path) -> None:
        """Raise a `CheckpointError` if something is at `path` already."""
        if os.path.lexists(path):
            raise _taken(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Find an existing run folder.

        Raises:
            CheckpointError: There is no run at that path.
        """
        if not os.path.isfile(path / "config.toml"):
            raise CheckpointError(
                f"{path} is not a run folder: it holds no config.toml; give the folder that "
                "`fedkit run` printed, like runs/NAME"
            )
        return cls(path)

    @classmethod
    def resume(cls, path: Path, config: RunConfig) -> RunFolder:
        """Find a run that ended early, to go on with it; its record ends at its checkpoint then.

        Raises:
            CheckpointError: There is no run of that config, or it is finished.
        """
        folder = cls.open(path)
        folder.check_same(config)
        if folder.is_finished:
            raise CheckpointError(f"the run in {path} is finished; look at it with: fedkit show")
        with _told_as_ours(f"run folder {path} cannot be written"):
            (path / "error.txt").unlink(missing_ok=True)
            remove_partial(path)
            folder._mend_metrics()
        return folder

    def check_same(self, config: RunConfig) -> None:
        """Raise a `CheckpointError` that names the keys where this run has another value."""
        old, new = self.config.as_dict(), config.as_dict()
        if other := [key for key in new if old[key] != new[key]]:
            raise CheckpointError(
                f"the run in {self.path} has another {', '.join(other)}; a run goes on as it "
                "began: leave these out, or start a new one"
            )

    @contextmanager
    def held(self, wait: bool = False) -> Iterator[None]:
        """Let no other process write into this folder during the block.

        A process that was started by the one that holds the folder may write into it too.

        Args:
            wait: For another process that writes into it, to its end.

        Raises:
            CheckpointError: Another process runs this run, and we do not wait.
        """
        here = str(self.path.absolute())
        holders = os.environ.get(_HOLDS, "")
        if here in holders.split("\n"):
            yield
            return
        with _told_as_ours(f"run folder {self.path} cannot be written"):
            file = (self.path / "config.toml").open("rb+")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise CheckpointError(
                    f"another process is using the run in {self.path}; wait for it, or give "
                    "another --name"
                ) from None
            except OSError:  # A file system without locks.
                pass
            os.environ[_HOLDS] = f"{holders}\n{here}".strip()
            try:
                yield
            finally:
                os.environ[_HOLDS] = holders

    @property
    def is_held(self) -> bool:
        """Whether a process writes into this folder, as `held` sees to."""
        try:
            with (self.path / "config.toml").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # No locks there; anyone who writes there is told what is wrong.
            return False
        return False

    def remove_if_empty(self) -> None:
        """Remove a folder that holds nothing of a run but its config, and why there is no more."""
        with contextlib.suppress(OSError):
            if {each.name for each in self.path.iterdir()} <= {"config.toml", "error.txt", SHARES}:
                shutil.rmtree(self.path)

    def check_writable(self) -> None:
        """Raise a `CheckpointError` where the disk is full or must not be written."""
        with _told_as_ours(f"run folder {self.path} cannot be written"):
            probe = self.path / f".{os.getpid()}.tmp"
            write_atomic(probe, bytes(4096))
            probe.unlink()

    @property
    def has_checkpoint(self) -> bool:
        """Whether any step was stored."""
        return (self.path / "checkpoint" / "model.safetensors").is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the last round was stored.

        Raises:
            CheckpointError: The checkpoint is damaged.
        """
        return self.has_checkpoint and self.load().round >= self.config.rounds

    def _mend_metrics(self) -> None:
        """Make metrics.jsonl end with the step of the checkpoint, however the run ended."""
        lines: list[dict[str, Any]] = []
        if self.has_checkpoint:
            last = self._last_line()
            for line in self.metrics():
                if (line["phase"], line["round"]) == (last["phase"], last["round"]):
                    break
                lines.append(line)
            lines.append(last)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomic(self.path / "metrics.jsonl", text.encode())

    def _last_line(self) -> dict[str, Any]:
        """Return the line of metrics.jsonl that belongs to the checkpoint, and lies in it too."""
        path = self.path / "checkpoint" / "model.safetensors"
        try:
            with safe_open(path, framework="numpy") as file:
                line = _read_line(file.metadata()["line"].encode())
            if line is None:
                raise ValueError("the step it is of is not told")
        except _UNREADABLE as error:
            raise _damaged(path.parent, error) from error
        return line

    @property
    def config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            CheckpointError: It cannot be read as one.
        """
        path = self.path / "config.toml"
        try:
            return make_config(read_config(path))
        except FedkitError as error:
            raise CheckpointError(
                f"{path} is damaged, or of another version of fedkit ({error}); without it nobody "
                "knows what this run is: take another run, or run again"
            ) from error

    def keep_shares(self, shares: Shares) -> None:
        """Store which examples each device holds.

        Raises:
            CheckpointError: The run began with others, or what is stored cannot be read.
        """
        path = self.path / SHARES
        with _told_as_ours(f"{path} cannot be written"):
            if not path.is_file():
                write_atomic(path, shares.pack())
                return
        if not shares.same(self.shares()):
            raise CheckpointError(
                f"the devices of the run in {self.path} held other examples when it began: the "
                "data of its task, or the library that shares it out, is another now; take what "
                "it was, or start a new run"
            )

    def shares(self) -> Shares:
        """Return which examples each device of a simulation holds.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        path = self.path / SHARES
        try:
            return Shares.unpack(read_whole(path))
        except (*_UNREADABLE, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); it is missing, truncated or altered: move it "
                "away, and the run writes it again when it goes on"
            ) from error

    def append(self, report: Report, layout: Layout, extra: Mapping[str, Any]) -> None:
        """Store one step: the checkpoint first, then its line in metrics.jsonl.

        Args:
            report: The step.
            layout: The model's layout.
            extra: Further keys of the line, such as seconds and transport bytes.
        """
        line = json.dumps({**report.figures, **extra})
        with _told_as_ours(f"the step cannot be stored in {self.path}"):
            self._save(report, layout, line)
            with (self.path / "metrics.jsonl").open("ab") as file:
                file.write(f"{line}\n".encode())
                file.flush()
                os.fsync(file.fileno())

    def keep_first_masks(self, masks: Masks) -> None:
        """Store the masks that training begins with, a bit per weight."""
        path = self.path / "checkpoint" / FIRST_MASKS
        with _told_as_ours(f"{path} cannot be written"):
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, to_safetensors(dict(packed(masks).bits)))

    def first_masks(self, like: Masks) -> Masks | None:
        """Return the masks that training began with; None where they are missing or damaged.

        Args:
            like: Masks of the same model.
        """
        try:
            bits = from_safetensors(read_whole(self.path / "checkpoint" / FIRST_MASKS))
            known = packed(like)
            own = {name: _checked_bits(bits[name], known.size(name)) for name in known}
            return PackedMasks(known.shapes, own)
        except _UNREADABLE:
            return None

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl that are whole."""
        path = self.path / "metrics.jsonl"
        try:
            content = path.read_bytes()
        except OSError:
            return []
        lines = map(_read_line, content.split(b"\n")[:-1])
        return [line for line in lines if line is not None]

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file into the folder, whole."""
        with _told_as_ours(f"{self.path / name} cannot be written"):
            write_atomic(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def _save(self, report: Report, layout: Layout, line: str) -> None:
        folder = self.path / "checkpoint"
        folder.mkdir(exist_ok=True)
        if not (folder / "structure.json").is_file():
            structure = {"format": FORMAT, **asdict(layout)}
            write_atomic(folder / "structure.json", json.dumps(structure, indent=2).encode())
        packed = messages.pack_state(report.state, None)
        arrays = dict(packed.arrays)
        about = {
            "round": str(report.round),
            "phase": report.phase,
            "line": line,
            "mask_digest": str(packed.numbers["mask_digest"]),
            "digest": _digest(layout, arrays, report.round),
        }
        data = to_safetensors(arrays, about)
        write_atomic(folder / "model.safetensors", data)

    def digest(self) -> str:
        """Return the sha256 of the last checkpoint, in hexadecimal."""
        content = (self.path / "checkpoint" / "model.safetensors").read_bytes()
        return hashlib.sha256(content).hexdigest()

    def load(self) -> Checkpoint:
        """Read the last checkpoint.

        Raises:
            CheckpointError: Missing, truncated, altered or of another version.
        """
        folder = self.path / "checkpoint"
        try:
            structure = json.loads((folder / "structure.json").read_text(encoding="utf-8"))
            layout = _layout(structure)
            with safe_open(folder / "model.safetensors", framework="numpy") as file:
                about, names = dict(file.metadata()), file.keys()
                arrays = {name: np.asarray(file.get_tensor(name)) for name in names}
            number = int(about["round"])
            if _digest(layout, arrays, number) != about["digest"]:
                raise ValueError("values are not those that were written")
            packet = Packet(arrays, {"mask_digest": about["mask_digest"]})
            state = messages.read_state(packet, layout, None)
        except _UNREADABLE as error:
            raise _damaged(folder, error) from error
        phase = about.get("phase", "round" if number else "start")
        return Checkpoint(state, layout, number, self.config, cast(StepPhase, phase))


def _digest(layout: Layout, arrays: Mapping[str, NDArray[Any]], number: int) -> str:
    """Return the sha256 of a layout, of arrays with their names, and of their round's number."""
    found = hashlib.sha256(json.dumps([number, asdict(layout)]).encode())
    messages.hash_arrays(found, arrays)
    return found.hexdigest()


def _checked_bits(bits: NDArray[Any], count: int) -> Bits:
    if bits.dtype != np.uint8 or bits.shape != (-(-count // 8),):
        raise ValueError(f"{bits.shape} {bits.dtype} is not a mask of {count} weights")
    return trimmed(bits, count)


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"checkpoint in {folder} cannot be read ({error}); it is missing, truncated or altered: "
        "take another run, or run again"
    )


@contextmanager
def _told_as_ours(what: str) -> Iterator[None]:
    """Say what a full disk or a missing right stopped, and how to go on."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{what}: {error.strerror or error}; what was stored before is whole: make room or "
            "give the right to write there, then go on with --resume"
        ) from error


# A line of metrics.jsonl ---------------------------------------------------------------------


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_figure(value: Any) -> bool:
    return value is None or isinstance(value, float) or _is_number(value)


_LINE: Mapping[str, Callable[[Any], bool]] = {
    "phase": lambda value: value in get_args(StepPhase),
    "round": _is_count,
    "accuracy": _is_figure,
    "loss": _is_figure,
    "density": _is_number,
    "bytes_down": _is_count,
    "bytes_up": _is_count,
}
_LINE_OF_SOME: Mapping[str, Callable[[Any], bool]] = {
    "seconds": _is_number,
    "message_bytes_down": _is_count,
    "message_bytes_up": _is_count,
    **dict.fromkeys(("epsilon", "epsilon_known"), _is_figure),
    "devices_mean": _is_number,
    "devices_spread": _is_number,
    "devices_worst": _is_number,
    **dict.fromkeys(("devices_least", "devices_lower", "devices_median"), _is_number),
    **dict.fromkeys(("devices_upper", "devices_most"), _is_number),
    "devices_measured": _is_count,
    "layers": are_changes,
}


def _read_line(text: bytes) -> dict[str, Any] | None:
    """Return what a line of metrics.jsonl says, or None where it was not written by a run."""
    try:
        line = json.loads(text)
        sound = all(good(line[key]) for key, good in _LINE.items())
        sound &= all(good(line[key]) for key, good in _LINE_OF_SOME.items() if key in line)
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return line if sound else None


def _taken(path: Path) -> CheckpointError:
    return CheckpointError(
        f"run folder {path} exists and is never overwritten; give another --name, move it away, or "
        f"go on with it: --resume {path.name}"
    )


def _layout(structure: Mapping[str, Any]) -> Layout:
    if structure["format"] != FORMAT:
        raise ValueError(f"format {structure['format']}, this version reads {FORMAT}")
    weights, stats = (
        {name: tuple(shape) for name, shape in structure[kind].items()}
        for kind in ("weights", "stats")
    )
    return Layout(weights, stats, tuple(structure["prunable"]))
