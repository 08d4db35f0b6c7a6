"""A device whose reply to train travels in three messages, for `fedkit bench fleet` to compare."""

from pathlib import Path

from flwr.app import Context, Message

from fedkit.device_memory import DurableMemory
from fedkit.flower.client_app import make_client_app, own_reply
from fedkit.flower.device_app import answer_in, device_from_context
from fedkit.flower.run_config import run_name
from fedkit.flower.wire import from_records
from fedkit.messages import Packet

STATISTICS, ENTRIES = ("stats",), ("positions", "gradients")


def _asked_alone(packet: Packet, names: tuple[str, ...]) -> Packet:
    return Packet({name: array for name, array in packet.arrays.items() if name in names}, {})


def _first_part(device, phase, request, context):  # type: ignore[no-untyped-def]
    reply = answer_in(device, phase, request, context)
    if phase != "train":
        return reply
    late = (*STATISTICS, *ENTRIES)
    kept = {name: array for name, array in reply.arrays.items() if name not in late}
    return Packet(kept, reply.numbers)


app = make_client_app(device_from_context, _first_part)


def _part(message: Message, context: Context, names: tuple[str, ...]) -> Message:
    """Answer from what the device remembers of the round."""
    device, request = device_from_context(context), from_records(message.content)
    memory = DurableMemory(Path(str(context.node_config["state"])), run_name(context.run_config))
    reply = memory.last_reply("train", request)
    return own_reply(_asked_alone(reply, names), device, message)


@app.query("norm_statistics")
def statistics(message: Message, context: Context) -> Message:
    """Return the norm statistics of the round."""
    return _part(message, context, STATISTICS)


@app.query("top_gradients")
def entries(message: Message, context: Context) -> Message:
    """Return the largest gradients of pruned weights."""
    return _part(message, context, ENTRIES)
