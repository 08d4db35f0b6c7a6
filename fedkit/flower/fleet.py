"""A fleet behind Flower's Grid: the server's end of the wire."""

from __future__ import annotations

import time

from flwr.app import Message
from flwr.serverapp import Grid

from fedkit.errors import FleetError
from fedkit.flower.client_app import MESSAGE_TYPES
from fedkit.flower.wire import from_records, message_bytes, to_records
from fedkit.messages import Packet, read_count
from fedkit.method import Phase


class FlowerFleet:
    """Implements `fedkit.rounds.Fleet` with messages to every connected node.

    Args:
        grid: Flower's access to the nodes.
        devices: Number of devices the run waits for and expects replies from.
        timeout: Seconds to wait for the nodes, and for the replies of one exchange.

    Attributes:
        bytes_down: Bytes of all messages sent so far, as Flower transfers them.
        bytes_up: Bytes of all replies.
    """

    def __init__(self, grid: Grid, devices: int, timeout: float = 3600.0) -> None:
        self._grid, self._timeout = grid, timeout
        self._nodes = self._wait_for_nodes(devices)
        self.bytes_down = self.bytes_up = 0

    def _wait_for_nodes(self, devices: int) -> list[int]:
        deadline = time.monotonic() + self._timeout
        while len(nodes := sorted(self._grid.get_node_ids())) < devices:
            if time.monotonic() > deadline:
                raise FleetError(
                    f"{len(nodes)} of {devices} devices connected within {self._timeout:.0f} s; "
                    "start more nodes (num-supernodes) or lower --devices"
                )
            time.sleep(0.2)
        if len(nodes) > devices:
            raise FleetError(
                f"{len(nodes)} nodes are connected, the run has {devices} devices; set "
                f"num-supernodes={devices}, or devices={len(nodes)}"
            )
        return nodes

    def exchange(self, phase: Phase, request: Packet) -> list[Packet]:
        """See `fedkit.rounds.Fleet.exchange`.

        Raises:
            FleetError: A device failed or did not answer in time.
        """
        content = to_records(request)
        messages = [
            Message(content, dst_node_id=node, message_type=MESSAGE_TYPES[phase])
            for node in self._nodes
        ]
        replies = list(self._grid.send_and_receive(messages, timeout=self._timeout))
        self._check(phase, replies)
        self.bytes_down += sum(message_bytes(message) for message in messages)
        self.bytes_up += sum(message_bytes(reply) for reply in replies)
        return in_device_order([from_records(reply.content) for reply in replies])

    def _check(self, phase: Phase, replies: list[Message]) -> None:
        failed = [reply for reply in replies if reply.has_error()]
        if failed:
            raise FleetError(
                f"{len(failed)} of {len(self._nodes)} devices failed in phase {phase!r}; "
                f"the first one says: {_reason(failed[0])}"
            )
        if len(replies) < len(self._nodes):
            raise FleetError(
                f"{len(replies)} of {len(self._nodes)} devices answered phase {phase!r} within "
                f"{self._timeout:.0f} s; look into the devices' logs, or raise the timeout"
            )


def _reason(reply: Message) -> str:
    return (reply.error.reason or "no reason given").strip()


def in_device_order(replies: list[Packet]) -> list[Packet]:
    """Sort replies by device and take the index out, which is the transport's own.

    Raises:
        FleetError: Two nodes say that they are the same device, or one is none of the fleet.
        WireError: A node does not say which device it is.
    """
    ordered = sorted(replies, key=lambda reply: read_count(reply, "device", 0))
    indices = [reply.numbers["device"] for reply in ordered]
    if indices != list(range(len(replies))):
        raise FleetError(
            f"the nodes answered as devices {indices}; each must have an index of its own, from 0 "
            f"to {len(replies) - 1}: set device in their --node-config"
        )
    return [
        Packet(r.arrays, {k: v for k, v in r.numbers.items() if k != "device"}) for r in ordered
    ]
