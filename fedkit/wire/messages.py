"""What travels: the few messages of a run, packed to flat arrays and validated on arrival.

A packet is the payload of one message, independent of the transport. Each kind has a function that
packs it and one that reads it; a reader raises `WireError` naming what was expected and found.

Packing leaves values float32. `narrow` makes a packet what travels in a run of `wire = "fp16"`, and
every reader takes both widths and gives float32, so that nobody else has to know the width. With
`uplink_bits` a trained model travels as its differences from the one sent, `pack_differences`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fedkit.core.errors import WireError
from fedkit.core.text import short
from fedkit.sparse.candidates import CandidatePool
from fedkit.sparse.kept import kept_weights
from fedkit.sparse.layout import Layout
from fedkit.sparse.state import Masks, ModelState, Shapes, Weights, count_kept, masks_digest
from fedkit.sparse.topk import Entries
from fedkit.stats.moments import NormMoments
from fedkit.stats.norms import absolute_stats, as_moments, as_stats, norm_names, relative_stats
from fedkit.wire import codec, differences


@dataclass(frozen=True)
class Packet:
    """Payload of one message.

    Attributes:
        arrays: Flat arrays by name.
        numbers: Scalars by name; strings only as short identifiers.
    """

    arrays: Mapping[str, NDArray[Any]]
    numbers: Mapping[str, int | float | str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the payload: the arrays, and 8 per number (or a string's length)."""
        numbers = [len(n) if isinstance(n, str) else 8 for n in self.numbers.values()]
        return sum(array.nbytes for array in self.arrays.values()) + sum(numbers)


def packet_digest(packet: Packet) -> str:
    """Return 16 hex digits that name a packet's whole content."""
    found = hashlib.sha256(json.dumps(dict(packet.numbers), sort_keys=True).encode())
    hash_arrays(found, packet.arrays)
    return found.hexdigest()[:16]


def hash_arrays(found: hashlib._Hash, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Feed a hash with arrays and their names, types and shapes, in the order of the names."""
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(array.data)


Wire = Literal["fp32", "fp16"]
"""Width of the values on the wire."""


def narrow(packet: Packet, wire: Wire) -> Packet:
    """Return a packet as it travels: with fp16, every float32 array of it as float16.

    Values are rounded to the nearest float16, ties to even: by at most 2^-11 of themselves, or by
    2^-25 below 6.1e-5. A kept weight that becomes 0 stays kept, since the mask travels on its own;
    a gradient that becomes 0 ranks last.

    Norm statistics are narrowed like weights: left in float32 they would be a seventh of what
    ResNet-18 sends at 1 % density. In a sound model only they can leave float16's range, as
    variances of inputs that nobody scaled; in a diverging one anything can. Such a value is refused
    here, where its cause is: as infinity it would only show as the receiver's error. Scores of a
    dense model keep float32: most of them are below float16's smallest step.

    Args:
        packet: A packed message.
        wire: "fp32" returns the packet as it is.

    Raises:
        WireError: A finite value would become infinite; the array is named.
    """
    if wire == "fp32":
        return packet
    arrays = {
        key: _as_float16(key, array) if array.dtype == np.float32 and key != "scores" else array
        for key, array in packet.arrays.items()
    }
    return Packet(arrays, packet.numbers)


def _as_float16(key: str, array: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        narrowed = array.astype(np.float16)
    # What is infinite or NaN already is for the reader to refuse, as under fp32.
    beyond = array[np.isinf(narrowed) & np.isfinite(array)]
    if beyond.size:
        raise WireError(
            f"{beyond.size} of {array.size} values of {key!r} exceed float16, up to "
            f"{np.abs(beyond).max():.4g}; it ends at {np.finfo(np.float16).max:.0f}: set wire to "
            "fp32 (--wire fp32), scale the inputs, or lower lr if training diverges"
        )
    return narrowed


def as_received(state: ModelState, wire: Wire) -> ModelState:
    """Return a state as it arrives: its values rounded once to the width that travels."""
    if wire == "fp32":
        return state

    def rounded(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return _as_float16(name, values).astype(np.float32)

    weights = kept_weights(state.weights, state.masks).changed(rounded)
    stats = {name: rounded(name, values) for name, values in state.stats.items()}
    return ModelState(weights, stats, state.masks)


def _array(
    packet: Packet, key: str, dtype: DTypeLike, shape: tuple[int | None, ...]
) -> NDArray[Any]:
    found = packet.arrays.get(key)
    if found is None:
        raise WireError(f"message lacks {key!r}; it holds {short(sorted(packet.arrays))}")
    if dtype == np.float32 and found.dtype == np.float16:
        found = found.astype(np.float32)
    fits = len(found.shape) == len(shape) and all(
        want in (None, have) for want, have in zip(shape, found.shape, strict=True)
    )
    if found.dtype != dtype or not fits:
        raise WireError(f"{key!r} is {found.dtype} {found.shape}; need {np.dtype(dtype)} {shape}")
    return found


def read_count(packet: Packet, key: str, lowest: int = 1, highest: int = 2**32 - 1) -> int:
    """Return a whole number of a message.

    Raises:
        WireError: It is missing, no whole number or out of bounds.
    """
    found = packet.numbers.get(key)
    if not isinstance(found, int) or not lowest <= found <= highest:
        raise WireError(f"{key!r} is {short(found)}; need a whole number in {lowest} .. {highest}")
    return found


# Statistics of the norm layers ---------------------------------------------------------------


LARGEST = 2.0**100
"""No model has larger numbers; up to here, float32 holds their sums over any fleet."""


def _flat(values: Weights) -> NDArray[np.float32]:
    """Return all values in order, float32 [n]; `_split` inverts it."""
    parts = [value.reshape(-1) for value in values.values()]
    return np.concatenate([*parts, np.empty(0, np.float32)], dtype=np.float32)


def _split(flat: NDArray[np.float32], shapes: Shapes) -> Weights:
    if not shapes:
        return {}
    parts = np.split(flat, np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1])
    return {name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)}


def _stats_from(flat: NDArray[np.float32], layout: Layout) -> Weights:
    if not np.isfinite(flat).all():
        raise WireError("norm statistics hold NaN or infinite values; lower lr of the sender")
    stats = _split(flat, layout.stats)
    for name, value in stats.items():
        if name.endswith(".running_var") and (value < 0).any():
            raise WireError(f"{name} is negative, down to {value.min():.4g}; a variance cannot be")
    return stats


def _stats_size(layout: Layout) -> int:
    return sum(math.prod(shape) for shape in layout.stats.values())


# A model state -------------------------------------------------------------------------------


def pack_state(state: ModelState, known: Masks | None) -> Packet:
    """Pack a model; its masks only if they differ from those the receiver knows."""
    arrays: dict[str, NDArray[Any]] = {
        "values": codec.encode_values(state.weights, state.masks),
        "stats": _flat(state.stats),
    }
    digest = masks_digest(state.masks)
    if known is None:
        arrays["masks"] = codec.encode_masks(state.masks)
    elif masks_digest(known) != digest:
        arrays["mask_changes"] = codec.encode_masks(state.masks, known)
    return Packet(arrays, {"mask_digest": digest})


PART = "part"
"""Number of a message that brings a part of a model: what changes from round to round."""


def pack_part(part: ModelState, known: Masks | None) -> Packet:
    """Pack what of a model changes from round to round, for a device that has the rest."""
    packed = pack_state(part, known)
    return Packet(packed.arrays, {**packed.numbers, PART: 1})


def read_state(packet: Packet, layout: Layout, known: Masks | None) -> ModelState:
    """Read a model packed by `pack_state`; `known` are the masks the reader holds.

    Raises:
        WireError: Anything that does not fit the layout, or masks other than the sender's.
    """
    masks = _read_masks(packet, layout, known)
    values = _array(packet, "values", np.float32, (None,))
    weights = codec.decode_values(values, layout.weights, masks)
    stats = _array(packet, "stats", np.float32, (_stats_size(layout),))
    return ModelState(weights, _stats_from(stats, layout), masks)


def _read_masks(packet: Packet, layout: Layout, known: Masks | None) -> Masks:
    shapes = layout.prunable_shapes
    masks: Masks
    if "masks" in packet.arrays:
        masks = codec.decode_masks(_bytes(packet, "masks"), shapes)
    elif known is None:
        raise WireError("message carries no masks and the receiver holds none; send them in full")
    elif "mask_changes" in packet.arrays:
        masks = codec.decode_masks(_bytes(packet, "mask_changes"), shapes, known)
    else:
        masks = known
    if masks_digest(masks) != packet.numbers.get("mask_digest"):
        raise WireError(
            f"masks have digest {masks_digest(masks)}, the sender's "
            f"{short(packet.numbers.get('mask_digest'))}; the receiver is out of date: send them "
            "in full"
        )
    return masks


def _bytes(packet: Packet, key: str) -> codec.Bytes:
    return _array(packet, key, np.uint8, (None,))


# Adaptive BN selection -----------------------------------------------------------------------

POOL_STATS = "candidate_stats"
"""Array of the merged statistics of a pool's candidates, beside the pool itself."""


def pack_pool(pool: CandidatePool) -> Packet:
    """Pack a candidate pool: the union of its candidates once, and their counts."""
    union = pack_state(pool.union, None)
    return Packet({**union.arrays, "counts": pool.counts}, union.numbers)


def pack_pool_with_stats(pool: CandidatePool, stats: Sequence[Weights]) -> Packet:
    """Pack a pool and the merged statistics of its candidates, for a device that has neither."""
    whole = pack_pool(pool)
    return Packet({**whole.arrays, POOL_STATS: pack_stats(stats).arrays["stats"]}, whole.numbers)


def read_pool(packet: Packet, layout: Layout) -> CandidatePool:
    """Read a pool packed by `pack_pool`."""
    counts = _array(packet, "counts", np.int32, (None, len(layout.prunable)))
    union = read_state(packet, layout, None)
    most = list(count_kept(union.masks).values())
    if len(counts) == 0 or (counts < 0).any() or (counts > most).any():
        raise WireError(
            f"the pool has {len(counts)} candidates; it needs one or more, each with 0 .. {most} "
            "weights per layer: the message was altered, send it again"
        )
    return CandidatePool(union, counts)


def pack_moments(candidates: Sequence[NormMoments], examples: int) -> Packet:
    """Pack the moments of each candidate's norm layers, as means and variances.

    How many pixels an example has is the same on every device, so the count of examples weighs
    them rightly.
    """
    return pack_stats([as_stats(norms) for norms in candidates], examples)


def read_moments(packet: Packet, layout: Layout, candidates: int) -> list[NormMoments]:
    """Read moments packed by `pack_moments`, one per candidate."""
    examples = read_count(packet, "examples")
    return [as_moments(stats, examples) for stats in read_stats(packet, layout, candidates)]


def pack_stats(candidates: Sequence[Weights], examples: int = 0) -> Packet:
    """Pack running statistics per candidate, float32 [candidates, channels]."""
    flat = np.stack([_flat(stats) for stats in candidates])
    return Packet({"stats": flat}, {"examples": examples} if examples else {})


def read_stats(
    packet: Packet, layout: Layout, candidates: int, key: str = "stats"
) -> list[Weights]:
    """Read statistics packed by `pack_stats`, wherever the packet holds them."""
    rows = _array(packet, key, np.float32, (candidates, _stats_size(layout)))
    return [_stats_from(row, layout) for row in rows]


QUESTION = ("asked", "known", "known_stats")
"""Arrays of a question for moments, beside the pool."""


def stats_of(layout: Layout, norms: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the running statistics of some norms, in the model's order."""
    wanted = {f"{name}.{kind}" for name in norms for kind in ("running_mean", "running_var")}
    return {name: shape for name, shape in layout.stats.items() if name in wanted}


@dataclass(frozen=True)
class Question:
    """What moments a device is asked for.

    Attributes:
        asked: Norms.
        known: Per candidate, merged statistics of norms before them that the device may not have.
        number: The round after which it is asked; 0 before training, of candidates.
    """

    asked: tuple[str, ...]
    known: Sequence[Weights]
    number: int


def pack_question(
    layout: Layout,
    asked: Sequence[str],
    known: Sequence[str],
    stats: Sequence[Weights],
    number: int,
    level: int,
) -> Packet:
    """Pack a question for the moments of the norms `asked`, with the statistics of those `known`.

    Args:
        layout: The model's layout.
        asked: Norms.
        known: Norms.
        stats: Per candidate the statistics of the latter, at least.
        number: The round after which it is asked; 0 before training, of candidates.
        level: Which question of that round it is, from 0.
    """
    names = norm_names(layout.stats)
    flags = {
        key: np.array([name in chosen for name in names], np.uint8)
        for key, chosen in (("asked", asked), ("known", known))
    }
    told = stats_of(layout, known)
    rows = np.stack([_flat({name: row[name] for name in told}) for row in stats])
    return Packet({**flags, "known_stats": rows}, {"round": number, "level": level})


def read_question(packet: Packet, layout: Layout, candidates: int) -> Question:
    """Read a question packed by `pack_question`.

    Raises:
        WireError: It does not fit the model.
    """
    names = norm_names(layout.stats)
    asked, known = (
        [name for name, chosen in zip(names, flags.tolist(), strict=True) if chosen]
        for flags in (_array(packet, key, np.uint8, (len(names),)) for key in ("asked", "known"))
    )
    told = replace(layout, stats=stats_of(layout, known))
    rows = read_stats(packet, told, candidates, "known_stats")
    return Question(tuple(asked), rows, read_count(packet, "round", 0))


def pack_losses(losses: Sequence[float], examples: int) -> Packet:
    """Pack one loss per candidate, float64 [candidates].

    A loss that is NaN, infinite or larger becomes `LARGEST`: no candidate is worse, and that the
    model cannot be computed with a candidate's statistics is not the device's fault.
    """
    told = np.nan_to_num(np.array(losses, np.float64), nan=LARGEST)
    return Packet({"losses": np.clip(told, -LARGEST, LARGEST)}, {"examples": examples})


def read_losses(packet: Packet, candidates: int) -> tuple[list[float], int]:
    """Read losses packed by `pack_losses` and the number of examples behind them."""
    losses = _array(packet, "losses", np.float64, (candidates,))
    if not np.isfinite(losses).all():
        raise WireError("a candidate's loss is NaN or infinite; check the device's data")
    return losses.tolist(), read_count(packet, "examples")


# Scores of a dense model ---------------------------------------------------------------------


def pack_scores(scores: Weights, examples: int) -> Packet:
    """Pack a score per prunable weight, and the number of examples behind them."""
    return Packet({"scores": _flat(scores)}, {"examples": examples})


def read_scores(packet: Packet, shapes: Shapes) -> tuple[Weights, int]:
    """Read scores packed by `pack_scores`, of the prunable weights in order."""
    flat = _array(packet, "scores", np.float32, (sum(map(math.prod, shapes.values())),))
    if not np.isfinite(flat).all():
        raise WireError("scores hold NaN or infinite values; check the device's data")
    return _split(flat, shapes), read_count(packet, "examples")


# A metric on devices' own data ----------------------------------------------------------------

METRIC = "metric"
"""Number of a request to measure, a text: a metric of `fedkit.tasks.metrics` and its settings."""


def pack_value(value: float | None, number: int) -> Packet:
    """Pack a metric's value after a round; None, or no finite number, for one that has none."""
    has = value is not None and math.isfinite(value) and abs(value) <= LARGEST
    told = {"value": float(cast(float, value))} if has else {}
    return Packet({}, {"round": number, **told})


def read_value(packet: Packet) -> float | None:
    """Read a value packed by `pack_value`."""
    value = packet.numbers.get("value")
    if value is None:
        return None
    if not isinstance(value, float) or not abs(value) <= LARGEST:
        raise WireError(f"'value' is {short(value)}; need a finite number")
    return value


# Training ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Update:
    """What a device returns from a round.

    Attributes:
        state: Its trained model; under the masks it was sent, where its method leaves them.
        examples: Size of its data, the weight of the update.
        loss: Mean training loss of its last epoch.
        gradients: In an adjusting round, what the method scores by: of FedTiny the largest
            gradients of pruned weights per layer of the block.
    """

    state: ModelState
    examples: int
    loss: float
    gradients: Mapping[str, Entries]


def pack_update(update: Update, layout: Layout, known: Masks) -> Packet:
    """Pack an update; `known` are the masks the device was sent."""
    state = pack_state(update.state, known)
    positions, gradients = codec.encode_entries(update.gradients, layout.weights)
    sparse: dict[str, NDArray[Any]] = {}
    if update.gradients:
        sparse = {"positions": positions, "gradients": gradients}
    numbers = {**state.numbers, "examples": update.examples, "loss": update.loss}
    return Packet({**state.arrays, **sparse}, numbers)


def pack_differences(
    update: Update, layout: Layout, sent: ModelState, bits: int, remainder: Weights
) -> tuple[Packet, NDArray[np.float32]]:
    """Pack an update with its model as the differences from another, a few bits each.

    Args:
        update: The update.
        layout: The model's layout.
        sent: The model that the device was sent, as it read it.
        bits: Of a difference, 2 .. 8.
        remainder: What earlier rounding lost; it is added to what travels now. Of pruned weights it
            is dropped.

    Returns:
        The packet, and what rounding lost this time: float32 [kept], as `codec.encode_values`
        orders weights under the update's masks. Statistics leave none: each is sent anew.
    """
    model, masks = update.state, update.state.masks
    trained, before, lost = (
        codec.encode_values(weights, masks) for weights in (model.weights, sent.weights, remainder)
    )
    wanted = trained - before + lost
    values = np.concatenate([wanted, _flat(relative_stats(model.stats, sent.stats))])
    shapes = {**layout.weights, **layout.stats}
    blob = differences.encode_differences(values, shapes, masks, bits)
    told = differences.decode_differences(blob, shapes, masks, bits)[: len(wanted)]
    whole = pack_update(update, layout, sent.masks)
    rest = {name: a for name, a in whole.arrays.items() if name not in ("values", "stats")}
    return Packet({"differences": blob, **rest}, whole.numbers), wanted - told


def _read_differences(packet: Packet, layout: Layout, sent: ModelState, bits: int) -> ModelState:
    masks = _read_masks(packet, layout, sent.masks)
    shapes = {**layout.weights, **layout.stats}
    told = differences.decode_differences(_bytes(packet, "differences"), shapes, masks, bits)
    before = codec.encode_values(sent.weights, masks)
    weights = codec.decode_values(before + told[: len(before)], layout.weights, masks)
    stats = absolute_stats(_split(told[len(before) :], layout.stats), sent.stats)
    return ModelState(weights, _stats_from(_flat(stats), layout), masks)


def read_update(
    packet: Packet,
    layout: Layout,
    sent: ModelState,
    layers: Sequence[str],
    own_masks: bool = False,
    bits: int = 0,
) -> Update:
    """Read an update.

    Args:
        packet: What `pack_update` made, or with bits `pack_differences`.
        layout: The model's layout.
        sent: The model the device was sent, as it read it.
        layers: The layers of which it must hold gradients, no more and no less.
        own_masks: Whether the device may answer under other masks.
        bits: Of a difference; 0 for a model sent whole.

    Raises:
        WireError: Anything that does not fit.
    """
    gradients = {}
    if layers:
        values = _array(packet, "gradients", np.float32, (None,))
        shapes = {name: layout.weights[name] for name in layers}
        gradients = codec.decode_entries(_bytes(packet, "positions"), values, shapes)
    if not own_masks and packet.arrays.keys() & {"masks", "mask_changes"}:
        raise WireError(
            "an update carries masks of its own, which this run's method does not let devices "
            "change; server and device run different methods: give both the same config"
        )
    loss = packet.numbers.get("loss")
    if not isinstance(loss, float) or not math.isfinite(loss):
        raise WireError(f"'loss' is {short(loss)}; need a finite number; lower lr of the sender")
    if bits:
        state = _read_differences(packet, layout, sent, bits)
    else:
        state = read_state(packet, layout, sent.masks)
    return Update(state, read_count(packet, "examples"), loss, gradients)
