"""A Flower grid without Flower: nodes are functions, and may vanish, fail or lie."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedkit.flower.client_app import make_client_app
from fedkit.flower.fleet import OWN_NUMBERS
from fedkit.flower.wire import from_records, to_records
from fedkit.server.scenario import Scenario
from fedkit.wire.messages import Packet, packet_digest

Node = Callable[[Message], Message | None]
"""Answers a message; None: it takes the message and is never heard of again."""


class ScriptedGrid(Grid):
    """Nodes in this process.

    Args:
        nodes: By id.

    Attributes:
        online: Which of them are connected.
        sent: Every message that was pushed.
        before: Called before every push, with the message; scripts change `online` there.
    """

    def __init__(self, nodes: Mapping[int, Node]) -> None:
        self.nodes, self.online = dict(nodes), set(nodes)
        self.sent: list[Message] = []
        self.before: Callable[[Message], None] = lambda message: None
        self._ids, self._replies = itertools.count(), dict[str, Message]()

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.online, reverse=True)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        name = f"m{next(self._ids)}"
        message.metadata.__dict__["_message_id"] = name
        message.metadata.__dict__["_src_node_id"] = 1
        self.sent.append(message)
        self.before(message)
        node = message.metadata.dst_node_id
        if node not in self.online:
            self._replies[name] = failed(message, 5, "the node is not there")
        elif (reply := self.nodes[node](message)) is not None:
            self._replies[name] = reply
        return name

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    # What a fleet does not use

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *given: Any, **named: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError


def failed(message: Message, code: int, reason: str) -> Message:
    return Message(Error(code, reason), reply_to=message)


def signed(packet: Packet, device: int) -> Packet:
    """A packet as a device sends it, whatever is in it."""
    inner = {key: value for key, value in packet.numbers.items() if key not in OWN_NUMBERS}
    digest = packet_digest(Packet(packet.arrays, inner))
    own: dict[str, int | str] = {"device": device, "digest": digest, "peak_bytes": 1}
    return Packet(packet.arrays, {**inner, **own})


def lying(node: Node, device: int, change: Callable[[Packet], Packet]) -> Node:
    """A node that changes its device's replies to train, and signs what it made of them."""

    def answer(message: Message) -> Message | None:
        reply = node(message)
        if reply is None or reply.has_error() or message.metadata.message_type != "train":
            return reply
        packet = change(from_records(reply.content))
        return Message(to_records(signed(packet, device)), reply_to=message)

    return answer


def client_nodes(scenario: Scenario, first: int = 100) -> dict[int, Node]:
    """A ClientApp per device of a scenario, with node ids from `first`."""

    def node(index: int) -> Node:
        app: ClientApp = make_client_app(lambda context: scenario.device(index))
        context = Context(1, first + index, {}, RecordDict(), {})

        def answer(message: Message) -> Message:
            try:
                return app(message, context)
            except Exception as error:
                return failed(message, 2, str(error))

        return answer

    return {first + index: node(index) for index in range(len(scenario.devices))}
