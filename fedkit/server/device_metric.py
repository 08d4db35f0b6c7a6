"""How good the model is on devices' own data: each measures what it held out of training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedkit.config import RunConfig
from fedkit.core.errors import ConfigError
from fedkit.methods.interface import Dispatcher, Request
from fedkit.tasks.metrics import Measure
from fedkit.tasks.metrics.as_text import metric_text
from fedkit.tasks.task import Metric, Task
from fedkit.wire import messages
from fedkit.wire.messages import Packet
from fedkit.wire.validation import admit_value

_PARTS = (0, 0.25, 0.5, 0.75, 1)


@dataclass(frozen=True)
class DeviceMetric:
    """A metric of devices; each counts alike, whatever it holds.

    Attributes:
        mean: Over the devices.
        spread: Their standard deviation.
        worst: Mean of the worst tenth of them, rounded up to whole devices.
        least: The smallest value.
        lower: Their lower quartile, by linear interpolation as the following two.
        median: Their median.
        upper: Their upper quartile.
        most: The largest value.
        devices: How many there are.
    """

    mean: float
    spread: float
    worst: float
    least: float
    lower: float
    median: float
    upper: float
    most: float
    devices: int

    @classmethod
    def of(cls, values: Sequence[float], higher_is_better: bool) -> DeviceMetric:
        """Sum up the values of one device or more."""
        ordered = np.sort(np.array(values, np.float64))
        worst_first = ordered if higher_is_better else ordered[::-1]
        tenth = worst_first[: math.ceil(len(ordered) / 10)]
        least, lower, median, upper, most = map(float, np.quantile(ordered, _PARTS))
        mean, spread, worst = float(ordered.mean()), float(ordered.std()), float(tenth.mean())
        return cls(mean, spread, worst, least, lower, median, upper, most, len(ordered))

    @property
    def figures(self) -> dict[str, float | int]:
        """What a run's record says of it."""
        return {
            f"devices_{key}": value for key, value in vars(self).items() if key != "devices"
        } | {"devices_measured": self.devices}


def device_measure(config: RunConfig, task: Task) -> Measure | None:
    """Return what devices measure; None where they do not.

    Raises:
        ConfigError: The task's metric is a function of its own, which devices do not have.
    """
    if not config.device_eval:
        return None
    if not isinstance(task.measure.measure, Measure):
        raise ConfigError(
            f"device_eval is {config.device_eval}, and the metric {task.measure.name!r} of task "
            f"{task.name!r} is a function of its own, which devices do not have: give the task "
            "one of fedkit.tasks.metrics, or leave device_eval at 0"
        )
    return task.measure.measure


def is_due(config: RunConfig, number: int) -> bool:
    """Say whether devices measure after round `number`: every so many rounds, and the last."""
    every = config.device_eval
    return bool(every) and (number % every == 0 or number == config.rounds)


def ask_devices(
    fleet: Dispatcher, model: Request, measure: Measure, metric: Metric, number: int
) -> DeviceMetric | None:
    """Let devices measure a model.

    Args:
        fleet: Those that were chosen for the round.
        model: The message that brings the model.
        measure: What they measure.
        metric: The same, as the task shows it.
        number: The round.

    Returns:
        What they found; None where the metric has a value on no device.
    """

    def asking(packet: Packet) -> Packet:
        about: dict[str, int | str] = {"round": number, messages.METRIC: metric_text(measure)}
        return Packet(packet.arrays, {**packet.numbers, **about})

    told = fleet.exchange(
        "evaluate", model.changed(asking), lambda reply: admit_value(reply, number)
    )
    values = [value for value in told if value is not None]
    return DeviceMetric.of(values, metric.higher_is_better) if values else None
