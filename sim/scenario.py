"""Which device holds which data: a run's configuration made into simulated devices."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from fedkit.config import RunConfig
from fedkit.core import moved
from fedkit.core.errors import DataError
from fedkit.core.text import listed
from fedkit.methods.registry import resolve
from fedkit.server.scenario import Scenario, Split, mark, own, server_share, test_examples
from fedkit.server.shares import Shares
from fedkit.tasks import load_task
from fedkit.tasks.targets import first_example
from fedkit.tasks.task import Examples, Task
from sim.partition import Partition, assign

__all__ = ["Scenario", "make_scenario", "share_out"]

if not TYPE_CHECKING:
    __getattr__ = moved.names(__name__)  # what was here until 0.1


@functools.lru_cache(maxsize=2)
def make_scenario(config: RunConfig) -> Scenario:
    """Load the task's data and share it out, the same for every process of the run.

    Raises:
        TaskError: There is no such task.
        DataError: The data is missing or cannot be split as asked.
    """
    return share_out(config, load_task(config.task))


def share_out(config: RunConfig, task: Task) -> Scenario:
    """Share out the data of a task, whatever `config.task` says.

    Raises:
        DataError: The data is missing or cannot be split as asked.
    """
    config = resolve(config)
    train, test = task.examples("train"), test_examples(task, config)
    if len(train) == 0 or len(test) == 0:
        raise DataError(
            f"task {task.name!r} has {len(train)} training and {len(test)} test examples; "
            "both must be at least 1"
        )
    if task.classifies and config.single_class == "error":
        _check_classes(task, train, test)
    server, rest = server_share(len(train), config)
    most = config.examples_per_device or len(train)
    held = [rest[share[:most]] for share in assign(train.take(rest), _how(config))]
    marks: dict[Split, int] = {"train": mark(train), "test": mark(task.examples("test"))}
    devices = [train.take(share) for share in held]
    shares = Shares.of(train, server, held)
    return Scenario(config, task, own(train, server), devices, test, marks, shares)


def _check_classes(task: Task, train: Examples, test: Examples) -> None:
    """Refuse to measure a classifier on classes of which there is nothing to learn from.

    Of texts and maps, where a target is one of many of an example, some may be rare.
    """
    if not (train.labelled and test.labelled):
        return
    known = [*train.classes, *([] if task.ignored is None else [task.ignored])]
    if len(missing := np.setdiff1d(test.classes, known)):
        raise DataError(
            f"the training data of task {task.name!r} have no example of "
            f"{listed('class', missing.tolist())}, which the test data have, "
            f"{first_example(np.isin(test.targets, missing))}: bring examples of every class, or "
            "measure on known ones alone; or allow it (--single-class allow)"
        )


def _how(config: RunConfig) -> Partition:
    return Partition(
        kind=config.partition,
        devices=config.devices,
        alpha=config.alpha,
        min_size=config.min_size,
        classes_per_device=config.classes_per_device,
        by=config.partition_by,
        strictness=config.strictness,
        seed=config.seed,
        single_class=config.single_class,
    )
