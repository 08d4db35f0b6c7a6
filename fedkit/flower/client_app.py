"""The device as a Flower ClientApp."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedkit.device import Device
from fedkit.flower.wire import from_records, to_records
from fedkit.messages import Packet
from fedkit.method import Phase

MESSAGE_TYPES: dict[Phase, str] = {
    "moments": "query.bn_moments",
    "losses": "evaluate.candidate_losses",
    "survey": "query.survey",
    "train": "train",
}
"""Flower message type of each phase."""


def make_client_app(device_of: Callable[[Context], Device]) -> ClientApp:
    """Return a ClientApp that answers every phase.

    Args:
        device_of: Finds the device a Flower context stands for. It is called once per message,
            so it should cache what is costly to build.
    """
    app = ClientApp()

    def answer(phase: Phase, message: Message, context: Context) -> Message:
        device = device_of(context)
        request, memory = from_records(message.content), from_records(context.state)
        reply, memory = device.handle(phase, request, memory)
        _remember(context.state, memory)
        # Replies arrive in any order; the server sorts them by this index before it sums.
        indexed = Packet(reply.arrays, {**reply.numbers, "device": device.index})
        return Message(to_records(indexed), reply_to=message)

    @app.query("bn_moments")
    def moments(message: Message, context: Context) -> Message:
        return answer("moments", message, context)

    @app.evaluate("candidate_losses")
    def losses(message: Message, context: Context) -> Message:
        return answer("losses", message, context)

    @app.query("survey")
    def survey(message: Message, context: Context) -> Message:
        return answer("survey", message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer("train", message, context)

    return app


def _remember(state: RecordDict, memory: Packet) -> None:
    for name, record in to_records(memory).items():
        state[name] = record
