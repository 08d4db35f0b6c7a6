"""A run in one process: what `fedkit.run` is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkit.config import RunConfig, make_config
from fedkit.core.errors import ConfigError, TaskError
from fedkit.core.side_by_side import cores
from fedkit.server.record import record
from fedkit.server.rounds import Report, run_rounds
from fedkit.server.scenario import Scenario
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Metric, Task
from sim.scenario import make_scenario, share_out

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class FinishedRun:
    """A run that came to its end.

    Attributes:
        config: All its settings.
        steps: What each step gave and cost, from the dense start to the last round.
        folder: Where it was recorded; None where it was not.
    """

    config: RunConfig
    steps: tuple[Report, ...]
    folder: Path | None
    _scenario: Scenario = field(repr=False)

    @property
    def state(self) -> ModelState:
        """The final weights, masks and statistics."""
        return self.steps[-1].state

    @property
    def density(self) -> float:
        """Kept share of the prunable weights at the end."""
        return self.state.density

    @property
    def metric(self) -> Metric:
        """The task's metric: its name, its format, and whether higher is better."""
        return self._scenario.task.measure

    @property
    def value(self) -> float:
        """What `metric` says of the final model on the test data."""
        value = self.steps[-1].accuracy
        assert value is not None  # The last round is measured always.
        return value

    @property
    def accuracy(self) -> float:
        """The share of the test data that the final model tells right, 0 .. 1.

        Raises:
            TaskError: The task is measured by something else, which `value` is.
        """
        if self.metric.key != "accuracy":
            raise TaskError(
                f"task {self._scenario.task.name!r} is measured by its {self.metric.name}, not by "
                "accuracy; see `value` and `metric`"
            )
        return self.value

    @property
    def bytes_sent(self) -> int:
        """Payload that travelled, both ways, over all devices and steps."""
        return sum(step.bytes_down + step.bytes_up for step in self.steps)

    def module(self) -> nn.Module:
        """Return a fresh torch module with the final weights, in evaluation mode."""
        return self._scenario.module(self.state).eval()


def run(
    task: Task | str = "digits",
    *,
    folder: Path | str | None = None,
    after_step: Callable[[Report], None] | None = None,
    workers: int = 0,
    **settings: Any,
) -> FinishedRun:
    """Run all rounds in this process, over simulated devices; the numbers are those of Flower.

    >>> import fedkit
    >>> result = fedkit.run("digits", devices=4, rounds=3, density=0.2)  # doctest: +SKIP

    Args:
        task: A `Task`; or the name of a built-in one, or `package.module:name`.
        folder: Run folder to record in, which `fedkit show` and `fedkit export` read; must not
            exist. They find the task by its name, so a `Task` itself cannot be recorded.
        after_step: Called with the report of each step.
        workers: Devices that compute at the same time (0: one per core); the numbers are the same
            for any.
        **settings: Keys of `RunConfig`, like `devices`, `rounds`, `density`, `method`, `seed`.

    Raises:
        ConfigError: There is no such setting, or a value breaks its rule; a `Task` is to be
            recorded.
        TaskError: There is no such task, or its parts do not fit together.
        DataError: The data is missing or cannot be split as asked.
        CheckpointError: The folder exists or cannot be written.
    """
    scenario = _scenario(task, settings, folder)
    scenario.check()
    steps: list[Report] = []

    def keep(step: Report) -> None:
        steps.append(step)
        if after_step is not None:
            after_step(step)

    path = None if folder is None else Path(folder)
    fleet = scenario.local_fleet(path, workers or cores())
    if path is not None:
        record(scenario, fleet, path, keep)
    else:
        for step in run_rounds(scenario.server(), fleet, scenario.server_data, scenario.backbone):
            keep(step)
    return FinishedRun(scenario.config, tuple(steps), path, scenario)


def _scenario(task: Task | str, settings: dict[str, Any], folder: Path | str | None) -> Scenario:
    if isinstance(task, str):
        return make_scenario(make_config({**settings, "task": task}))
    if not isinstance(task, Task):
        raise ConfigError(
            f"task is a {type(task).__name__}; give a fedkit.Task, the name of a built-in task, or "
            "a path like package.module:name"
        )
    if folder is not None:
        raise ConfigError(
            f"task {task.name!r} is an object, and what reads {folder} must find it by a name; "
            "give its path to record the run, like package.module:name"
        )
    return share_out(make_config({**settings, "task": task.name}), task)
