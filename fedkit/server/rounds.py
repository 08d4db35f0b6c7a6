"""The whole algorithm, for any fleet and any method.

`run_rounds` is everything the server does. It talks to a `Dispatcher`: `LocalFleet` below is one
process, `fedkit.flower.fleet.FlowerFleet` sends the same packets through Flower. Both give the
same bits for the same seed. What a method does differently stands in its row, see
`fedkit.methods.interface`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedkit.config import RunConfig
from fedkit.core.side_by_side import side_by_side
from fedkit.core.spill import Spill
from fedkit.device.memory import MEMORIES, LastingMemory
from fedkit.device.round import Device
from fedkit.engine.base import Engine, Replicable, measure
from fedkit.methods.exact_norms import last_statistics
from fedkit.methods.interface import (
    Aggregated,
    Answer,
    Dispatcher,
    Method,
    Opened,
    Opening,
    Phase,
    Request,
    changed_model,
    whole_model,
)
from fedkit.methods.registry import load_method
from fedkit.methods.server_training import train_dense
from fedkit.methods.travel import Travel, check_dense, check_travel, opening_config
from fedkit.server.aggregation import aggregate, shares
from fedkit.server.device_metric import DeviceMetric, ask_devices, device_measure, is_due
from fedkit.server.participation import OPENING, choice
from fedkit.server.privacy import check_private, opening_fleet, own_statistics, private_model
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples, Task
from fedkit.wire import messages
from fedkit.wire.messages import Packet, Update, Wire
from fedkit.wire.validation import admit_update

if TYPE_CHECKING:
    from torch import nn

StepPhase = Literal["start", "selection", "round"]
"""What a report is about: the dense start, the first sparse model, or a round of training."""


class LocalFleet:
    """A fleet in this process: packets go through the codec but over no network.

    What devices remember is in memory as far as it fits (`fedkit.core.spill.MOST`), then in files.

    Args:
        devices: All of them, with one engine.
        folder: Where devices keep what another process must know to go on; None keeps nothing.
        workers: Devices that compute at the same time, in threads; an engine that has no replica
            computes for one after the other. The bits are the same for any number.
    """

    def __init__(
        self, devices: Sequence[Device], folder: Path | None = None, workers: int = 1
    ) -> None:
        self._workers = workers
        self._devices, self._folder = devices, folder
        self._memories = Spill(MEMORIES)
        self._chosen: Sequence[int] = range(len(devices))
        self._spare: frozenset[int] = frozenset()
        self._acquainted: set[int] = set()
        self._trained: set[int] = set()
        self.traffic = (0, 0)

    def choose(self, order: Sequence[int], count: int, spare: int = 0) -> None:
        """See `Dispatcher.choose`; every device is there, and they answer in that order."""
        self._chosen = sorted(order[: count + spare])
        self._spare = frozenset(order[count : count + spare])

    def exchange(
        self, phase: Phase, request: Request, read: Callable[[Packet], Answer]
    ) -> list[Answer]:
        """See `Dispatcher.exchange`; all that were chosen answer, and what is wrong is raised."""
        replies = dict[int, Packet]()
        if request.short is not None:
            known = [index for index in self._chosen if index in self._acquainted]
            replies |= self._counted(phase, request.short, known) if known else {}
        if request.again is not None:
            known = [n for n in self._chosen if n in self._trained and n not in replies]
            replies |= self._counted(phase, request.again(), known) if known else {}
        if strange := [index for index in self._chosen if index not in replies]:
            replies |= self._counted(phase, request.whole(), strange)
        taken = [index for index in self._chosen if index not in self._spare]
        self._acquainted = set(taken)
        if phase in ("train", "evaluate"):
            self._trained |= self._acquainted
        return [read(replies[index]) for index in taken]

    def _counted(self, phase: Phase, request: Packet, asked: Sequence[int]) -> dict[int, Packet]:
        replies = self.answers(phase, request, asked)
        self._count(request.nbytes * len(asked), sum(reply.nbytes for reply in replies))
        return dict(zip(asked, replies, strict=True))

    def answers(self, phase: Phase, request: Packet, asked: Sequence[int]) -> list[Packet]:
        """Return the replies of some devices, and remember for each what it remembers."""

        def answering(engine: Engine | None) -> Callable[[int], Packet]:
            def answer(index: int) -> Packet:
                device, memory = self._devices[index], self.memory(index)
                own = device if engine is None else replace(device, engine=engine)
                reply, memory = self._answer(own, phase, request, memory)
                self._memories.put(index, memory)
                return reply

            return answer

        return side_by_side([answering(engine) for engine in self._engines], asked)

    def memory(self, index: int) -> Packet:
        """Return what a device remembers."""
        return self._memories.get(index) or Packet({})

    @functools.cached_property
    def _engines(self) -> list[Engine | None]:
        """An engine for each worker; None is each device's own."""
        engine = self._devices[0].engine
        if self._workers == 1 or not isinstance(engine, Replicable):
            return [None]
        return [engine.replica() for _ in range(self._workers)]

    def _answer(
        self, device: Device, phase: Phase, request: Packet, memory: Packet
    ) -> tuple[Packet, Packet]:
        if self._folder is None:
            return device.handle(phase, request, memory)
        kept = LastingMemory(self._folder / str(device.index))
        memory = memory if memory.arrays else kept.before(phase, request)
        reply, memory = device.handle(phase, request, memory)
        kept.keep(phase, request, memory, reply)
        return reply, memory

    def _count(self, down: int, up: int) -> None:
        self.traffic = (self.traffic[0] + down, self.traffic[1] + up)


class Channel:
    """A fleet at the end of a wire: values leave in its width.

    Args:
        fleet: The devices.
        wire: Width of values; devices answer in it too.
    """

    def __init__(self, fleet: Dispatcher, wire: Wire) -> None:
        self._fleet, self._wire, self._taken = fleet, wire, fleet.traffic

    @property
    def traffic(self) -> tuple[int, int]:
        """See `fedkit.methods.interface.Dispatcher.traffic`."""
        return self._fleet.traffic

    def choose(self, order: Sequence[int], count: int, spare: int = 0) -> None:
        """See `fedkit.methods.interface.Dispatcher.choose`."""
        self._fleet.choose(order, count, spare)

    def exchange(
        self, phase: Phase, request: Request, read: Callable[[Packet], Answer]
    ) -> list[Answer]:
        """See `fedkit.methods.interface.Dispatcher.exchange`."""
        narrow = functools.partial(messages.narrow, wire=self._wire)
        return self._fleet.exchange(phase, request.changed(narrow), read)

    def take(self) -> tuple[int, int]:
        """Return the payload bytes (down, up) since the last call."""
        (down, up), self._taken = self._taken, self.traffic
        return self._taken[0] - down, self._taken[1] - up


@dataclass(frozen=True)
class Report:
    """The model after one step of a run, and what the step cost.

    Attributes:
        phase: What the step was.
        round: 0 before training, then from 1.
        accuracy: The task's metric of the server's model on the test data; None in a round that
            `measure_every` leaves out.
        loss: Sample-weighted mean training loss of the devices; for a selection the candidate's,
            None where no device was asked or the run is private.
        density: Kept share of the prunable weights, counted from the masks.
        bytes_down: Payload the server sent in this step, summed over the devices.
        bytes_up: Payload the devices sent.
        state: The server's model.
        devices: The metric of devices on data they hold out, after a round that asks for it.
    """

    phase: StepPhase
    round: int
    accuracy: float | None
    loss: float | None
    density: float
    bytes_down: int
    bytes_up: int
    state: ModelState
    devices: DeviceMetric | None = None

    @property
    def figures(self) -> dict[str, Any]:
        """All of it but the model, as a record says it."""
        own = {key: value for key, value in vars(self).items() if key not in ("state", "devices")}
        return {**own, **(self.devices.figures if self.devices else {})}


class Server:
    """The server's side of a run: what it knows, and how it measures a step."""

    def __init__(self, config: RunConfig, task: Task, engine: Engine, test: Examples) -> None:
        self.config, self.task, self.engine, self.test = config, task, engine, test

    @functools.cached_property
    def method(self) -> Method:
        """What the fleet runs."""
        return load_method(self.config.method)

    @functools.cached_property
    def parts(self) -> Travel:
        """What of the model travels."""
        return Travel.of(self.config, self.engine)

    def module(self, state: ModelState) -> nn.Module:
        """Return the task's torch module loaded with `state`, whatever engine trained it."""
        from fedkit.engine.torch import TorchEngine

        return TorchEngine.for_task(self.task, self.config.model, self.config.seed).module(state)

    def report(
        self,
        phase: StepPhase,
        number: int,
        state: ModelState,
        loss: float | None,
        traffic: tuple[int, int] = (0, 0),
        devices: DeviceMetric | None = None,
    ) -> Report:
        """Measure `state` on the test data, if it is time."""
        due = number % self.config.measure_every == 0 or number == self.config.rounds
        accuracy = self._accuracy(state) if due else None
        return Report(phase, number, accuracy, loss, state.density, *traffic, state, devices)

    def _accuracy(self, state: ModelState) -> float | None:
        return measure(self.engine, state, self.test, self.task.measure)


@dataclass(frozen=True)
class StoredStep:
    """A step of a run that was stored, to go on after.

    Attributes:
        phase: What the step was.
        round: Its round.
        state: The server's model after it.
    """

    phase: StepPhase
    round: int
    state: ModelState


def run_rounds(
    server: Server,
    fleet: Dispatcher,
    server_data: Examples | None,
    dense: ModelState | None = None,
    after: StoredStep | None = None,
) -> Iterator[Report]:
    """Run the config's method to the end, reporting after every step.

    Args:
        server: The server's model, config and test data.
        fleet: The devices.
        server_data: The server's own examples for the dense start; None trains nothing.
        dense: The dense start, where it is known already.
        after: The last step of a run that ended early. What follows equals, bit for bit, what
            would have followed, as long as the same devices answer.

    Raises:
        ConfigError: The run is to be private (`dp_clip`) and would not be.
    """
    config, channel = server.config, Channel(fleet, server.config.wire)
    check_private(config, server.method)
    parts = check_travel(config, server.method, server.engine)
    if after is None or after.phase == "start":
        if after is None:
            state = dense_start(server, server_data) if dense is None else dense
            yield server.report("start", 0, state, None)
        else:
            state = after.state
        _choose(channel, config, OPENING)
        shape = server.test.inputs.shape[1:]
        opened = server.method.start(
            Opening(
                *(opening_config(config, parts), server.engine, state, server_data),
                *(opening_fleet(config, channel), server.module, shape),
            )
        )
        check_dense(config, parts, opened.state.masks)
        if opened.state is not state:
            yield server.report("selection", 0, opened.state, opened.loss, channel.take())
    else:
        opened = Opened(after.state, whole_model(after.state))
    state, request = opened.state, opened.request
    for number in range(after.round + 1 if after else 1, config.rounds + 1):
        sent = state
        _choose(channel, config, number)
        state, loss = train_round(server, channel, request, sent, number)
        if config.dp_clip:
            state = own_statistics(server.engine, state, server_data)
        elif number == config.rounds and config.bn_merge in ("exact", "exact-last"):
            shape = server.test.inputs.shape[1:]
            state = last_statistics(config, server.engine, shape, channel, state, number)
        request = changed_model(state, sent.masks, parts.shared)
        devices = None
        if is_due(config, number) and (measured := device_measure(config, server.task)):
            devices = ask_devices(channel, request, measured, server.task.measure, number)
            request = changed_model(state, state.masks, parts.shared)
        yield server.report("round", number, state, loss, channel.take(), devices)


def _choose(fleet: Dispatcher, config: RunConfig, number: int) -> None:
    """Draw who takes part in a round, where not every device does."""
    if (chosen := choice(config, number)) is not None:
        fleet.choose(*chosen)


def dense_start(server: Server, server_data: Examples | None) -> ModelState:
    """Return the dense model, pre-trained on the server's own examples if there are any."""
    engine = server.engine
    return train_dense(server.config, engine, engine.initial_state(), server_data)


def train_round(
    server: Server, fleet: Dispatcher, request: Request, sent: ModelState, number: int
) -> tuple[ModelState, float | None]:
    """Train once on every device, aggregate, and let the method change the masks.

    Args:
        server: The server.
        fleet: The devices.
        request: The model, as the devices are to receive it.
        sent: That model; devices answer with what they changed in it.
        number: The round, from 1.

    Returns:
        The next model, and the devices' mean training loss, which a private run keeps to itself.
    """
    config, method, shared = server.config, server.method, server.parts.shared
    layers = method.layers(config, shared.layout.prunable, number)
    received = messages.as_received(sent, config.wire)
    told = shared.of(received)

    def read(reply: Packet) -> Update:
        return admit_update(
            *(reply, shared.layout, told, config, number, layers),
            *(method.own_masks, method.entries),
        )

    def numbered(packet: Packet) -> Packet:
        return Packet(packet.arrays, {**packet.numbers, "round": number})

    updates = fleet.exchange("train", request.changed(numbered), read)
    if config.dp_clip:
        noisy = private_model(config, told, updates)
        # What a method makes of the noisy model alone tells no more than that does.
        private = method.adjust(Aggregated(config, number, told.masks, noisy, (), ()))
        return shared.into(received, private), None
    parts = shares(updates)
    merged = aggregate(config, updates, parts, server.engine.absolute_norms)
    state = method.adjust(Aggregated(config, number, told.masks, merged, updates, parts))
    loss = float(np.dot(parts, [update.loss for update in updates]))
    return shared.into(received, state), loss
