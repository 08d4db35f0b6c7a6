"""A device whose process is to be small: it makes a reply in the memory that a step took."""

from __future__ import annotations

import numpy as np
import pytest

from fedkit.config import make_config
from fedkit.core import heap
from fedkit.device.round import Device
from fedkit.engine.plan.capture import capture
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.methods.interface import Phase
from fedkit.methods.registry import resolve
from fedkit.nn.zoo import build_model, seeded
from fedkit.sparse.candidates import CandidatePool
from fedkit.sparse.state import ModelState, count_kept
from fedkit.tasks.task import Examples
from fedkit.wire import messages
from fedkit.wire.messages import Packet

SHAPE = (1, 4, 4)


class Watched(SparseEngine):
    """Tells whether it holds memory of what it computed."""

    def holds_nothing(self) -> bool:
        return self._network is None and not self._programs


def made() -> tuple[Device, ModelState]:
    model = seeded(lambda: build_model("resnet8", SHAPE, 3), 0)
    engine = Watched(capture(model, SHAPE))
    rng = np.random.default_rng(0)
    masks = {name: rng.random(s) < 0.3 for name, s in engine.layout.prunable_shapes.items()}
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    stats = {name: np.ones(shape, np.float32) for name, shape in engine.layout.stats.items()}
    keys = {"method": "fedtiny", "density": 0.3, "batch_size": 8, "devices": 1, "rounds": 3}
    examples = Examples(rng.standard_normal((12, *SHAPE)).astype(np.float32), np.arange(12) % 3)
    device = Device(0, examples, engine, resolve(make_config(keys)))
    return device, ModelState(weights, stats, masks).with_masks(masks)


def requests(state: ModelState) -> dict[Phase, Packet]:
    kept = np.array(list(count_kept(state.masks).values()))
    pool = CandidatePool(state, np.array([0.8 * kept, 0.6 * kept], np.int32))
    model = messages.pack_state(state, None)
    return {
        "moments": messages.pack_pool(pool),
        "losses": messages.pack_pool_with_stats(pool, [state.stats] * 2),
        "train": Packet(model.arrays, {**model.numbers, "round": 1}),
    }


@pytest.mark.parametrize("small", [False, True])
def test_a_small_process_packs_once_its_engine_holds_nothing(
    small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heap, "_small", small)
    device, state = made()
    engine, held = device.engine, list[bool]()
    assert isinstance(engine, Watched)
    for module, name in (
        *((CandidatePool, "candidate"), (messages, "pack_moments")),
        *((messages, "pack_losses"), (messages, "pack_update")),
    ):
        real = getattr(module, name)

        def watched(*given: object, real: object = real) -> object:
            held.append(not engine.holds_nothing())
            return real(*given)  # type: ignore[operator]

        monkeypatch.setattr(module, name, watched)
    for phase, request in requests(state).items():
        engine.rest()
        held.clear()
        device.handle(phase, request, Packet({}))
        assert held[-1] != small, phase
        assert any(held) != small, phase


def test_replies_are_the_same_in_a_small_process(monkeypatch: pytest.MonkeyPatch) -> None:
    replies = []
    for small in (False, True):
        monkeypatch.setattr(heap, "_small", small)
        device, state = made()
        asked = requests(state).items()
        replies.append([device.handle(*each, Packet({}))[0] for each in asked])
    for one, other in zip(*replies, strict=True):
        assert one.numbers == other.numbers
        assert one.arrays.keys() == other.arrays.keys()
        for name, array in one.arrays.items():
            np.testing.assert_array_equal(array, other.arrays[name])
