"""A device whose reply to train travels in three messages, for `fedkit bench fleet` to compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from numpy.typing import NDArray

from fedkit.device.memory import DurableMemory
from fedkit.device.round import Device
from fedkit.flower.client_app import make_client_app, own_reply
from fedkit.flower.device_app import answer_in, device_from_context
from fedkit.flower.run_config import run_name
from fedkit.flower.wire import from_records
from fedkit.methods.interface import Phase
from fedkit.wire.messages import Packet

STATISTICS, ENTRIES = ("stats",), ("positions", "gradients")


def first_part(device: Device, phase: Phase, request: Packet, context: Context) -> Packet:
    """Train, and reply without what is asked for later."""
    reply = answer_in(device, phase, request, context)
    if phase != "train":
        return reply
    return Packet(_chosen(reply, set(reply.arrays) - {*STATISTICS, *ENTRIES}), reply.numbers)


app = make_client_app(device_from_context, first_part)


@app.query("norm_statistics")
def statistics(message: Message, context: Context) -> Message:
    """Return the norm statistics of the round."""
    return _later(message, context, STATISTICS)


@app.query("top_gradients")
def entries(message: Message, context: Context) -> Message:
    """Return the largest gradients of pruned weights."""
    return _later(message, context, ENTRIES)


def _later(message: Message, context: Context, names: Sequence[str]) -> Message:
    """Answer from what the device remembers of the round."""
    device, request = device_from_context(context), from_records(message.content)
    memory = DurableMemory(Path(str(context.node_config["state"])), run_name(context.run_config))
    reply = memory.last_reply("train", request)
    return own_reply(Packet(_chosen(reply, names)), device, message)


def _chosen(packet: Packet, names: Sequence[str] | set[str]) -> dict[str, NDArray[Any]]:
    return {name: array for name, array in packet.arrays.items() if name in names}
