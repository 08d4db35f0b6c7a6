"""What of a model stays on a device between rounds: its own tensors, and those nobody trains."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from fedkit.core.errors import WireError
from fedkit.methods.travel import Travel
from fedkit.sparse.kept import joined, kept_weights
from fedkit.sparse.packed import packed
from fedkit.sparse.part import Part
from fedkit.sparse.state import Masks, ModelState
from fedkit.wire import codec
from fedkit.wire.messages import Packet

LOCAL = "local."
"""What the names of arrays begin with that hold a device's own tensors."""

_FROZEN = "frozen"
_WEIGHTS, _STATS = f"{LOCAL}weights", f"{LOCAL}stats"


def to_remember(parts: Travel, state: ModelState) -> dict[str, NDArray[Any]]:
    """Return what a device remembers of a model it trained, beside the masks of all of it."""
    frozen, own = parts.frozen.of(state), parts.local.of(state)
    found = {}
    if frozen.weights:
        found[_FROZEN] = codec.encode_values(frozen.weights, frozen.masks)
    for name, values in ((_WEIGHTS, own.weights), (_STATS, own.stats)):
        if values:
            found[name] = codec.encode_values(values, {})
    return found


def completed(parts: Travel, shared: ModelState, memory: Packet, known: Masks) -> ModelState:
    """Return the whole model of a shared part that came, with what the device remembers.

    Args:
        parts: The parts of the model.
        shared: What came.
        memory: What the device remembers.
        known: Masks that it remembers, of the whole model.

    Raises:
        WireError: The device does not have the rest.
    """
    masks = packed(known).changed(packed(shared.masks).bits)
    frozen, weights = parts.frozen, [kept_weights(shared.weights, shared.masks)]
    if frozen.layout.weights:
        if _FROZEN not in memory.arrays:
            raise _lacking("what is not trained")
        held = memory.arrays[_FROZEN]
        weights.append(codec.decode_values(held, frozen.layout.weights, frozen.masks(masks)))
    own = own_tensors(parts.local, memory)
    if own is None:
        raise _lacking("tensors of its own")
    weights.append(kept_weights(own.weights, {}))
    return ModelState(joined(*weights), {**shared.stats, **own.stats}, masks)


def with_own(parts: Travel, state: ModelState, memory: Packet) -> ModelState:
    """Return a model with the device's own tensors, if it has any yet."""
    own = own_tensors(parts.local, memory) if parts.local else None
    return state if own is None else parts.local.into(state, own)


def own_tensors(local: Part, memory: Packet) -> ModelState | None:
    """Return the tensors that a memory holds of the local part; None where it lacks some.

    Raises:
        WireError: They are not of this model.
    """
    found = []
    for name, shapes in ((_WEIGHTS, local.layout.weights), (_STATS, local.layout.stats)):
        if shapes and name not in memory.arrays:
            return None
        found.append(codec.decode_values(memory.arrays[name], shapes, {}) if shapes else {})
    weights, stats = found
    return ModelState(weights, stats, {})


def _lacking(what: str) -> WireError:
    return WireError(
        f"a part of the model came, and this device does not remember {what}; its memory was "
        "lost: send the model whole"
    )
