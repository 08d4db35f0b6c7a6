"""When a trainer in C needs which memory, and where it lies in one arena.

The schedule is the engine's, with the backward pass of a convolution in parts: what one part
needed, the next may overwrite. So the peak is lower than the engine's, which gives every
convolution room for all its parts.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from fedkit.engine.kernels.network import Layer
from fedkit.engine.plan.conv import Convolution, reads_plain
from fedkit.engine.plan.execution import (
    Backward,
    Finish,
    Forward,
    Key,
    Narrow,
    Schedule,
    Step,
    Widen,
    keeping_argmax,
    lives_of,
    tightly,
)
from fedkit.engine.plan.execution import touched as touched_by_engine
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse.stored import stored_bytes

ALIGNMENT = 8
"""Of everything in the arena, in bytes: that of a double."""

_FLOAT = 4
_ATTEMPTS = 20_000  # divided by the number of storages, which each takes time
_VECTORS_OF_SUMS = 3  # struct sums of tensor.h
_RANGE = 2 * _FLOAT  # struct range of stored.h


@dataclass(frozen=True)
class ConvPart(Backward):
    """One part of a convolution's backward pass.

    Attributes:
        part: "take" packs the gradient of the target; then "add" adds to the gradients of the
            weights of a dense layer, and "give" computes the gradient of its source; or "return"
            does both for a layer of kept weights.
    """

    part: Literal["take", "add", "give", "return"]


def in_parts(
    plan: Plan, schedule: Schedule, narrow: frozenset[int], dense: Container[int]
) -> Schedule:
    """Return a training schedule with convolutions in parts, and some tensors in few bits.

    Args:
        plan: The model.
        schedule: The engine's, of float32.
        narrow: What is stored in few bits between the passes.
        dense: Convolutions that run with all weights.
    """
    schedule = keeping_argmax(plan, schedule, narrow)
    steps = [part for step in schedule.steps for part in _parts(plan, step, dense)]
    last, first = dict[int, int](), dict[int, int]()
    for moment, step in enumerate(steps):
        for kind, tensor in schedule.touched(plan, step, touched):
            if kind == "x" and isinstance(step, Forward):
                last[tensor] = moment
            elif kind == "x":
                first.setdefault(tensor, moment)
    stored = narrow & frozenset(first) & frozenset(last)
    made = list[Step]()
    for moment, step in enumerate(steps):
        made += [Widen(tensor) for tensor in sorted(stored) if first[tensor] == moment]
        made.append(step)
        made += [Narrow(tensor) for tensor in sorted(stored) if last[tensor] == moment]
    return Schedule(
        tuple(made), schedule.owner, narrow=stored, widened=stored, argmax=schedule.argmax
    )


def _parts(plan: Plan, step: Step, dense: Container[int]) -> Iterator[Step]:
    if not isinstance(step, Backward) or not isinstance(plan.ops[step.op], Convolution):
        yield step
        return
    yield ConvPart(step.op, (), "take")
    if step.op not in dense:
        yield ConvPart(step.op, step.contributions, "return")
        return
    yield ConvPart(step.op, (), "add")
    if step.contributions:
        yield ConvPart(step.op, step.contributions, "give")


def touched(plan: Plan, step: Step) -> list[Key]:
    """Return what a step reads or writes; see `Key`.

    Besides, by the number of an op,

    - ("scratch", op): the padded inputs of a convolution, and its sums, in the forward pass
    - ("in", op), ("out", op): a few padded inputs, and all padded gradients, in the backward pass
    - ("sums", op): sums of the gradient that it finishes
    - ("turned", op): its weights in the order of the backward pass, if it runs dense

    and ("chain", tensor): how a gradient passes the norm of a tensor.
    """
    if isinstance(step, ConvPart):
        return _touched_by_part(plan, step)
    keys = touched_by_engine(plan, step)
    if isinstance(step, Forward) and isinstance(plan.ops[step.op], Convolution):
        keys.append(("scratch", step.op))
    if isinstance(step, Finish):
        keys += _chains(plan, step.tensor)
    if isinstance(step, Backward):
        finished = (given.tensor for given in step.contributions if given.finish)
        keys += _chains(plan, plan.ops[step.op].target, *finished)
    return keys


def _touched_by_part(plan: Plan, step: ConvPart) -> list[Key]:
    op, out = plan.ops[step.op], ("out", step.op)
    (source,) = op.sources
    if step.part == "take":
        normed = _chains(plan, op.target)
        return [("g", op.target), out, *normed, *([("x", op.target)] if normed else [])]
    if step.part == "add":
        return [("x", source), ("in", step.op), out]
    keys = [out, ("sums", step.op), ("turned", step.op)]
    for given in step.contributions:
        keys += [("g", source), *(_chains(plan, source) if given.finish else [])]
    if step.part == "return" or any(given.finish for given in step.contributions):
        keys.append(("x", source))
    return keys


def _chains(plan: Plan, *tensors: int) -> list[Key]:
    return [("chain", each) for each in tensors if plan.tensors[each].norm is not None]


@dataclass(frozen=True)
class StorageSizes:
    """Bytes of everything that has to be placed.

    Attributes:
        plan: The model.
        layers: Its convolutions, by the numbers of their ops.
        lanes: Examples of a step.
        bits: Of a stored value.
    """

    plan: Plan
    layers: dict[int, Layer]
    lanes: int
    bits: int

    def __call__(self, key: Key) -> int:
        """Return the bytes of one key of `touched`."""
        kind, number = key
        if kind in ("x", "g", "wide", "code", "argmax", "chain"):
            size = self._of_tensor(kind, number)
        else:
            size = _FLOAT * self._of_layer(kind, self.layers[number])
        return _aligned(size)

    def _of_tensor(self, kind: str, number: int) -> int:
        tensor = self.plan.tensors[number]
        channels, height, width = tensor.shape
        plane = height * width * self.lanes
        if kind == "chain":
            return 3 * _FLOAT * channels
        if kind == "argmax":
            return channels * plane
        if kind == "code":
            return channels * (_RANGE + stored_bytes(height * width, self.lanes, self.bits))
        return _FLOAT * channels * plane

    def _of_layer(self, kind: str, layer: Layer) -> int:
        geometry = layer.geometry
        most = max(geometry.source[0], geometry.target[0])
        packs = not reads_plain(self.plan, geometry.op)
        return {
            "scratch": packs * geometry.tile_in + most * _VECTORS_OF_SUMS * self.lanes,
            "in": packs * geometry.tile_few,
            "out": geometry.tile_out,
            "sums": geometry.source[0] * _VECTORS_OF_SUMS * self.lanes,
            "turned": _turned(layer),
        }[kind]


def _turned(layer: Layer) -> int:
    """Return the weights of a dense layer in the order of its backward maps."""
    if not layer.dense:
        return 0
    geometry = layer.geometry
    taps = sum(len(geometry.dense_phase(phase)[0]) for phase in geometry.phases)
    return taps * geometry.source[0]


def placed(
    plan: Plan, schedule: Schedule, sizes: StorageSizes, begin: int, lasting: Sequence[int]
) -> tuple[dict[Key, int], list[int], int]:
    """Place all that a trainer needs.

    Args:
        plan: The model.
        schedule: That of `in_parts`.
        sizes: Bytes of a key.
        begin: Bytes that are taken.
        lasting: Bytes of each thing that lasts from step to step.

    Returns:
        The offset of each key and of each lasting thing, and the bytes of the arena.
    """
    offsets = list[int]()
    begin = _aligned(begin)
    for size in lasting:
        offsets.append(begin)
        begin += _aligned(size)
    lives = lives_of(plan, schedule, touched)
    wanted = {key: (sizes(key), *life) for key, life in lives.items()}
    places, peak = tightly(wanted, _ATTEMPTS)
    names = {
        key: begin + places[schedule.storage(key)]
        for step in schedule.steps
        for key in schedule.touched(plan, step, touched)
    }
    return names, offsets, begin + peak


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
