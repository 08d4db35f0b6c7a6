"""The line between a gateway and a microcontroller: requests and replies, as c/link.h has them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import FleetError
from fedkit.core.text import short

VERSION = 1

_BEGINS = b"FK"
_HEAD = struct.Struct("<BBI")  # kind, number, bytes of payload
_REPLY, _ERROR = 128, 127
_MOST_ABOUT = 4096
_ABOUT = struct.Struct("<8I")
_COUNTS = ("batch", "inputs", "classes", "values", "statistics", "stored_bits", "examples")
_LOSS = struct.Struct("<dI")

_OK, _DIVERGED = 0, 3  # enum trainer_result; the loss itself tells the latter

_ERRORS = {
    1: "a request arrived damaged; check the line",
    2: "it does not know this request; flash the firmware of this fedkit",
    3: "a request has another length; flash the firmware of this fedkit",
    4: "it refuses an example: its label is no class of the model, or it has no such example",
}

Floats = NDArray[np.float32]


class Asked(IntEnum):
    """What is asked for: `enum link_kind` of link.h."""

    ABOUT = 1
    BEGIN = 2
    LOAD = 3
    EPOCH = 4
    PUT = 5
    OWN = 6
    STEP = 7
    VALUES = 8
    STATISTICS = 9


@dataclass(frozen=True)
class About:
    """What a microcontroller says of itself.

    Attributes:
        batch: Examples of a step.
        inputs: Values of an image.
        classes: Of the model.
        values: Weights, of pruned layers only those kept.
        statistics: Running statistics.
        stored_bits: Of what the backward pass reads again.
        examples: Of its own.
        plan: SHA-256 of the plan.
        masks: Digest of the masks.
    """

    batch: int
    inputs: int
    classes: int
    values: int
    statistics: int
    stored_bits: int
    examples: int
    plan: str
    masks: str


class TrainerLink:
    """One line to one microcontroller.

    Args:
        address: A serial port, as /dev/ttyACM0, or socket://HOST:PORT; whatever
            `serial.serial_for_url` takes.
        baud: Of a serial port.
        timeout: Seconds that a reply may take; a step is one.

    Raises:
        FleetError: The line cannot be opened, or pyserial is not installed.
    """

    def __init__(self, address: str, baud: int = 115200, timeout: float = 600.0) -> None:
        try:
            import serial
        except ModuleNotFoundError as error:
            raise FleetError(
                "pyserial is not installed, by which a gateway talks to its microcontroller; run "
                "`pip install 'fedkit[gateway]'`"
            ) from error
        self._address, self._number, self._line = short(address), 0, None
        self._connect = partial(serial.serial_for_url, address, baudrate=baud, timeout=timeout)
        self._open()

    _line: Any

    def _open(self) -> Any:
        """Return the line; it is opened anew where it broke."""
        if self._line is None:
            try:
                self._line = self._connect()
            except (OSError, ValueError) as error:
                raise FleetError(
                    f"the microcontroller at {self._address} cannot be reached ({error}); give a "
                    "serial port, as /dev/ttyACM0, or socket://HOST:PORT"
                ) from error
        return self._line

    def close(self) -> None:
        """End it, until something is asked again."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def about(self) -> About:
        """Ask who is there.

        Raises:
            FleetError: As all that asks: nobody answers, or what comes is damaged, or a refusal.
        """
        found = self._ask(Asked.ABOUT, most=_MOST_ABOUT)
        texts = found[_ABOUT.size :].split(b"\0")
        if len(found) < _ABOUT.size or len(texts) != 3:
            raise self._wrong("it says of itself what this fedkit does not understand")
        version, *numbers = _ABOUT.unpack_from(found)
        if version != VERSION:
            raise self._wrong(f"it speaks version {version} of the link, this fedkit {VERSION}")
        plan, masks = (text.decode("ascii", "replace") for text in texts[:2])
        counts: dict[str, Any] = dict(zip(_COUNTS, numbers, strict=True))
        return About(**counts, plan=plan, masks=masks)

    def begin(self, seed: int, values: Floats) -> None:
        """Begin a round with weights float32 [values]."""
        self._ask(Asked.LOAD, np.asarray(values, "<f4").tobytes())
        self._ask(Asked.BEGIN, struct.pack("<Q", seed % 2**64))

    def epoch(self) -> None:
        """Begin an epoch."""
        self._ask(Asked.EPOCH)

    def put(self, place: int, image: Floats, label: int) -> None:
        """Give an example of the next batch."""
        head = struct.pack("<Ii", place, label)
        self._ask(Asked.PUT, head + np.asarray(image, "<f4").tobytes())

    def put_own(self, place: int, number: int) -> None:
        """Let it take an example of its own."""
        self._ask(Asked.OWN, struct.pack("<II", place, number))

    def step(self, rates: Sequence[float]) -> float:
        """Train on the batch that was put; return its loss.

        Args:
            rates: Learning rate, momentum and weight decay.
        """
        found = self._ask(Asked.STEP, struct.pack("<3f", *rates), most=_LOSS.size)
        if len(found) != _LOSS.size:
            raise self._wrong(f"its reply to a step has {len(found)} bytes, not {_LOSS.size}")
        loss, result = _LOSS.unpack(found)
        if result not in (_OK, _DIVERGED):
            raise self._wrong(f"a step ends with {result}; a batch was not whole")
        return float(loss)

    def values(self, count: int) -> Floats:
        """Return the weights, float32 [count]."""
        return self._floats(Asked.VALUES, count)

    def statistics(self, count: int) -> Floats:
        """Return the running statistics, float32 [count]."""
        return self._floats(Asked.STATISTICS, count)

    def _floats(self, kind: Asked, count: int) -> Floats:
        found = self._ask(kind, most=4 * count)
        if len(found) != 4 * count:
            raise self._wrong(f"it sent {len(found)} bytes, not those of {count} numbers")
        return np.frombuffer(found, "<f4").astype(np.float32)

    def _ask(self, kind: Asked, payload: bytes = b"", most: int = 0) -> bytes:
        """Send a request; return the payload of its reply, of at most so many bytes."""
        self._number = (self._number + 1) % 256
        body = _HEAD.pack(kind, self._number, len(payload)) + payload
        try:
            self._open().write(_BEGINS + body + struct.pack("<I", zlib.crc32(body)))
            found, reply = self._reply(kind, most)
        except OSError as error:  # pyserial's are, too
            self.close()
            raise self._wrong(f"the line broke ({error})") from error
        except FleetError:
            self.close()  # whatever is still on its way
            raise
        if found == _ERROR:
            raise self._wrong(_ERRORS.get(reply[0] if reply else 0, "it failed"))
        return reply

    def _reply(self, kind: Asked, most: int) -> tuple[int, bytes]:
        """Return kind and payload of the reply to the last request; late ones are passed over."""
        while (reply := self._frame(kind, most))[1] != self._number:
            pass
        found, _, payload = reply
        if found not in (kind | _REPLY, _ERROR):
            raise self._wrong(f"it answers request {kind.name} with {found}")
        return found, payload

    def _frame(self, kind: Asked, most: int) -> tuple[int, int, bytes]:
        """Return kind, number and payload of a frame."""
        if (start := self._read(2)) != _BEGINS:
            raise self._wrong(f"a reply begins with {start!r}, not with {_BEGINS!r}")
        head = self._read(_HEAD.size)
        found, number, length = _HEAD.unpack(head)
        if length > max(1, most):
            raise self._wrong(f"a reply to {kind.name} would have {length} bytes")
        payload = self._read(length)
        (crc,) = struct.unpack("<I", self._read(4))
        if crc != zlib.crc32(head + payload):
            raise self._wrong("a reply arrived damaged; check the line")
        return found, number, payload

    def _read(self, count: int) -> bytes:
        found = bytes(self._line.read(count))
        if len(found) != count:
            raise self._wrong(f"{len(found)} of {count} bytes came before time was over")
        return found

    def _wrong(self, what: str) -> FleetError:
        return FleetError(f"the microcontroller at {self._address}: {what}")
