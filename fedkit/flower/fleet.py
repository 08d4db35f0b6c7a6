"""A fleet behind Flower's Grid: the server's end of the wire."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic

import httpx
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedkit.config import RunConfig
from fedkit.core.errors import FleetError, WireError
from fedkit.core.text import listed, terminal_text
from fedkit.flower.client_app import MESSAGE_TYPES
from fedkit.flower.run_config import check_nodes
from fedkit.flower.runtime import here, is_simulated, simulated_nodes
from fedkit.flower.wire import from_records, message_bytes, record_bytes, to_records
from fedkit.methods.interface import Answer, Phase, Request
from fedkit.sparse.counts import ceil_share
from fedkit.wire.messages import Packet, packet_digest, read_count

Log = Callable[..., None]
"""Takes the name of an event and its fields."""

OWN_NUMBERS = ("device", "digest", "peak_bytes")
"""What the transport adds to a reply's numbers: which device it is, what names the rest of the
reply, and the peak of the device's memory."""

_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.2, 2.0
_TELL_SECONDS = 10.0

_LONGEST_REASON = 1000
"""Characters of what a device says that are shown and logged."""

_OF_THE_APP = (
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
    ErrorCode.INVALID_FAB,
)
"""Errors that a device would answer with again. After others it is asked once more."""


def _silent(event: str, **fields: Any) -> None:
    del event, fields


def _pause(waited: float) -> float:
    """Return how long to leave the SuperLink alone: at most a fifth of the wait is added to it."""
    return min(max(_POLL_SECONDS, waited / 5), _LONGEST_POLL_SECONDS)


class FlowerFleet:
    """Implements `fedkit.methods.interface.Fleet` with a message to every node that is connected.

    Where devices are chosen, those that are connected when they are chosen are asked. Which node is
    which device must be known then: nodes without keys are asked for it once. Where more are asked
    than answers are taken, an exchange ends with the first ones; simulated devices count as quick
    as they were drawn early, so that a simulation takes the same answers each time.

    A device that does not answer is waited for until the config's `deadline`, and asked again when
    it comes back. Then the exchange ends with those that answered, if they are `min_share` of all;
    the next one does not wait for devices that are still not connected, but asks them as they
    come. A reply that cannot be read is refused; after `quarantine_after` of them its device is not
    asked any more.

    Args:
        grid: Flower's access to the nodes.
        config: The run: its devices, and the rules above.
        largest: Bytes of a reply's arrays above which it is refused unread.
        indices: Which device each node is, by its key, of all that may come; without it nodes are
            believed, but no two of them can be the same device.
        names: What people call the devices.
        log: Told of answers, refusals and absences, as they happen.

    Attributes:
        acquainted: Nodes that answered the last exchange, and know its model.
        trained: Nodes that have trained in this run, and know what of its model never changes.
        missed: How many devices it ended without that were not connected.
        traffic: See `fedkit.methods.interface.Fleet.traffic`.
        bytes_down: Bytes of all messages sent so far, as Flower transfers them.
        bytes_up: Bytes of all replies that were read.
    """

    message_types: Mapping[Phase, str] = MESSAGE_TYPES

    def __init__(
        self,
        grid: Grid,
        config: RunConfig,
        largest: int = 2**62,
        indices: Mapping[int, int] | None = None,
        log: Log = _silent,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self._grid, self._config, self._largest, self._log = grid, config, largest, log
        self._given, self._device_of = indices is not None, dict(indices or {})
        self._names = names or {}
        self._members = range(config.devices) if indices is None else sorted(indices.values())
        self._refusals: Counter[int] = Counter()
        self.acquainted: set[int] = set()
        self.trained: set[int] = set()
        self.missed = 0
        self._connected: set[int] = set()
        self._choice: tuple[Sequence[int], int, int] | None = None
        self._chosen: Mapping[int, int] | None = None
        self._in_turn = is_simulated(grid)
        self._introduced: set[int] = set()
        self.traffic, self.bytes_down, self.bytes_up = (0, 0), 0, 0
        self._wait_for_nodes()

    @property
    def asked(self) -> int:
        """Devices that an exchange asks."""
        return len(self._members if self._chosen is None else self._chosen)

    @property
    def wanted(self) -> int:
        """Answers that an exchange takes."""
        return self.asked if self._choice is None else min(self._choice[1], self.asked)

    @property
    def needed(self) -> int:
        """Answers without which an exchange fails."""
        return ceil_share(self._config.min_share, self.wanted)

    def choose(self, order: Sequence[int], count: int, spare: int = 0) -> None:
        """See `fedkit.methods.interface.Dispatcher.choose`."""
        self._choice, self._chosen, self.missed = (order, count, spare), None, 0

    def _resolve_choice(self) -> None:
        """Choose among those that are connected; what follows goes by that until told otherwise."""
        if self._choice is None or self._chosen is not None:
            return
        if unknown := self._connected - self._device_of.keys() - self._introduced:
            self._introduce(unknown)
        order, count, spare = self._choice
        there = {self._device_of[node] for node in self._connected & self._device_of.keys()}
        there -= {self._device_of.get(node) for node in self.quarantine}
        asked = [device for device in order if device in there][: count + spare]
        self._chosen = {device: turn for turn, device in enumerate(asked)}

    def _introduce(self, nodes: set[int]) -> None:
        """Ask nodes which devices they are, once: one that does not say so is not chosen."""
        self._introduced |= nodes
        request = Request(lambda: Packet({}))
        self._carry_out(_Exchange(self, "introduction", request, lambda reply: reply, nodes))

    def _wait_for_nodes(self) -> None:
        check_nodes(self._config, simulated_nodes(self._grid))
        config, deadline = self._config, time.monotonic() + self._config.deadline
        told, again = -1, 0.0
        devices = len(self._members)
        while len(nodes := self._look()) < devices and time.monotonic() < deadline:
            if len(nodes) != told or time.monotonic() >= again:
                told, again = len(nodes), time.monotonic() + _TELL_SECONDS
                self._tell_waiting(told, deadline - time.monotonic())
            time.sleep(_POLL_SECONDS)
        if len(nodes) < self.needed:
            raise FleetError(
                f"{len(nodes)} of {devices} devices connected within {config.deadline:.0f} "
                f"s, and {self.needed} are needed; start more nodes (num-supernodes), lower "
                "--devices or --min-share"
            )
        if len(nodes) > config.devices:
            raise FleetError(
                f"{len(nodes)} nodes are connected, the run has {config.devices} devices; set "
                f"num-supernodes={config.devices}, or devices={len(nodes)}"
            )

    def _tell_waiting(self, there: int, left: float) -> None:
        devices, others = len(self._members), "the others"
        if self._given:
            known = {self._device_of[node] for node in self._connected}
            others = self._named(sorted(set(self._members) - known))
        self._log("waiting", connected=there, devices=devices, seconds_left=round(left))
        print(
            f"{there} of {devices} devices are there; waiting up to {left:.0f} s for {others} "
            "(start more nodes, num-supernodes in a simulation, or set devices)",
            flush=True,
        )

    def _named(self, devices: Sequence[int]) -> str:
        """Return devices as people call them."""
        return listed("device", [self._names.get(device, str(device)) for device in devices])

    def _look(self) -> set[int]:
        """Ask Flower which nodes are connected; what follows goes by that until the next look."""
        nodes = set(self._grid.get_node_ids())
        self._connected = nodes & self._device_of.keys() if self._given else nodes
        return self._connected

    @property
    def quarantine(self) -> set[int]:
        """Nodes that sent too much that could not be read."""
        limit = self._config.quarantine_after
        return {node for node, count in self._refusals.items() if count >= limit}

    def exchange(
        self, phase: Phase, request: Request, read: Callable[[Packet], Answer]
    ) -> list[Answer]:
        """See `fedkit.methods.interface.Fleet.exchange`.

        Raises:
            FleetError: Fewer devices than needed answered in time, or can still answer.
        """
        self._look()
        self._resolve_choice()
        exchange = _Exchange(self, phase, request, read)
        self._carry_out(exchange, lambda: self._check(phase, exchange))
        if len(exchange.answers) < self.needed:
            raise self._too_few(phase, exchange)
        answers = self._taken(exchange)
        self.acquainted, self.missed = set(answers), exchange.unconnected
        self.trained |= self.acquainted if phase in ("train", "evaluate") else set()
        asked = self._members if self._chosen is None else self._chosen
        left = sorted(set(asked) - {device for device, _ in answers.values()})
        what = "absent" if len(answers) < self.wanted else "spare"
        for device in left:
            self._log(what, phase=phase, device=device)
        return [answer for _, answer in sorted(answers.values(), key=lambda pair: pair[0])]

    def _taken(self, exchange: _Exchange[Answer]) -> dict[int, tuple[int, Answer]]:
        """Return the answers that count: of simulated devices those of the first that were drawn.

        Others come in the order of their arrival, in which the exchange ended with enough.
        """
        if self._chosen is None or not self._in_turn:
            return exchange.answers
        turns = self._chosen
        in_turn = sorted(exchange.answers.items(), key=lambda pair: turns[pair[1][0]])
        return dict(in_turn[: self.wanted])

    def _carry_out(
        self, exchange: _Exchange[Any], check: Callable[[], None] = lambda: None
    ) -> None:
        """Ask, and take answers in, until nobody is expected any more or it is too late."""
        began = told = time.monotonic()
        deadline = began + self._config.deadline
        while exchange.expected > 0 and not exchange.is_complete:
            exchange.ask(max(1.0, deadline - time.monotonic()))
            exchange.collect()
            check()
            if time.monotonic() > deadline:
                break
            if exchange.unconnected and time.monotonic() - told >= _TELL_SECONDS:
                told = time.monotonic()
                self._tell_missing(exchange, deadline - told)
            self._rest(time.monotonic() - began)
            self._look()

    def _tell_missing(self, exchange: _Exchange[Any], left: float) -> None:
        """Say which devices are waited for that are not connected, as far as they are known."""
        asked = set(self._members if self._chosen is None else self._chosen)
        there = {self._device_of[node] for node in self._connected & self._device_of.keys()}
        missing, answered = sorted(asked - there - exchange.devices), len(exchange.answers)
        # A node that is there and has not answered may be any device that is not known.
        known = len(missing) == exchange.unconnected
        who = self._named(missing) if known else f"{exchange.unconnected} others"
        self._log("waiting", connected=len(there), devices=self.asked, seconds_left=round(left))
        print(
            f"{answered} of {self.asked} devices have answered; waiting up to {left:.0f} s for "
            f"{who}, not connected (min_share and deadline say how long)",
            flush=True,
        )

    def _rest(self, waited: float) -> None:
        """Leave Flower alone for a while, or until an answer is there where that is told."""
        if (known := here(self._grid)) is not None:
            known.wait(_LONGEST_POLL_SECONDS)
        else:
            time.sleep(_pause(waited))

    def _check(self, phase: Phase, exchange: _Exchange[Any]) -> None:
        """End an exchange at once that can no longer succeed."""
        if len(exchange.answers) + exchange.expected < self.needed:
            raise self._too_few(phase, exchange)

    def _too_few(self, phase: Phase, exchange: _Exchange[Any]) -> FleetError:
        devices = self.asked
        if exchange.failures:
            return FleetError(
                f"{len(exchange.failures)} of {devices} devices failed in phase {phase!r}; "
                f"the first one says: {exchange.failures[0]}"
            )
        return FleetError(
            f"{len(exchange.answers)} of {devices} devices answered phase {phase!r} within "
            f"{self._config.deadline:.0f} s, and {self.needed} are needed; look into the devices' "
            "logs, raise deadline, or lower min_share"
        )

    # What an exchange asks of its fleet -----------------------------------------------------

    def push(
        self, phase: Phase, content: RecordDict, size: int, node: int, seconds: float
    ) -> str | None:
        """Send a message to a node; return its id, None where Flower did not take it.

        Args:
            phase: What it asks.
            content: The packet, as `records` returned it.
            size: Of the packet, in bytes of payload.
            node: Who is asked.
            seconds: For which it lives.
        """
        kind = self.message_types[phase]
        message = Message(content, dst_node_id=node, message_type=kind, ttl=seconds)
        (sent,) = self._grid.push_messages([message])
        self.traffic = (self.traffic[0] + size, self.traffic[1])
        self.bytes_down += message_bytes(message)
        return sent

    def records(self, packet: Packet) -> RecordDict:
        """Return what of a packet travels."""
        return to_records(packet)

    def pull(self, message: str) -> Message | None:
        """Return the reply to a message, if it is there.

        Raises:
            WireError: The reply's bytes are not a message of Flower.
        """
        if (known := here(self._grid)) is not None and not known.has_answer(message):
            return None
        try:
            return next(iter(self._grid.pull_messages([message])), None)
        except httpx.HTTPError:
            raise  # the SuperLink's, not the device's
        except Exception as error:  # whatever a device's bytes can cause where they are unpacked
            raise WireError(f"a reply cannot be unpacked ({error}); it was altered") from error

    def open(self, node: int, reply: Message) -> tuple[int, Packet]:
        """Return which device replied, and its packet without what is the transport's own.

        Raises:
            WireError: It is too large or cannot be read, or the device is another node's.
        """
        size = record_bytes(reply.content)
        if size > self._largest:
            raise WireError(f"a reply has {size} bytes; this model's have {self._largest} at most")
        packet = from_records(reply.content)
        device = read_count(packet, "device", 0, self._config.devices - 1)
        if not self._may_be(node, device):
            raise WireError(
                f"a node answers as device {device}, which it is not; each must have an index of "
                f"its own, from 0 to {self._config.devices - 1}: set device in its --node-config"
            )
        numbers = {key: value for key, value in packet.numbers.items() if key not in OWN_NUMBERS}
        own, packet = packet.numbers, Packet(packet.arrays, numbers)
        if own.get("digest") != packet_digest(packet):
            raise WireError("a reply is not what its device made: its digest is another")
        self.traffic = (self.traffic[0], self.traffic[1] + packet.nbytes)
        self.bytes_up += (travelled := message_bytes(reply))
        peak = own.get("peak_bytes")
        self._log(
            "answer",
            device=device,
            bytes=travelled,
            peak_bytes=peak if isinstance(peak, int) else 0,
        )
        return device, packet

    def _may_be(self, node: int, device: int) -> bool:
        """Whether a node is a device.

        Without keys a restarted node is a new one, and is believed once its old one is gone.
        """
        owners = [other for other, index in self._device_of.items() if index == device]
        if owners and owners[0] != node:
            if self._given or owners[0] in self._connected:
                return False
            del self._device_of[owners[0]]
        return self._device_of.setdefault(node, device) == device

    def refuse(self, node: int, phase: Phase, error: WireError) -> None:
        """Count a refusal against a node."""
        self._refusals[node] += 1
        device = self._device_of.get(node, -1)
        self._log("refused", phase=phase, device=device, node=str(node), reason=str(error))
        if node in self.quarantine:
            self._log("quarantined", device=device, node=str(node), refusals=self._refusals[node])

    def available(self) -> list[int]:
        """Return the connected nodes that are asked."""
        return sorted(node for node in self._connected - self.quarantine if self.is_asked(node))

    def connected(self, nodes: set[int]) -> list[int]:
        """Return which of some nodes are there and were not refused too often."""
        return sorted(nodes & self._connected - self.quarantine)

    def is_enough(self, answers: int) -> bool:
        """Whether an exchange needs no more answers than so many, though more were asked."""
        return not self._in_turn and self.wanted <= answers < self.asked

    def is_asked(self, node: int) -> bool:
        """Whether a node is among the chosen."""
        return self._chosen is None or self._device_of.get(node, -1) in self._chosen

    def name_of(self, node: int) -> str:
        """Return what a person calls a node: its device, where that is known."""
        device = self._device_of.get(node)
        return f"node {node}" if device is None else self._named([device])

    def note_failure(self, node: int, phase: Phase, code: int, reason: str) -> None:
        """Log that a device could not answer, and print it for those who follow the run."""
        device = self._device_of.get(node, -1)
        print(f"{self.name_of(node)} cannot take part: {reason}", flush=True)
        self._log("failed", phase=phase, device=device, code=code, reason=reason)


class _Exchange(Generic[Answer]):
    """One exchange: who was asked, who answered, who is still expected.

    Attributes:
        answers: By node, the device and its answer.
        failures: What devices said that could not answer.
    """

    def __init__(
        self,
        fleet: FlowerFleet,
        phase: Phase,
        request: Request,
        read: Callable[[Packet], Answer],
        nodes: set[int] | None = None,
    ) -> None:
        """Take what to ask, and which nodes; by default those that stand for devices."""
        self._fleet, self._phase, self._read, self._nodes = fleet, phase, read, nodes
        self._short, self._whole = request.short, functools.cache(request.whole)
        self._again = None if request.again is None else functools.cache(request.again)
        self._contents: dict[int, tuple[RecordDict, int]] = {}
        self._asked: dict[str, int] = {}
        self._over: set[int] = set()
        self.answers: dict[int, tuple[int, Answer]] = {}
        self.failures: list[str] = []

    @property
    def expected(self) -> int:
        """How many devices may still answer: the connected, and others that one waits for."""
        waiting = set(self._available()) - self._over
        return len(waiting) + max(0, self.unconnected - self._fleet.missed)

    @property
    def unconnected(self) -> int:
        """How many devices are neither connected nor over."""
        if self._nodes is not None:
            return 0
        refused = filter(self._fleet.is_asked, self._fleet.quarantine)
        known = {*self._available(), *self._over, *refused}
        return max(0, self._fleet.asked - len(known))

    def _available(self) -> list[int]:
        if self._nodes is None:
            return self._fleet.available()
        return self._fleet.connected(self._nodes)

    @property
    def devices(self) -> set[int]:
        """Devices that answered."""
        return {device for device, _ in self.answers.values()}

    @property
    def is_complete(self) -> bool:
        """Whether it has as many answers as it takes, though more devices were asked."""
        return self._nodes is None and self._fleet.is_enough(len(self.answers))

    def ask(self, seconds: float) -> None:
        """Send the request to every node that is there and was not asked; it lives so long."""
        for node in self._available():
            if node in self._over or node in self._asked.values():
                continue
            content, size = self._content(self._packet_for(node))
            if (message := self._fleet.push(self._phase, content, size, node, seconds)) is not None:
                self._asked[message] = node

    def _content(self, packet: Packet) -> tuple[RecordDict, int]:
        """Return what of a packet travels, and its bytes: one for all nodes that get the same."""
        if (made := self._contents.get(id(packet))) is None:
            made = self._contents[id(packet)] = self._fleet.records(packet), packet.nbytes
        return made

    def _packet_for(self, node: int) -> Packet:
        """Return as much of the request as a node needs."""
        if node in self._fleet.acquainted and self._short is not None:
            return self._short
        if node in self._fleet.trained and self._again is not None:
            return self._again()
        return self._whole()

    def collect(self) -> None:
        """Take in what has arrived."""
        for message, node in list(self._asked.items()):
            if self.is_complete:
                return
            try:
                if (reply := self._fleet.pull(message)) is None:
                    continue
                del self._asked[message]
                if reply.has_error():
                    self._failed(node, reply)
                    continue
                device, packet = self._fleet.open(node, reply)
                self.answers[node] = device, self._read(packet)
            except WireError as error:
                self._asked.pop(message, None)
                self._fleet.refuse(node, self._phase, error)
                self.failures.append(f"refused: {terminal_text(str(error))}")
            self._over.add(node)

    def _failed(self, node: int, reply: Message) -> None:
        """Give up on a device whose app fails; one that went away may come back and is asked."""
        reason = terminal_text((reply.error.reason or "no reason given").strip())[:_LONGEST_REASON]
        self._fleet.note_failure(node, self._phase, reply.error.code, reason)
        self._fleet.trained.discard(node)  # Its memory may be what is wrong.
        if reply.error.code in _OF_THE_APP:
            self.failures.append(f"{self._fleet.name_of(node)}: {reason}")
            self._over.add(node)
