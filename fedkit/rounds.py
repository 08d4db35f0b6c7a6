"""The whole algorithm, for any fleet.

`run_rounds` is everything the server does. It talks to a `Fleet`: `LocalFleet` below is one
process, `fedkit.flower.fleet.FlowerFleet` sends the same packets through Flower. Both give the
same bits for the same seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from fedkit import messages
from fedkit.config import RunConfig
from fedkit.device import Device, Phase
from fedkit.engine.base import Engine
from fedkit.fedtiny.bn_selection import (
    as_moments,
    as_stats,
    best_candidate,
    mean_losses,
    merge_norms,
    with_norms,
)
from fedkit.fedtiny.progressive import merge_entries, swap
from fedkit.messages import Packet, Update
from fedkit.plan import adjusting_block, block_quotas, local_training, pool_for
from fedkit.sparse.state import Masks, ModelState, Weights, apply_masks
from fedkit.task import Examples, Task

Step = Literal["start", "selection", "round"]
"""What a report is about: the dense start, the chosen candidate, or a round of training."""


class Fleet(Protocol):
    """Carries one request per device and brings the replies back in the order of the devices."""

    def exchange(self, phase: Phase, request: Packet) -> list[Packet]:
        """Send the same request to every device; return their replies by device index."""


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


@dataclass(frozen=True)
class Report:
    """The model after one step of a run, and what the step cost.

    Attributes:
        phase: What the step was.
        round: 0 before training, then from 1.
        accuracy: The task's metric of the server's model on the test data.
        loss: Sample-weighted mean training loss of the devices; for a selection the candidate's,
            for the start None.
        density: Kept share of the prunable weights, counted from the masks.
        bytes_down: Payload the server sent in this step, summed over the devices.
        bytes_up: Payload the devices sent.
        state: The server's model.
    """

    phase: Step
    round: int
    accuracy: float
    loss: float | None
    density: float
    bytes_down: int
    bytes_up: int
    state: ModelState


class Server:
    """The server's side of a run: what it knows, and how it measures a step."""

    def __init__(self, config: RunConfig, task: Task, engine: Engine, test: Examples) -> None:
        self.config, self.task, self.engine, self.test = config, task, engine, test

    def report(
        self,
        phase: Step,
        number: int,
        state: ModelState,
        loss: float | None,
        traffic: tuple[int, int] = (0, 0),
    ) -> Report:
        """Measure `state` on the test data."""
        outputs = self.engine.outputs(state, self.test.inputs)
        accuracy = self.task.metric(outputs, self.test.targets)
        return Report(phase, number, accuracy, loss, state.density, *traffic, state)


def run_rounds(server: Server, fleet: Fleet, server_data: Examples | None) -> Iterator[Report]:
    """Run FedTiny (or dense FedAvg) to the end, reporting after every step.

    Args:
        server: The server's model, config and test data.
        fleet: The devices.
        server_data: The server's own examples for the dense start; None trains nothing.
    """
    config = server.config
    state = dense_start(server, server_data)
    yield server.report("start", 0, state, None)
    if config.method == "dense":
        request = messages.pack_state(state, None)
    else:
        state, chosen, report = select(server, fleet, state)
        yield report
        request = Packet({}, {"candidate": chosen})  # A device has every candidate already.
    for number in range(1, config.rounds + 1):
        known = state.masks
        state, report = train_round(server, fleet, request, known, number)
        yield report
        request = messages.pack_state(state, known)


def dense_start(server: Server, server_data: Examples | None) -> ModelState:
    """Return the dense model, pre-trained on the server's own examples if there are any."""
    config, state = server.config, server.engine.initial_state()
    if server_data is None or config.server_epochs == 0:
        return state
    how = local_training(config, config.server_epochs, config.lr)
    trained, _ = server.engine.train(state, server_data, how, config.seed)
    return with_norms(trained, server.engine.norm_moments(trained, server_data))


def select(server: Server, fleet: Fleet, dense: ModelState) -> tuple[ModelState, int, Report]:
    """Adaptive BN selection in two phases; return the winner, its index and the report."""
    config, layout = server.config, server.engine.layout
    pool = pool_for(config, dense)
    first = messages.pack_pool(pool)
    replies = fleet.exchange("moments", first)
    moments = [messages.read_moments(reply, layout, len(pool)) for reply in replies]
    merged = [merge_norms(norms, config.bn_merge) for norms in zip(*moments, strict=True)]
    second = messages.pack_stats([as_stats(norms) for norms in merged])
    answers = fleet.exchange("losses", second)
    read = [messages.read_losses(answer, len(pool)) for answer in answers]
    losses = mean_losses(*zip(*read, strict=True))
    chosen = best_candidate(losses)
    state = with_norms(pool.candidate(chosen), merged[chosen])
    sent = np.add(traffic(first, replies), traffic(second, answers)).tolist()
    return state, chosen, server.report("selection", 0, state, float(losses[chosen]), sent)


def train_round(
    server: Server, fleet: Fleet, request: Packet, masks: Masks, number: int
) -> tuple[ModelState, Report]:
    """Train once on every device, aggregate, and adjust the masks if it is time.

    Args:
        server: The server.
        fleet: The devices.
        request: The model, as the devices are to receive it.
        masks: Its masks, under which the devices answer.
        number: The round, from 1.
    """
    config, layout = server.config, server.engine.layout
    request = Packet(request.arrays, {**request.numbers, "round": number})
    replies = fleet.exchange("train", request)
    block = adjusting_block(config, layout.prunable, number)
    updates = [messages.read_update(reply, layout, masks, block) for reply in replies]
    state = adjust(config, aggregate(config, updates), updates, block, number)
    loss = float(np.dot(shares(updates), [update.loss for update in updates]))
    return state, server.report("round", number, state, loss, traffic(request, replies))


def shares(updates: Sequence[Update]) -> list[float]:
    """Return |D_k| / |D| per update."""
    total = sum(update.examples for update in updates)
    return [update.examples / total for update in updates]


def aggregate(config: RunConfig, updates: Sequence[Update]) -> ModelState:
    """Average the weights by sample count in float64 and merge the norm statistics."""
    masks = updates[0].state.masks
    weights = weighted_mean([update.state.weights for update in updates], shares(updates))
    norms = [as_moments(update.state.stats, update.examples) for update in updates]
    return ModelState(
        apply_masks(weights, masks), as_stats(merge_norms(norms, config.bn_merge)), masks
    )


def weighted_mean(parts: Sequence[Weights], weights: Sequence[float]) -> Weights:
    """Return the mean per parameter, summed in float64 in the order given, as float32."""
    return {
        name: sum(
            (part[name] * np.float64(w) for part, w in zip(parts, weights, strict=True)),
            start=np.zeros(parts[0][name].shape),
        ).astype(np.float32)
        for name in parts[0]
    }


def adjust(
    config: RunConfig,
    state: ModelState,
    updates: Sequence[Update],
    block: Sequence[str],
    number: int,
) -> ModelState:
    """Swap weights of the block by the devices' merged gradients; no block, no change."""
    if not block:
        return state
    gradients = merge_entries([update.gradients for update in updates], shares(updates))
    return swap(state, gradients, block_quotas(config, state.masks, block, number))


def traffic(request: Packet, replies: Sequence[Packet]) -> tuple[int, int]:
    """Return payload bytes (down, up) of one exchange."""
    return request.nbytes * len(replies), sum(reply.nbytes for reply in replies)
