"""The device as a Flower ClientApp."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedkit.core.errors import FedkitError
from fedkit.core.text import terminal_text
from fedkit.device.memory import LastingMemory
from fedkit.device.round import Device
from fedkit.engine.base import Replicable
from fedkit.flower.randomness import draw_apart
from fedkit.flower.run_config import FOLDER_KEY
from fedkit.flower.wire import from_records, to_records
from fedkit.methods.interface import Phase
from fedkit.wire.messages import Packet, packet_digest

MESSAGE_TYPES: dict[Phase, str] = {
    "moments": "query.bn_moments",
    "losses": "evaluate.candidate_losses",
    "survey": "query.survey",
    "train": "train",
    "evaluate": "evaluate.own_metric",
    "introduction": "query.introduction",
}
"""Flower message type of each phase."""


AnswerIn = Callable[[Device, Phase, Packet, Context], Packet]
"""Answers a request as a device, with what it remembers in or beside a Flower context."""


def in_context(device: Device, phase: Phase, request: Packet, context: Context) -> Packet:
    """Answer with a memory that Flower keeps for as long as the node's process lives."""
    reply, memory = device.handle(phase, request, from_records(context.state))
    _remember(context, memory)
    return reply


def in_context_and_folder(
    device: Device, phase: Phase, request: Packet, context: Context
) -> Packet:
    """Answer like `in_context`, and keep in the run's folder what a run that goes on must know."""
    folder = str(context.run_config.get(FOLDER_KEY, ""))
    if not folder:
        return in_context(device, phase, request, context)
    kept = LastingMemory(Path(folder, "devices", str(device.index)))
    memory = from_records(context.state)
    memory = memory if memory.arrays else kept.before(phase, request)
    reply, memory = device.handle(phase, request, memory)
    _remember(context, memory)
    kept.keep(phase, request, memory, reply)
    return reply


class InThreads:
    """An `AnswerIn` for devices that share an engine and answer in several threads.

    Each thread has a replica of the engine; devices on torch, which has none, take turns.

    Args:
        answer_in: Answers, in one thread.
    """

    def __init__(self, answer_in: AnswerIn) -> None:
        self._answer_in, self._own, self._turn = answer_in, threading.local(), threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray sends it to its workers, where it begins anew."""
        return InThreads, (self._answer_in,)

    def __call__(self, device: Device, phase: Phase, request: Packet, context: Context) -> Packet:
        """Answer a request."""
        engine = device.engine
        if not isinstance(engine, Replicable):
            with self._turn:
                return self._answer_in(device, phase, request, context)
        if getattr(self._own, "engine", None) is not engine:
            self._own.engine, self._own.replica = engine, engine.replica()
        own = replace(device, engine=self._own.replica)
        return self._answer_in(own, phase, request, context)


def _remember(context: Context, memory: Packet) -> None:
    for name, record in to_records(memory).items():
        context.state[name] = record


def make_client_app(
    device_of: Callable[[Context], Device], answer_in: AnswerIn = in_context
) -> ClientApp:
    """Return a ClientApp that answers every phase.

    Args:
        device_of: Finds the device a Flower context stands for. It is called once per message,
            so it should cache what is costly to build.
        answer_in: Answers, and remembers.
    """
    draw_apart()
    app = ClientApp()
    add_answers(app, lambda message, context: device_of(context), answer_in)
    return app


def add_answers(
    app: ClientApp,
    device_of: Callable[[Message, Context], Device],
    answer_in: AnswerIn = in_context,
) -> None:
    """Let a ClientApp answer every phase; see `make_client_app`."""

    def answer(phase: Phase, message: Message, context: Context) -> Message:
        try:
            device = device_of(message, context)
            reply = answer_in(device, phase, from_records(message.content), context)
        except FedkitError as error:
            # One line here and at the server, where an exception would be a traceback.
            print(f"error: {terminal_text(str(error))}", file=sys.stderr, flush=True)
            return Message(
                Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=message
            )
        # Replies arrive in any order; the server sorts them by this index before it sums.
        return own_reply(reply, device, message)

    @app.query("bn_moments")
    def moments(message: Message, context: Context) -> Message:
        return answer("moments", message, context)

    @app.evaluate("candidate_losses")
    def losses(message: Message, context: Context) -> Message:
        return answer("losses", message, context)

    @app.evaluate("own_metric")
    def own_metric(message: Message, context: Context) -> Message:
        return answer("evaluate", message, context)

    @app.query("survey")
    def survey(message: Message, context: Context) -> Message:
        return answer("survey", message, context)

    @app.query("introduction")
    def introduction(message: Message, context: Context) -> Message:
        return answer("introduction", message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer("train", message, context)


def own_reply(reply: Packet, device: Device, message: Message) -> Message:
    """Return a device's reply with what the transport adds (`fedkit.flower.fleet.OWN_NUMBERS`)."""
    own: dict[str, int | str] = {
        "device": device.index,
        "digest": packet_digest(reply),
        "peak_bytes": peak_bytes(),
    }
    whole = Packet(reply.arrays, {**reply.numbers, **own})
    return Message(to_records(whole), reply_to=message)


def peak_bytes() -> int:
    """Return the most memory that this process held so far, in bytes; 0 where it is not told."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0
