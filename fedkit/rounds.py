"""The whole algorithm, for any fleet and any method.

`run_rounds` is everything the server does. It talks to a `Fleet`: `LocalFleet` below is one
process, `fedkit.flower.fleet.FlowerFleet` sends the same packets through Flower. Both give the
same bits for the same seed. What a method does differently stands in its row, see `fedkit.method`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit import messages
from fedkit.baselines import load_method
from fedkit.config import RunConfig
from fedkit.device import Device
from fedkit.engine.base import Engine
from fedkit.fedtiny.bn_selection import as_moments, as_stats, merge_norms
from fedkit.messages import Packet, Update, Wire
from fedkit.method import Aggregated, Fleet, Method, Opening, Phase
from fedkit.server_training import train_dense
from fedkit.sparse.state import ModelState, apply_masks, weighted_mean
from fedkit.task import Examples, Task

if TYPE_CHECKING:
    from torch import nn

Step = Literal["start", "selection", "round"]
"""What a report is about: the dense start, the first sparse model, or a round of training."""


class LocalFleet:
    """A fleet in this process: packets go through the codec but over no network."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices
        self._memories = [Packet({})] * len(devices)

    def exchange(self, phase: Phase, request: Packet) -> list[Packet]:
        """See `Fleet.exchange`."""
        answers = [
            device.handle(phase, request, memory)
            for device, memory in zip(self._devices, self._memories, strict=True)
        ]
        self._memories = [memory for _, memory in answers]
        return [reply for reply, _ in answers]


class Channel:
    """A fleet at the end of a wire: values leave in its width, and what travels is channel.

    Args:
        fleet: The devices.
        wire: Width of values; devices answer in it too.
    """

    def __init__(self, fleet: Fleet, wire: Wire) -> None:
        self._fleet, self._wire, self._down, self._up = fleet, wire, 0, 0

    def exchange(self, phase: Phase, request: Packet) -> list[Packet]:
        """See `Fleet.exchange`."""
        request = messages.narrow(request, self._wire)
        replies = self._fleet.exchange(phase, request)
        self._down += request.nbytes * len(replies)
        self._up += sum(reply.nbytes for reply in replies)
        return replies

    def take(self) -> tuple[int, int]:
        """Return the payload bytes (down, up) so far, and begin again at none."""
        taken, self._down, self._up = (self._down, self._up), 0, 0
        return taken


@dataclass(frozen=True)
class Report:
    """The model after one step of a run, and what the step cost.

    Attributes:
        phase: What the step was.
        round: 0 before training, then from 1.
        accuracy: The task's metric of the server's model on the test data; None in a round that
            `measure_every` leaves out.
        loss: Sample-weighted mean training loss of the devices; for a selection the candidate's,
            None where no device was asked.
        density: Kept share of the prunable weights, channel from the masks.
        bytes_down: Payload the server sent in this step, summed over the devices.
        bytes_up: Payload the devices sent.
        state: The server's model.
    """

    phase: Step
    round: int
    accuracy: float | None
    loss: float | None
    density: float
    bytes_down: int
    bytes_up: int
    state: ModelState


class Server:
    """The server's side of a run: what it knows, and how it measures a step."""

    def __init__(self, config: RunConfig, task: Task, engine: Engine, test: Examples) -> None:
        self.config, self.task, self.engine, self.test = config, task, engine, test

    @functools.cached_property
    def method(self) -> Method:
        """What the fleet runs."""
        return load_method(self.config.method)

    def module(self, state: ModelState) -> nn.Module:
        """Return the task's torch module loaded with `state`, whatever engine trained it."""
        from fedkit.engine.torch import TorchEngine

        return TorchEngine.for_task(self.task, self.config.model, self.config.seed).module(state)

    def report(
        self,
        phase: Step,
        number: int,
        state: ModelState,
        loss: float | None,
        traffic: tuple[int, int] = (0, 0),
    ) -> Report:
        """Measure `state` on the test data, if it is time."""
        due = number % self.config.measure_every == 0 or number == self.config.rounds
        accuracy = self._accuracy(state) if due else None
        return Report(phase, number, accuracy, loss, state.density, *traffic, state)

    def _accuracy(self, state: ModelState) -> float:
        outputs = self.engine.outputs(state, self.test.inputs)
        return self.task.metric(outputs, self.test.targets)


def run_rounds(
    server: Server, fleet: Fleet, server_data: Examples | None, dense: ModelState | None = None
) -> Iterator[Report]:
    """Run the config's method to the end, reporting after every step.

    Args:
        server: The server's model, config and test data.
        fleet: The devices.
        server_data: The server's own examples for the dense start; None trains nothing.
        dense: The dense start, where it is known already.
    """
    config, channel = server.config, Channel(fleet, server.config.wire)
    state = dense_start(server, server_data) if dense is None else dense
    yield server.report("start", 0, state, None)
    shape = server.test.inputs.shape[1:]
    opened = server.method.start(
        Opening(config, server.engine, state, server_data, channel, server.module, shape)
    )
    if opened.state is not state:
        yield server.report("selection", 0, opened.state, opened.loss, channel.take())
    state, request = opened.state, opened.request
    for number in range(1, config.rounds + 1):
        sent = state
        state, loss = train_round(server, channel, request, sent, number)
        yield server.report("round", number, state, loss, channel.take())
        request = messages.pack_state(state, sent.masks)


def dense_start(server: Server, server_data: Examples | None) -> ModelState:
    """Return the dense model, pre-trained on the server's own examples if there are any."""
    engine = server.engine
    return train_dense(server.config, engine, engine.initial_state(), server_data)


def train_round(
    server: Server, fleet: Fleet, request: Packet, sent: ModelState, number: int
) -> tuple[ModelState, float]:
    """Train once on every device, aggregate, and let the method change the masks.

    Args:
        server: The server.
        fleet: The devices.
        request: The model, as the devices are to receive it.
        sent: That model; devices answer with what they changed in it.
        number: The round, from 1.

    Returns:
        The next model, and the devices' mean training loss.
    """
    config, layout, method = server.config, server.engine.layout, server.method
    request = Packet(request.arrays, {**request.numbers, "round": number})
    replies = fleet.exchange("train", request)
    layers = method.layers(config, layout.prunable, number)
    bits, received = config.uplink_bits, messages.as_received(sent, config.wire)
    updates = [
        messages.read_update(reply, layout, received, layers, method.own_masks, bits)
        for reply in replies
    ]
    parts = shares(updates)
    merged = aggregate(config, updates, parts)
    state = method.adjust(Aggregated(config, number, sent.masks, merged, updates, parts))
    return state, float(np.dot(parts, [update.loss for update in updates]))


def shares(updates: Sequence[Update]) -> list[float]:
    """Return |D_k| / |D| per update."""
    total = sum(update.examples for update in updates)
    return [update.examples / total for update in updates]


def aggregate(config: RunConfig, updates: Sequence[Update], parts: Sequence[float]) -> ModelState:
    """Average the weights by sample count in float64 and merge the norm statistics.

    A weight that not every device keeps is the mean over those that do.
    """
    states = [update.state for update in updates]
    weights = dict(weighted_mean([state.weights for state in states], parts))
    masks = dict(states[0].masks)
    for name, mask in states[0].masks.items():
        others = [state.masks[name] for state in states]
        if any(other is not mask and not np.array_equal(other, mask) for other in others):
            masks[name] = np.logical_or.reduce(others)
            weights[name] = _over_keepers(weights[name], others, parts)
    norms = [as_moments(update.state.stats, update.examples) for update in updates]
    stats = as_stats(merge_norms(norms, config.bn_merge))
    return ModelState(apply_masks(weights, masks), stats, masks)


def _over_keepers(
    mean: NDArray[np.float32], masks: Sequence[NDArray[np.bool_]], parts: Sequence[float]
) -> NDArray[np.float32]:
    """Scale means over all devices, where the others' weights are 0, to means over the keepers."""
    kept = sum((mask * part for mask, part in zip(masks, parts, strict=True)), np.zeros(mean.shape))
    return np.divide(mean, kept, out=np.zeros(mean.shape), where=kept > 0).astype(np.float32)
