"""How a fleet is doing, gathered from its events: for `fedkit fleet status` and for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from fedkit.core.errors import TaskError
from fedkit.server.events import read_events
from fedkit.tasks.task import ACCURACY, Metric

METRICS = "metrics.prom"
"""Name of the file in a run folder that Prometheus's node exporter can collect."""


@dataclass
class DeviceStatus:
    """What the server knows of one device.

    Attributes:
        answers: Replies that were taken in.
        refused: Replies that were refused.
        failed: Messages that it could not answer.
        absent: Steps that closed without it.
        bytes_up: Of its messages.
        peak_bytes: Memory that its process held at most, as it said last.
        seen: When it answered last, in seconds since 1970; 0: never.
        quarantined: Whether it is not asked any more.
    """

    answers: int = 0
    refused: int = 0
    failed: int = 0
    absent: int = 0
    bytes_up: int = 0
    peak_bytes: int = 0
    seen: float = 0.0
    quarantined: bool = False


@dataclass
class FleetStatus:
    """What the server knows of a run.

    Attributes:
        rounds: How many there are to be.
        round: The last one that ended.
        accuracy: Of the server's model when it was measured last; the value of `metric`, where the
            task has another one.
        metric: What a `Metric` says about itself; None for accuracy.
        density: Of that model.
        bytes_down: Payload that left the server.
        bytes_up: Payload that came back.
        devices: By index.
    """

    rounds: int = 0
    round: int = 0
    accuracy: float = 0.0
    metric: Mapping[str, Any] | None = None
    density: float = 1.0
    bytes_down: int = 0
    bytes_up: int = 0
    devices: dict[int, DeviceStatus] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Path) -> Self:
        """Gather what a log tells; a line that is not one of our events is skipped."""
        status = cls()
        for event in read_events(events):
            if _is_ours(event):
                status.add(event)
        return status

    @property
    def measure(self) -> Metric:
        """What `accuracy` is a value of; accuracy too where the record of it is damaged."""
        try:
            return Metric.of(self.metric)
        except TaskError:
            return ACCURACY

    def add(self, event: dict[str, Any]) -> None:
        """Take in one event."""
        if event["event"] == "serve":
            self.rounds = event["rounds"]
            for index in range(event["devices"]):
                self.devices.setdefault(index, DeviceStatus())
        elif event["event"] == "step":
            self._step(event)
        elif event.get("device", -1) in self.devices:
            self._device(self.devices[event["device"]], event)

    def _step(self, event: dict[str, Any]) -> None:
        self.round, self.density = event["round"], event["density"]
        self.accuracy = self.accuracy if event["accuracy"] is None else event["accuracy"]
        self.metric = event.get("metric")
        self.bytes_down += event["bytes_down"]
        self.bytes_up += event["bytes_up"]

    def _device(self, device: DeviceStatus, event: dict[str, Any]) -> None:
        counts = Counter({event["event"]: 1})
        device.refused += counts["refused"]
        device.failed += counts["failed"]
        device.absent += counts["absent"]
        device.quarantined |= bool(counts["quarantined"])
        if counts["answer"]:
            device.answers += 1
            device.bytes_up += event["bytes"]
            device.peak_bytes = event["peak_bytes"]
            device.seen = event["time"]

    def write(self, path: Path) -> None:
        """Write the status in Prometheus's text format, whole."""
        registry = CollectorRegistry()
        for name in ("rounds", "round", "accuracy", "density", "bytes_down", "bytes_up"):
            told = _HELP[name]
            if name == "accuracy" and self.metric is not None:
                told = f"{self.measure.name} {told}"
            Gauge(f"fedkit_{name}", told, registry=registry).set(getattr(self, name))
        for name in vars(DeviceStatus()):
            gauge = Gauge(f"fedkit_device_{name}", _HELP[name], ["device"], registry=registry)
            for index, device in self.devices.items():
                gauge.labels(index).set(float(getattr(device, name)))
        write_to_textfile(str(path), registry)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_value(value: object) -> bool:
    """Whether it is a number that a float holds; one that diverged is a value too."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


_FIELDS: dict[str, dict[str, Callable[[object], bool]]] = {
    "serve": {"rounds": _is_count, "devices": _is_count},
    "step": {
        "round": _is_count,
        "density": _is_value,
        "accuracy": lambda value: value is None or _is_value(value),
        "bytes_down": _is_count,
        "bytes_up": _is_count,
    },
    "answer": {"device": _is_count, "bytes": _is_count, "peak_bytes": _is_count, "time": _is_value},
}
"""What the status reads of an event, and whether it can be."""

_MOST_DEVICES = 1_000_000


def _is_ours(event: dict[str, Any]) -> bool:
    """Whether an event of a file holds what `FleetStatus.add` reads."""
    fields = _FIELDS.get(event["event"], {})
    whole = all(key in event and good(event[key]) for key, good in fields.items())
    named = isinstance(event.get("device", 0), int)
    return whole and named and (event["event"] != "serve" or event["devices"] <= _MOST_DEVICES)


_HELP = {
    "rounds": "rounds of the run",
    "round": "last round that ended",
    "accuracy": "of the server's model, measured last",
    "density": "kept share of the prunable weights",
    "bytes_down": "payload that left the server",
    "bytes_up": "payload that came back",
    "answers": "replies taken in",
    "refused": "replies refused",
    "failed": "messages that could not be answered",
    "absent": "steps that closed without the device",
    "peak_bytes": "most memory of the device's process",
    "seen": "last answer, seconds since 1970",
    "quarantined": "1 if the device is not asked any more",
}
