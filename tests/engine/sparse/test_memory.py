"""A step within a given memory: which bits it stores, and what is refused."""

from __future__ import annotations

import re
import tracemalloc
import weakref
from dataclasses import replace

import numpy as np
import pytest

from fedkit.config import make_config
from fedkit.core.errors import ConfigError, EngineError
from fedkit.engine.base import LocalTraining, MeanLoss, even_batches
from fedkit.engine.choose import make_engine
from fedkit.engine.kernels import native
from fedkit.engine.kernels.network import Network
from fedkit.engine.sparse import budget as budgets
from fedkit.engine.sparse import engine as sparse_engine
from fedkit.engine.sparse.budget import any_state, budget
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.sparse.program import SparseProgram
from fedkit.engine.sparse.recomputing import RecomputingProgram, heads_of
from fedkit.engine.sparse.stored import STORED_BITS
from fedkit.tasks import load_task, losses
from fedkit.tasks.task import Examples
from sim.scenario import make_scenario
from tests.engine.sparse.cases import engines, examples, l1, pruned, zoo

SHAPE = (3, 16, 16)
COUNT = 40
HOW = LocalTraining(epochs=1, batch_size=COUNT, lr=0.05, momentum=0.9, weight_decay=1e-3)
REFERENCE, PLAIN = engines(zoo("resnet8", SHAPE), SHAPE)
STATE, DATA = pruned(REFERENCE.initial_state(), 0.1), examples(COUNT, SHAPE)
PEAKS = {
    bits: SparseEngine(PLAIN.plan, stored_bits=bits).program(STATE, "train", COUNT).memory.peak
    for bits in STORED_BITS
}


def least() -> int:
    """Return the least that a step can take in 4 bits, with whatever is computed again."""
    peaks = [PEAKS[4]]
    for simd in native.available():
        network = Network(PLAIN.plan, STATE.masks, native.load_kernels(simd))
        how = COUNT, 1, None, 4
        peaks.append(SparseProgram(network, "train", *how).memory.peak)
        for head in heads_of(network):
            peaks.append(RecomputingProgram(network, "train", head, *how).memory.peak)
    return min(peaks)


@pytest.mark.parametrize("bits", STORED_BITS)
def test_as_many_bits_are_stored_as_fit(bits: int) -> None:
    for memory in (PEAKS[bits], PEAKS[bits] + 1):
        program = SparseEngine(PLAIN.plan, memory=memory).program(STATE, "train", COUNT)
        assert (program.stored_bits, program.memory.peak) == (bits, PEAKS[bits])
    if bits > 4:
        program = SparseEngine(PLAIN.plan, memory=PEAKS[bits] - 1).program(STATE, "train", COUNT)
        assert program.stored_bits < bits and program.memory.peak < PEAKS[bits]


def test_never_more_bits_are_stored_than_were_asked_for() -> None:
    engine = SparseEngine(PLAIN.plan, stored_bits=8, memory=10 * PEAKS[32])
    assert engine.program(STATE, "train", COUNT).stored_bits == 8


def test_a_step_that_cannot_fit_names_a_batch_that_does() -> None:
    memory = least() - 1
    engine = SparseEngine(PLAIN.plan, memory=memory)
    with pytest.raises(EngineError, match="in 4 bits; memory is") as error:
        engine.train(STATE, DATA, HOW, 0)
    found = re.search(r"; a batch of (\d+) fits", str(error.value))
    assert found is not None
    assert engine.program(STATE, "train", int(found[1])).memory.peak <= memory
    with pytest.raises(EngineError, match=r"memory is 0.001 MB: give more"):
        SparseEngine(PLAIN.plan, memory=1000).train(STATE, DATA, HOW, 0)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_evaluation_takes_fewer_examples_at_a_time(share: float) -> None:
    data = examples(70, SHAPE)
    most = PLAIN.program(STATE, "evaluate", 64).memory.peak
    engine = SparseEngine(PLAIN.plan, memory=int(share * most))
    for _ in range(2):
        np.testing.assert_array_equal(
            engine.outputs(STATE, data.inputs), PLAIN.outputs(STATE, data.inputs)
        )
        assert engine.loss(STATE, data) == PLAIN.loss(STATE, data)
    program = engine.program(STATE, "evaluate", 64)
    assert program is engine.program(STATE, "evaluate", 64)  # made once
    assert program.batch < 64 and program.memory.peak <= int(share * most)


LOSSES = {"a kernel": losses.CrossEntropy(), "numpy": losses.CrossEntropy(label_smoothing=0.1)}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("room", [0, 1 << 40])
@pytest.mark.parametrize("threads", [1, 2])
def test_outputs_and_losses_are_those_of_whole_batches(
    loss: str, room: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_engine, "_EVALUATION_BYTES", room)
    plan, data = replace(PLAIN.plan, loss=LOSSES[loss]), examples(70, SHAPE)
    engine = SparseEngine(plan, threads=threads)
    outputs, loss_found = engine.outputs(STATE, data.inputs), engine.loss(STATE, data)
    made = engine.program(STATE, "evaluate", 64)
    assert made.batch == (64 if room else threads * engine.kernels.lanes)
    whole, mean = SparseProgram(made.network, "evaluate", 64), MeanLoss(plan.loss)
    for order in even_batches(np.arange(70), 64):
        whole.forward(data.inputs, order)
        np.testing.assert_array_equal(outputs[order], whole.outputs())
        mean.add(whole.loss(data.targets[order]), data.targets[order])
    assert loss_found == mean.value


def test_the_loss_of_maps_is_that_of_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_engine, "_EVALUATION_BYTES", 0)
    reference, engine = engines(zoo("unet-w8", (1, 16, 16)), (1, 16, 16))
    state, inputs = pruned(reference.initial_state(), 0.5), examples(40, (1, 16, 16)).inputs
    targets = np.random.default_rng(0).integers(0, 2, (40, 16, 16))
    found = engine.loss(state, Examples(inputs, targets))
    made = engine.program(state, "evaluate", 64)
    whole = SparseProgram(made.network, "evaluate", 64)
    whole.forward(inputs, np.arange(40))
    assert made.batch < 40 and found == whole.loss(targets)


def test_a_large_model_evaluates_a_few_at_a_time() -> None:
    reference, engine = engines(zoo("resnet18-w16", (3, 32, 32)), (3, 32, 32))
    state = pruned(reference.initial_state(), 0.1)
    evaluation = engine.program(state, "evaluate", 64)
    assert evaluation.batch < 64 and evaluation.memory.activations <= 4 << 20


def test_training_allocates_no_more_than_it_may() -> None:
    engine = SparseEngine(PLAIN.plan, memory=PEAKS[8])
    engine.program(STATE, "train", COUNT)
    dense = sum(weight.nbytes for weight in STATE.weights.values())
    tracemalloc.start()
    trained, _ = engine.train(STATE, DATA, HOW, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # All of the step was planned; beside it there are its inputs and the models.
    assert peak < 2 * DATA.inputs.nbytes + 3 * dense
    expected, _ = SparseEngine(PLAIN.plan, stored_bits=8).train(STATE, DATA, HOW, 3)
    for name, value in expected.weights.items():
        np.testing.assert_array_equal(trained.weights[name], value)


def test_a_batch_of_an_adjustment_keeps_to_it() -> None:
    reference, plain = engines(l1(zoo("resnet8", SHAPE)), SHAPE)  # of which nothing can run again
    state, name = pruned(reference.initial_state(), 0.1), next(iter(STATE.masks))
    few = SparseEngine(plain.plan, stored_bits=4).program(state, "train", COUNT)
    engine = SparseEngine(plain.plan, memory=few.memory.peak)
    assert len(engine.top_gradients(state, DATA, {name: 3})[name].values) == 3
    with pytest.raises(EngineError, match="--adjust-examples"):
        engine.top_gradients(state, examples(4 * COUNT, SHAPE), {name: 3})


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(ConfigError, match="no size"):
        make_config({"task": "digits", "memory": "64 apples"})
    with pytest.raises(ConfigError, match="leave one of the two away"):
        make_config({"task": "digits", "memory": "64MB", "precision": "int8"})
    wishes = make_config({"task": "digits", "memory": "64MB", "engine": "torch"}).engine_wishes
    with pytest.raises(EngineError, match="torch takes what it needs"):
        make_engine(load_task("digits"), "", 1, *wishes)
    wishes = make_config({"task": "digits", "memory": "64MB"}).engine_wishes
    _, notice = make_engine(load_task("digits"), "", 1, *wishes)
    assert "within 64 MB a step" in notice


# What it comes to, before training


def kept(density: float) -> dict[str, int]:
    return {name: max(1, int(mask.size * density)) for name, mask in STATE.masks.items()}


@pytest.mark.parametrize("bits", STORED_BITS)
def test_a_budget_tells_what_training_will_do(bits: int) -> None:
    told = budget(SparseEngine(PLAIN.plan, memory=PEAKS[bits] + 5000), kept(0.1), DATA, 64)
    assert told.stored_bits == bits and told.batch == COUNT
    assert told.step_bytes == pytest.approx(PEAKS[bits], rel=0.01)
    assert told.wide_bytes == pytest.approx(PEAKS[32], rel=0.01)
    assert told.step_bytes <= PEAKS[bits] + 5000 and told.seconds > 0
    assert told.slower == 1 if bits == 32 else told.slower is not None and told.slower > 0
    line = told.line()
    assert f"a step of {COUNT} stores {bits} bits and plans" in line
    assert ("unbounded" in line) == (bits < 32)
    assert f"evaluation takes {told.evaluated} at a time" in line


def test_a_budget_runs_one_program_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of two would be more than there may be; what never runs touches none."""
    ran, measure = list[weakref.ref[SparseProgram]](), budgets._seconds

    def watched(program: SparseProgram, given: Examples, count: int) -> float:
        assert program.memory.peak <= memory
        assert all(other() in (None, program) for other in ran)
        ran.append(weakref.ref(program))
        return measure(program, given, count)

    monkeypatch.setattr(budgets, "_seconds", watched)
    memory = PEAKS[4] + 5000
    budget(SparseEngine(PLAIN.plan, memory=memory), kept(0.1), DATA, COUNT)
    assert len(ran) == 3  # the bound one, of all and of few, and the unbounded one of few


@pytest.mark.parametrize("share", [0.75, 0.9])
def test_a_budget_tells_what_runs_again(share: float) -> None:
    memory = int(share * PEAKS[4])
    told = budget(SparseEngine(PLAIN.plan, memory=memory), kept(0.1), DATA, COUNT)
    assert told.repeated and told.step_bytes <= memory
    assert f"computes its first {told.repeated} ops again {told.tile} examples at a time" in (
        told.line()
    )
    assert "again" not in budget(SparseEngine(PLAIN.plan), kept(0.1), DATA, COUNT).line()


def test_a_budget_that_training_exceeds_is_refused() -> None:
    engine = SparseEngine(PLAIN.plan, memory=PEAKS[4] // 2)
    with pytest.raises(EngineError, match=r"a batch of 40 needs .* in 4 bits; memory is"):
        budget(engine, kept(0.1), DATA, COUNT)
    with pytest.raises(EngineError, match=r"MB to evaluate; memory is 0\.01 MB: give more"):
        budget(SparseEngine(PLAIN.plan, memory=10_000), kept(0.1), DATA, COUNT)


def test_any_state_is_one_of_the_model() -> None:
    state = any_state(PLAIN.plan, kept(0.1))
    PLAIN.program(state, "train", 2)  # checks it
    for name, mask in state.masks.items():
        assert 0.9 * kept(0.1)[name] <= mask.sum() <= kept(0.1)[name]
    whole = any_state(PLAIN.plan, kept(1.0))
    assert whole.density == 1


def test_a_run_says_it_before_it_begins_and_its_server_is_not_bound() -> None:
    keys = {"task": "digits", "model": "resnet8", "devices": 2, "memory": "1000kB"}
    scenario = make_scenario(make_config({**keys, "density": 0.1, "batch_size": 32}))
    scenario.check()
    assert "stores 4 bits" in scenario.memory_notice or "stores 8 bits" in scenario.memory_notice
    assert scenario.device(0).engine is scenario.engine
    server = scenario.server().engine
    assert isinstance(server, SparseEngine) and server.memory is None
    assert make_scenario(make_config({**keys, "memory": ""})).memory_notice == ""
    with pytest.raises(EngineError, match=r"memory is 0\.05 MB"):
        make_scenario(make_config({**keys, "memory": "50kB"})).check()
