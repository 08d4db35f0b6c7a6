"""The run folder: configuration, metrics as they happen, checkpoint, and what is made from it.

    runs/<name>/
        config.toml                     every key of the run
        metrics.jsonl                   one line per step, appended as it happens
        checkpoint/structure.json       format, names and shapes; written once
        checkpoint/model.safetensors    kept values, masks and statistics; replaced whole each step
        summary.json                    the final figures
        model-int8.graph                the integer graph that all artifacts are made from
        model-int8.tflite, .onnx, -c99  artifacts; each has a manifest, beside or in it
        flower.log, error.txt           what Flower printed; why a run ended early

A reader never sees half a file: everything but metrics.jsonl is written under a temporary name and
renamed. A run folder is never written into by a second run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import tomli_w
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from fedkit import messages
from fedkit.config import RunConfig, make_config, read_config
from fedkit.engine.base import Layout
from fedkit.errors import CheckpointError, FedkitError
from fedkit.files import write_whole
from fedkit.messages import Packet
from fedkit.rounds import Report, StepPhase
from fedkit.sparse.state import ModelState

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
            write_whole(unnamed / "config.toml", tomli_w.dumps(config.model_dump()).encode())
            unnamed.rename(path)
        except OSError as error:
            raise CheckpointError(f"run folder {path} cannot be made: {error.strerror}") from error
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
                f"{path} is no run folder: it holds no config.toml; give the folder that "
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
        old, new = folder.config.model_dump(), config.model_dump()
        if other := [key for key in new if old[key] != new[key]]:
            raise CheckpointError(
                f"the run in {path} has another {', '.join(other)}; a run goes on as it "
                "began: leave these out, or start a new one"
            )
        if folder.has_checkpoint and folder.load().round >= config.rounds:
            raise CheckpointError(f"the run in {path} is finished; look at it with: fedkit show")
        (path / "error.txt").unlink(missing_ok=True)
        folder._mend_metrics()
        return folder

    @property
    def has_checkpoint(self) -> bool:
        """Whether any step was stored."""
        return (self.path / "checkpoint" / "model.safetensors").is_file()

    def _mend_metrics(self) -> None:
        """Make metrics.jsonl end with the step of the checkpoint, however the run ended."""
        lines: list[dict[str, Any]] = []
        if self.has_checkpoint:
            lines, last = self.metrics(), json.loads(self._about()["line"])
            if (last["phase"], last["round"]) not in [(x["phase"], x["round"]) for x in lines]:
                lines.append(last)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_whole(self.path / "metrics.jsonl", text.encode())

    def _about(self) -> dict[str, str]:
        with safe_open(self.path / "checkpoint" / "model.safetensors", framework="numpy") as file:
            return dict(file.metadata())

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return make_config(read_config(self.path / "config.toml"))

    def append(self, report: Report, layout: Layout, extra: Mapping[str, Any]) -> None:
        """Store one step: the checkpoint first, then its line in metrics.jsonl.

        Args:
            report: The step.
            layout: The model's layout.
            extra: Further keys of the line, such as seconds and transport bytes.
        """
        known = {key: value for key, value in vars(report).items() if key != "state"}
        line = json.dumps({**known, **extra})
        self._save(report, layout, line)
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Return all complete lines of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file into the folder, whole."""
        write_whole(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def _save(self, report: Report, layout: Layout, line: str) -> None:
        folder = self.path / "checkpoint"
        folder.mkdir(exist_ok=True)
        if not (folder / "structure.json").is_file():
            structure = {"format": FORMAT, **asdict(layout)}
            write_whole(folder / "structure.json", json.dumps(structure, indent=2).encode())
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
        write_whole(folder / "model.safetensors", data)

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
            raise CheckpointError(
                f"checkpoint in {folder} cannot be read ({error}); it is missing, truncated or "
                "altered: take another run, or run again"
            ) from error
        phase = about.get("phase", "round" if number else "start")
        return Checkpoint(state, layout, number, self.config, cast(StepPhase, phase))


def _digest(layout: Layout, arrays: Mapping[str, NDArray[Any]], number: int) -> str:
    """Return the sha256 of a layout, of arrays with their names, and of their round's number."""
    found = hashlib.sha256(json.dumps([number, asdict(layout)]).encode())
    messages.hash_arrays(found, arrays)
    return found.hexdigest()


def _taken(path: Path) -> CheckpointError:
    return CheckpointError(
        f"run folder {path} exists and is never overwritten; give another --name, or move it away"
    )


def _layout(structure: Mapping[str, Any]) -> Layout:
    if structure["format"] != FORMAT:
        raise ValueError(f"format {structure['format']}, this version reads {FORMAT}")
    weights, stats = (
        {name: tuple(shape) for name, shape in structure[kind].items()}
        for kind in ("weights", "stats")
    )
    return Layout(weights, stats, tuple(structure["prunable"]))
