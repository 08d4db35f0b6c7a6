"""A device of ResNet-18 at 1 % density: no array of its process is as large as the model."""

from __future__ import annotations

import functools
import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from fedkit.config import RunConfig, make_config
from fedkit.device.round import Device
from fedkit.engine.plan.capture import capture
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.methods.interface import Phase
from fedkit.methods.registry import resolve
from fedkit.nn.zoo import build_model
from fedkit.sparse.bits import pack
from fedkit.sparse.candidates import CandidatePool
from fedkit.sparse.packed import PackedMasks
from fedkit.sparse.state import ModelState, count_kept
from fedkit.tasks.losses import PLAIN
from fedkit.tasks.task import Examples
from fedkit.wire import messages
from fedkit.wire.messages import Packet

SHAPE = (3, 8, 8)
"""Of small images: what is left of the memory are activations, and these are not measured here."""
EXAMPLES = 16


@functools.cache
def engine() -> SparseEngine:
    return SparseEngine(capture(build_model("resnet18", SHAPE, 10), SHAPE, PLAIN))


@functools.cache
def model() -> ModelState:
    layout, rng = engine().layout, np.random.default_rng(0)
    bits = {n: pack(rng.random(s, np.float32) < 0.01) for n, s in layout.prunable_shapes.items()}
    masks = PackedMasks(layout.prunable_shapes, bits)
    weights = {n: rng.normal(0, 0.05, s).astype(np.float32) for n, s in layout.weights.items()}
    stats = {name: np.ones(shape, np.float32) for name, shape in layout.stats.items()}
    return ModelState(weights, stats, masks).with_masks(masks)


def config() -> RunConfig:
    values = {"density": 0.01, "epochs": 1, "batch_size": EXAMPLES, "adjust_examples": EXAMPLES}
    return resolve(make_config({**values, "method": "fedtiny", "rounds": 300, "devices": 1}))


def pool() -> CandidatePool:
    kept = np.array(list(count_kept(model().masks).values()))
    return CandidatePool(model(), np.array([0.8 * kept, 0.6 * kept], np.int32))


def numbered(packet: Packet, number: int) -> Packet:
    return Packet(packet.arrays, {**packet.numbers, "round": number})


def whole() -> Packet:
    return messages.pack_state(model(), None)


def pool_with_stats() -> Packet:
    return messages.pack_pool_with_stats(pool(), [model().stats] * 2)


def nothing_yet() -> Packet:
    return Packet({})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "request_of", "memory_of"),
    [
        ("moments", lambda: messages.pack_pool(pool()), nothing_yet),
        ("losses", pool_with_stats, nothing_yet),
        ("train", lambda: Packet({}, {"candidate": 0, "round": 1}), pool_with_stats),
        ("train", lambda: numbered(whole(), 1), nothing_yet),
        ("train", lambda: numbered(whole(), 10), nothing_yet),
    ],
    ids=["moments", "losses", "candidate", "round", "adjusting-round"],
)
def test_a_device_holds_no_array_of_the_size_of_the_model(
    phase: Phase, request_of: Callable[[], Packet], memory_of: Callable[[], Packet]
) -> None:
    """All of numpy's arrays at their peak, but for the arena with the activations."""
    inputs = np.random.default_rng(1).standard_normal((EXAMPLES, *SHAPE), np.float32)
    device = Device(0, Examples(inputs, np.arange(EXAMPLES) % 10), engine(), config())
    request, memory = request_of(), memory_of()
    engine()._programs.clear()
    tracemalloc.start()
    try:
        device.handle(phase, request, memory)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    (program,) = engine()._programs.values()
    arena = program._arena.base
    assert arena is not None
    weights = sum(map(math.prod, engine().layout.weights.values()))
    # A byte per weight: a dense model takes four, and dense masks one.
    assert peak - arena.nbytes < weights
