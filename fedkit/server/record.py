"""A run on its way into its folder: every step is stored as it happens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fedkit.config import RunConfig
from fedkit.core.errors import FedkitError
from fedkit.core.files import write_atomic
from fedkit.methods.interface import Dispatcher
from fedkit.server.checkpoint import RunFolder
from fedkit.server.privacy import spent
from fedkit.server.rounds import Report, StoredStep, run_rounds
from fedkit.server.scenario import Scenario
from fedkit.sparse.changes import changes
from fedkit.tasks.task import ACCURACY


@runtime_checkable
class Transport(Protocol):
    """A fleet whose messages travel.

    Attributes:
        bytes_down: Bytes of the transport's own messages to devices so far.
        bytes_up: The same of their replies.
    """

    bytes_down: int
    bytes_up: int


def record(
    scenario: Scenario,
    fleet: Dispatcher,
    path: Path,
    after_step: Callable[[Report], None],
    resume: bool = False,
) -> RunFolder:
    """Run all rounds over `fleet` and store each step as it happens.

    Args:
        scenario: The run's config and data.
        fleet: Its devices.
        path: The run folder, to be made.
        after_step: Called with each step once it is stored.
        resume: The folder is there, and the run goes on after its last step.

    Raises:
        CheckpointError: The run folder exists; or to resume, does not, or is of another run.
        FedkitError: Whatever ended the run; its message is also in `error.txt` of the folder.
    """
    with run_folder(path, scenario.config, resume) as folder:
        record_in(scenario, fleet, folder, after_step)
    return folder


@contextmanager
def run_folder(
    path: Path, config: RunConfig, resume: bool, wait: bool = False
) -> Iterator[RunFolder]:
    """Have a run folder for ourselves, and keep in it why the run ended early.

    Args:
        path: The folder.
        config: Of the run.
        resume: The folder is there.
        wait: For another process that goes on with the run, to its end; it may be the run's end.
    """
    folder = RunFolder.open(path) if resume else RunFolder.create(path, config)
    with folder.held(wait):
        try:
            ended = wait and folder.is_finished
            yield RunFolder.resume(path, config) if resume and not ended else folder
        except FedkitError as error:
            with contextlib.suppress(OSError):  # The disk may be full.
                write_atomic(path / "error.txt", f"{error}\n".encode())
            raise


def record_in(
    scenario: Scenario, fleet: Dispatcher, folder: RunFolder, after_step: Callable[[Report], None]
) -> None:
    """Run the rounds that the folder does not have yet; see `record`."""
    if scenario.shares is not None:
        folder.keep_shares(scenario.shares)
    server, began = scenario.server(), time.monotonic() - _seconds_before(folder)
    sent = _message_bytes(fleet)
    start, after = scenario.backbone, _last_step(folder)
    moved = _Moved(folder, after)
    for report in run_rounds(server, fleet, scenario.server_data, start, after):
        before, sent = sent, _message_bytes(fleet)
        travelled = {key: sent[key] - before[key] for key in sent}
        seconds = round(time.monotonic() - began, 3)
        extra: dict[str, Any] = {**travelled, "seconds": seconds, **moved.told(report)}
        if scenario.task.measure is not ACCURACY:
            extra["metric"] = scenario.task.measure.about
        if scenario.config.dp_clip:
            extra |= spent(scenario.config, report.round)
        folder.append(report, server.engine.layout, extra)
        after_step(report)


class _Moved:
    """Which weights each step moved, told as counts."""

    def __init__(self, folder: RunFolder, after: StoredStep | None) -> None:
        self._folder = folder
        self._before = None if after is None else after.state.masks
        self._first = None if after is None else folder.first_masks(after.state.masks)

    def told(self, report: Report) -> dict[str, Any]:
        """Return what the line of a step says of it: nothing where nothing moved."""
        masks = report.state.masks
        if report.round == 0:  # a step that training may begin with
            self._folder.keep_first_masks(masks)
            self._first = masks
        found = changes(self._before, masks, self._first)
        self._before = masks
        return {"layers": found} if found else {}


def _seconds_before(folder: RunFolder) -> float:
    lines = folder.metrics()
    return float(lines[-1].get("seconds", 0)) if lines else 0.0


def _last_step(folder: RunFolder) -> StoredStep | None:
    if not folder.has_checkpoint:
        return None
    stored = folder.load()
    return StoredStep(stored.phase, stored.round, stored.state)


def _message_bytes(fleet: Dispatcher) -> dict[str, int]:
    """Bytes of the transport's own messages so far; none where nothing was transported."""
    if not isinstance(fleet, Transport):
        return {}
    return {"message_bytes_down": fleet.bytes_down, "message_bytes_up": fleet.bytes_up}
