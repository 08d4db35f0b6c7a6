"""The folder of a trainer: sources for the microcontroller, and what its gateway must know."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkit.core.errors import ExportError
from fedkit.core.files import read_whole, write_atomic
from fedkit.core.version import __version__
from fedkit.engine.plan.plan import load_plan, save_plan
from fedkit.engine.plan.structure import Plan
from fedkit.sparse.state import Masks
from fedkit.trainer.emit import emit
from fedkit.wire import codec

ENDING = "-c99-train"
"""Of the names of these folders."""

_ABOUT, _PLAN, _MASKS = "trainer.json", "model.plan", "masks.bin"


@dataclass(frozen=True)
class TrainerFolder:
    """What is known of a trainer.

    Attributes:
        path: The folder.
        plan: The model.
        masks: Which weights are kept.
        batch: Examples of a step.
        stored_bits: Of what the backward pass reads again.
        arena_bytes: All memory that it needs beside the stack.
        values: Weights, of pruned layers only those kept.
        statistics: Names of the running statistics, in the order of `trainer_statistic`.
        source_bytes: Of the sources.
    """

    path: Path
    plan: Plan
    masks: Masks
    batch: int
    stored_bits: int
    arena_bytes: int
    values: int
    statistics: tuple[str, ...]
    source_bytes: int


def save_trainer(
    path: Path,
    plan: Plan,
    masks: Masks,
    batch: int = 1,
    stored_bits: int = 32,
    ram: int | None = None,
) -> TrainerFolder:
    """Write a trainer's folder.

    Args:
        path: Where; nothing may be there.
        plan: The model.
        masks: Which weights are kept.
        batch: See `emit`, as for the others.
        stored_bits: See there.
        ram: See there.

    Raises:
        ExportError: Something is at the path, or the model cannot be trained so.
    """
    if os.path.lexists(path):
        raise ExportError(f"{path} is there already; move it away, or give another place")
    made = emit(plan, masks, batch, stored_bits, ram)
    files = {**made.files, _MASKS: codec.encode_masks(masks).tobytes()}
    about = {
        "fedkit": __version__,
        "batch": batch,
        "stored_bits": stored_bits,
        "arena_bytes": made.arena_bytes,
        "values": made.values,
        "statistics": made.statistics,
        "source_bytes": sum(len(content) for content in made.files.values()),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    unnamed = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        for name, content in files.items():
            (unnamed / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(unnamed / name, content)
        save_plan(plan, unnamed / _PLAN)
        write_atomic(unnamed / _ABOUT, json.dumps(about, indent=1).encode())
        unnamed.rename(path)
    finally:
        shutil.rmtree(unnamed, ignore_errors=True)
    return load_trainer(path)


def load_trainer(path: Path) -> TrainerFolder:
    """Read what is known of a trainer.

    Raises:
        ExportError: No trainer is there, or it is damaged.
        PlanError: Its plan cannot be read.
    """
    if not (path / _ABOUT).is_file():
        raise ExportError(
            f"{path} holds no {_ABOUT}; give a folder that `fedkit export RUN --target c99-train` "
            "made"
        )
    try:
        about: dict[str, Any] = json.loads(read_whole(path / _ABOUT))
        for name, digest in about["sha256"].items():
            if hashlib.sha256(read_whole(path / name)).hexdigest() != digest:
                raise ExportError(f"{path / name} was changed; export the trainer again")
        plan = load_plan(path / _PLAN)
        blob = np.frombuffer(read_whole(path / _MASKS), np.uint8)
        numbers = [int(about[name]) for name in _NUMBERS]
        statistics = tuple(map(str, about["statistics"]))
    except OSError as error:
        raise ExportError(f"{path} lacks a file ({error}); export the trainer again") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(f"{path / _ABOUT} is damaged ({error!r}); export it again") from error
    masks = codec.decode_masks(blob, plan.layout.prunable_shapes)
    batch, stored_bits, arena_bytes, values, source_bytes = numbers
    return TrainerFolder(
        path, plan, masks, batch, stored_bits, arena_bytes, values, statistics, source_bytes
    )


_NUMBERS = ("batch", "stored_bits", "arena_bytes", "values", "source_bytes")
