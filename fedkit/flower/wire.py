"""Packets as Flower records, and the bytes a Flower message really takes."""

from __future__ import annotations

import io
import math
import time
from typing import Any

import numpy as np
from flwr.app import DEFAULT_TTL, Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from numpy.typing import NDArray

from fedkit.core.errors import WireError
from fedkit.core.text import short
from fedkit.wire.messages import Packet

_ARRAYS, _NUMBERS = "arrays", "numbers"
_SOME_ID = 2**63 - 1  # Run and node ids are random 64-bit numbers.
_NPY: Any = np.lib.format  # Public, but untyped in numpy 1.


def to_records(packet: Packet) -> RecordDict:
    """Put a packet into records: one Array per array, all numbers in one ConfigRecord."""
    arrays = ArrayRecord({name: Array(array) for name, array in packet.arrays.items()})
    return RecordDict({_ARRAYS: arrays, _NUMBERS: ConfigRecord(dict(packet.numbers))})


def from_records(records: RecordDict) -> Packet:
    """Invert `to_records`; empty records are an empty packet.

    Raises:
        WireError: A number is not a scalar, or an array is not what its header says.
    """
    arrays = records.array_records.get(_ARRAYS, ArrayRecord())
    numbers: dict[str, int | float | str] = {}
    for name, value in records.config_records.get(_NUMBERS, ConfigRecord()).items():
        if not isinstance(value, int | float | str):
            raise WireError(
                f"number {short(name)} arrived as {type(value).__name__}; need a scalar"
            )
        numbers[name] = value
    return Packet({name: _numpy(name, array) for name, array in arrays.items()}, numbers)


def _numpy(name: str, array: Array) -> NDArray[Any]:
    """Load an array whose bytes are those of a .npy file.

    numpy allocates what the header claims before it reads on, so the claim is checked first.
    """
    try:
        stream = io.BytesIO(array.data)
        version = _NPY.read_magic(stream)
        shape, _, dtype = _NPY.read_array_header_1_0(stream)
        claimed, left = math.prod(shape) * dtype.itemsize, len(array.data) - stream.tell()
        if version != (1, 0) or dtype.kind not in "fiu" or claimed != left:
            raise ValueError(f"{dtype} {shape} of version {version} in {left} bytes")
        return array.numpy()
    except Exception as error:  # numpy evaluates the header, which fails in many ways
        raise WireError(
            f"array {short(name)} cannot be read as .npy ({short(str(error))}); the message was "
            "altered on its way, or its sender does not run fedkit"
        ) from error


def message_bytes(message: Message) -> int:
    """Return the bytes of a message as Flower transfers it: all its objects, deflated.

    Flower sends a message as a tree of objects (message, records, arrays, chunks), each with a
    header of its own; this is their sum.
    """
    return sum(len(part.deflate()) for part in get_all_nested_objects(message).values())


def record_bytes(records: RecordDict) -> int:
    """Return the bytes of all arrays, as they arrived."""
    return sum(len(a.data) for record in records.array_records.values() for a in record.values())


def packet_bytes(packet: Packet, message_type: str) -> int:
    """Return the bytes a packet takes as a Flower message to one node, outside any run."""
    return message_bytes(lone_message(packet, message_type))


def lone_message(packet: Packet, message_type: str) -> Message:
    """Return a packet as a Flower message to some node, outside any run."""
    metadata = Metadata(
        run_id=_SOME_ID,
        message_id="",
        src_node_id=_SOME_ID,
        dst_node_id=_SOME_ID,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=DEFAULT_TTL,
        message_type=message_type,
    )
    # The keyword is Flower's own; it marks no overload for it.
    return Message(content=to_records(packet), metadata=metadata)  # type: ignore[call-overload, no-any-return]
