"""What a run consists of: its configuration, its task, and the data of this process."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedkit.config import RunConfig
from fedkit.core.errors import ConfigError, DataError, TaskError
from fedkit.core.text import listed
from fedkit.device.held_out import device_of
from fedkit.device.round import Device
from fedkit.engine.base import Engine
from fedkit.methods.registry import load_method, resolve
from fedkit.methods.schedule import local_training
from fedkit.methods.travel import check_travel, first_counts
from fedkit.server.checkpoint import RunFolder
from fedkit.server.device_metric import device_measure
from fedkit.server.participation import check_participation
from fedkit.server.privacy import check_private
from fedkit.server.rounds import LocalFleet, Server
from fedkit.server.shares import Indices, Shares
from fedkit.sparse.counts import round_share
from fedkit.sparse.reach import Reach
from fedkit.sparse.state import ModelState
from fedkit.tasks import load_task
from fedkit.tasks.lazy_array import pieces
from fedkit.tasks.task import Examples, Task

if TYPE_CHECKING:
    from torch import nn

    from fedkit.engine.sparse.engine import SparseEngine

Split = Literal["train", "test"]

_MARKED = 256
"""Inputs, at most twice as many, that a mark of examples is made from."""


@dataclass(frozen=True)
class Scenario:
    """The data of a fleet, as far as this process knows them.

    Attributes:
        config: The run.
        task: Its task.
        server_data: The server's own examples, drawn i.i.d. from the training data; may be None.
        devices: Examples per device; disjoint from each other and from the server's. Empty where
            real devices hold their own.
        test: What the server measures on.
        marks: A mark of the examples that each function of the task returned.
        shares: Which of the training data server and simulated devices hold.
    """

    config: RunConfig
    task: Task
    server_data: Examples | None
    devices: list[Examples]
    test: Examples
    marks: Mapping[Split, int] = field(default_factory=dict)
    shares: Shares | None = None

    @property
    def engine(self) -> Engine:
        """The engine that server and devices of this process share; it keeps no state."""
        return self._engine[0]

    @functools.cached_property
    def server_engine(self) -> Engine:
        """The same without a bound on memory: that is of devices, and the server trains dense."""
        bounded = self._bounded
        return self.engine if bounded is None else bounded.within(None)

    @functools.cached_property
    def memory_notice(self) -> str:
        """What training within the run's memory does and takes; "" where nothing bounds it.

        Raises:
            EngineError: It does not fit.
        """
        from fedkit.engine.sparse.budget import budget

        if (engine := self._bounded) is None or not self.devices:
            return ""
        largest = max(self.devices, key=len)
        return budget(
            engine, first_counts(self.config, engine), largest, self.config.batch_size
        ).line()

    @property
    def _bounded(self) -> SparseEngine | None:
        """The engine, where its memory is bounded."""
        from fedkit.engine.sparse.engine import SparseEngine

        engine = self.engine
        return engine if isinstance(engine, SparseEngine) and engine.memory is not None else None

    @property
    def reach(self) -> Reach:
        """Which weights of the model can be pruned."""
        return Reach.of(self.engine.layout)

    @property
    def warnings(self) -> list[str]:
        """What is allowed, and yet hardly what was meant."""
        found = [self.reach.warning(self.config.density)]
        if self.devices and self.task.classifies:
            held = np.unique(np.concatenate([share.classes for share in self.devices]))
            if len(missing := np.setdiff1d(self.test.classes, [*held, *self._ignored])):
                found.append(
                    f"no device holds examples of {listed('class', missing.tolist())}, which the "
                    "test data has; the devices cannot teach the model to tell them"
                )
        if self.config.local:
            found.append(
                f"devices keep {self.config.local} to themselves, and the server's model has what "
                "that was before training: its value on the test data is no device's"
            )
        return [text for text in found if text]

    @property
    def _ignored(self) -> list[int]:
        """Targets that are no class."""
        return [] if self.task.ignored is None else [self.task.ignored]

    @property
    def engine_notice(self) -> str:
        """Which engine that is, and why."""
        return self._engine[1]

    @functools.cached_property
    def _engine(self) -> tuple[Engine, str]:
        from fedkit.engine.choose import make_engine  # torch, which a look at a run does not need

        config = self.config
        return make_engine(self.task, config.model, config.seed, *config.engine_wishes)

    @functools.cached_property
    def backbone(self) -> ModelState | None:
        """The dense start of another run's last model, where the config names one.

        Its pruned weights are zeros to begin with.

        Raises:
            CheckpointError: There is no such run, or it cannot be read.
            ConfigError: Its model is another.
        """
        if not self.config.backbone:
            return None
        found = RunFolder.open(Path(self.config.backbone)).load()
        if found.layout != self.engine.layout:
            raise ConfigError(
                f"the model of backbone {self.config.backbone} has other tensors than this run's; "
                "take a run of the same model, with as many outputs"
            )
        masks = {name: np.ones_like(mask) for name, mask in found.state.masks.items()}
        return found.state.with_masks(masks)

    def module(self, state: ModelState) -> nn.Module:
        """Return the task's torch module loaded with `state`, whatever engine trained it."""
        return self.server().module(state)

    def device(self, index: int) -> Device:
        """Build device `index`."""
        return device_of(index, self.devices[index], self.engine, self.config)

    def server(self) -> Server:
        """Build the server."""
        return Server(self.config, self.task, self.server_engine, self.test)

    def check(self) -> None:
        """Try what can be tried in a second, so that a bad run fails before it starts.

        Raises:
            ConfigError: The density cannot be reached with these layers and exemptions, or the run
                would not be private though it is asked to be.
            TaskError: Model, inputs, targets, loss and metric of the task do not fit together, or
                its data changes from call to call.
        """
        from fedkit.engine.trial import try_task

        method = load_method(self.config.method)
        check_private(self.config, method)
        check_participation(self.config)
        engine = self.engine
        check_travel(self.config, method, engine)
        _ = self.backbone
        first_counts(self.config, engine)
        how = local_training(self.config, epochs=1, lr=self.config.lr)
        device_measure(self.config, self.task)
        trained = [self.device(index).examples for index in range(len(self.devices))]
        whole = self.task.examples("train") if "train" in self.marks else self.server_data
        try_task(self.task, self.server_engine, [self.test, *trained], how, whole)
        _ = self.memory_notice
        self._check_steady()

    def _check_steady(self) -> None:
        for which, expected in self.marks.items():
            if mark(self.task.examples(which)) != expected:
                raise TaskError(
                    f"{which}_data of task {self.task.name!r} returned other examples when it was "
                    "called again; every process of a run calls it, and all must get the same: "
                    "seed it, or load the data once and keep it"
                )

    def local_fleet(self, folder: Path | None = None, workers: int = 1) -> LocalFleet:
        """Build all devices in this process.

        Args:
            folder: Run folder that keeps what they must not forget, for a run that goes on later.
            workers: Devices that compute at the same time; see `LocalFleet`.
        """
        devices = [self.device(index) for index in range(len(self.devices))]
        return LocalFleet(devices, None if folder is None else folder / "devices", workers)


def with_model_named(config: RunConfig) -> RunConfig:
    """Return the config with the task's model by name, if it has a name, so that records tell it.

    Raises:
        TaskError: There is no such task.
    """
    model = load_task(config.task).model
    if config.model or not isinstance(model, str):
        return config
    return config.changed(model=model)


def server_scenario(config: RunConfig) -> Scenario:
    """Make what the server of real devices needs: they hold their own data, so none is split.

    The server's own examples are the same share of the task's training data as in a simulation,
    which is not loaded where that share is 0.

    Raises:
        TaskError: There is no such task.
        DataError: The data is missing, or nothing is left to measure on.
    """
    config, task = resolve(config), load_task(config.task)
    test = test_examples(task, config)
    if len(test) == 0:
        raise DataError(f"task {task.name!r} has no test examples; the server measures on them")
    if not config.server_share:
        return Scenario(config, task, None, [], test)
    train = task.examples("train")
    return Scenario(config, task, own(train, server_share(len(train), config)[0]), [], test)


def test_examples(task: Task, config: RunConfig) -> Examples:
    """Return what a run is measured on; needs no training data and no partition."""
    return first(task.examples("test"), config.test_examples)


def mark(examples: Examples) -> int:
    """Return a number that tells these examples from others: of all targets and some inputs."""
    some = examples.inputs[:: max(1, len(examples) // _MARKED)]
    found = zlib.crc32(f"{examples.inputs.shape} {examples.targets.shape}".encode())
    for _, targets in pieces(examples.targets):
        found = zlib.crc32(targets.tobytes(), found)
    return zlib.crc32(some.tobytes(), found)


def server_share(examples: int, config: RunConfig) -> tuple[Indices, Indices]:
    """Return which of so many examples are the server's own, drawn at random, and all others."""
    count = round_share(config.server_share, examples)
    count = count if count >= 2 else 0  # One example trains nothing; a device can use it.
    order = np.random.default_rng([config.seed, 5]).permutation(examples)
    return np.sort(order[:count]), np.sort(order[count:])


def own(train: Examples, indices: Indices) -> Examples | None:
    """Return the server's own examples, or None where it has none."""
    return train.take(indices) if len(indices) else None


def first(examples: Examples, count: int) -> Examples:
    """Return the first `count` examples, all for 0; a share's order is random already."""
    return examples.take(np.arange(min(count, len(examples)))) if count else examples
