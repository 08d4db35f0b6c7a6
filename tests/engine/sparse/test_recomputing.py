"""Programs that hold a tile of what they compute, against those that hold the batch: equal bits."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fedkit.core.errors import EngineError
from fedkit.engine.kernels import native
from fedkit.engine.kernels.network import Network
from fedkit.engine.ops.registry import FAMILIES
from fedkit.engine.plan.recomputation import PlanHead, heads
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse import recomputing
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.sparse.program import SparseProgram
from fedkit.engine.sparse.recomputing import RecomputingProgram, heads_of
from tests.engine.kernels.programs import choices_of, fill
from tests.engine.ops import examples as examples_of_ops
from tests.engine.ops.examples import AROUND, EXAMPLES, Around
from tests.engine.plan import random_plans
from tests.engine.plan.plans import FUNCTIONS, KINDS, PlanCase, random_case
from tests.engine.sparse.cases import engines, examples, l1, mobile, pruned, zoo
from tests.sets import drawn, slow, slow_but

SHAPE = (3, 16, 16)
COUNT = 21
MODELS = ("resnet8", "vgg11", "mobilenetv2-w0.25", "ds-cnn")


def steps(program: SparseProgram, case: PlanCase) -> Iterator[bytes]:
    """Yield the bits of what two steps of training compute, in the second all gradients too."""
    inputs, targets = case.inputs, case.targets
    whole = list[bytes]()

    def before(number: int) -> None:
        if number in program.network.layers:
            whole.extend(rows.tobytes() for rows in program.full_gradient(number, 2))

    program.network.load(case.state)
    program.velocity[:] = 0
    program.restart(5)
    for look in (None, before):
        program.forward(inputs, np.arange(len(inputs)))
        yield np.float64(program.loss(targets)).tobytes()
        yield program.outputs().tobytes()
        program.backward(before=look)
        yield program.gradient.tobytes()
        yield from statistics(program)
        program.step(0.1, 0.9, 1e-3)
    yield program.network.parameters.values.tobytes()
    yield b"".join(whole)


def statistics(program: SparseProgram) -> Iterator[bytes]:
    for norm in program.network.norms.values():
        yield norm.center.tobytes() + norm.spread.tobytes()


def check(case: PlanCase, network: Network, bits: int, threads: int = 1) -> int:
    """Compare all heads of a network; return how many there are."""
    count = len(case.inputs)
    expected = [*steps(SparseProgram(network, "train", count, 1, None, bits), case)]
    found = [*heads_of(network)]
    for head in found:
        program = RecomputingProgram(network, "train", head, count + 9, threads, None, bits)
        fill(program)
        assert [*steps(program, case)] == expected, head
    for frozen in (None, case.state):
        whole = SparseProgram(network, "statistics", count)
        whole.frozen = frozen
        whole.forward(case.inputs, np.arange(count))
        expected = [*statistics(whole), whole.outputs().tobytes()]
        for head in found:
            again = RecomputingProgram(network, "statistics", head, count, threads)
            again.frozen = frozen
            fill(again)
            again.forward(case.inputs, np.arange(count))
            assert [*statistics(again), again.outputs().tobytes()] == expected, head
    return len(found)


def case_of(model: str, density: float) -> PlanCase:
    shape = {"vgg11": (3, 32, 32), "ds-cnn": (1, 20, 10)}.get(model, SHAPE)
    reference, engine = engines(zoo(model, shape), shape)
    data = examples(COUNT, shape)
    state = pruned(reference.initial_state(), density)
    return PlanCase(engine.plan, state, data.inputs, data.targets, 0.5, 1)


@pytest.mark.parametrize("bits", [32, slow(16), slow(8), 4])
@pytest.mark.parametrize(("model", "density"), slow_but(
    [("resnet8", 0.1), ("ds-cnn", 0.3)], [(m, d) for m in MODELS for d in (0.1, 0.3, 1.0)]
))  # fmt: skip
@pytest.mark.parametrize("simd", native.available())
def test_models_have_the_bits_of_whole_batches(
    model: str, density: float, bits: int, simd: str
) -> None:
    case, kernels = case_of(model, density), native.load_kernels(simd)
    network = Network(case.plan, case.state.masks, kernels, part_tiles=1)
    assert check(case, network, bits, threads=1 + (bits == 4)) > 3


@settings(max_examples=drawn(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32), st.sampled_from([KINDS, FUNCTIONS]), st.sampled_from([32, 8, 4]))
def test_any_plan_has_the_bits_of_whole_batches(
    seed: int, kinds: tuple[str, ...], bits: int
) -> None:
    case = random_case(random.Random(seed).choice, kinds, most=5)
    kernels = native.load_kernels(native.available()[seed % len(native.available())])
    with choices_of(case):
        network = Network(case.plan, case.state.masks, kernels, part_tiles=1)
    assert check(case, network, bits) == len([*heads_of(network)])


BY_TILES = [
    name for name, each in EXAMPLES.items()
    if (found := FAMILIES[each.op.kind].sparse) is not None and found.by_tiles
]  # fmt: skip


@pytest.mark.parametrize("around", AROUND, ids=lambda around: around.norm or "plain")
@pytest.mark.parametrize("name", BY_TILES)
def test_every_op_that_can_runs_tile_by_tile(name: str, around: Around) -> None:
    case = examples_of_ops.case_of(EXAMPLES[name], around, 0.5)
    network = Network(case.plan, case.state.masks, PLAIN.kernels, part_tiles=1)
    heads_there = check(case, network, 4 if around.norm else 32)
    assert heads_there or around.norm == "l1-batch"


def slow_heads(plan: Plan) -> list[PlanHead]:
    """Return the heads of a plan whose ops all can, by what a head must not do."""
    found = []
    for count in range(1, len(plan.ops) + 1):
        head, tail = plan.ops[:count], plan.ops[count:]
        written = {op.target for op in head}
        outside = [s for op in tail for s in op.sources] + [plan.output]
        edge = {tensor for tensor in outside if tensor in written}
        if len(edge) != 1 or 0 in outside:
            continue
        (one,) = edge
        reads_edge = any(one in op.sources for op in head)
        shares = any(op.target in written for op in tail)
        if not reads_edge and not shares:
            found.append(PlanHead(count, one, frozenset({0, *written} - edge)))
    return found


@settings(max_examples=drawn(200), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(random_plans.plans(), st.data())
def test_heads_have_one_edge(plan: Plan, data: st.DataObject) -> None:
    able = data.draw(st.integers(0, len(plan.ops)))
    found = [*heads(plan, lambda number: number < able)]
    assert found == [head for head in slow_heads(plan) if head.count <= able]
    assert all(head.edge not in head.inner for head in found)


def test_what_cannot_run_tile_by_tile_ends_a_head() -> None:
    def counts(factory: Callable[[], nn.Module]) -> list[int]:
        _, engine = engines(factory, SHAPE)
        masks = engine.initial_state().masks
        return [head.count for head in heads_of(Network(engine.plan, masks, engine.kernels, 1))]

    resnet = zoo("resnet8", SHAPE)
    assert counts(resnet)[-1] == len(engines(resnet, SHAPE)[1].plan.ops)
    assert counts(l1(resnet)) == []
    assert counts(mobile(SHAPE))
    # Parts of several tiles have sums of their own.
    _, engine = engines(resnet, SHAPE)
    network = Network(engine.plan, engine.initial_state().masks, engine.kernels)
    assert heads_of(network).__next__().count == 1
    last = [*heads_of(network)][-1].count
    assert last < len(engine.plan.ops)
    assert all(network.layers[n].geometry.tiles_per_part == 1 for n in network.layers if n < last)


# Within a memory

REFERENCE, PLAIN = engines(zoo("resnet8", (3, 32, 32)), (3, 32, 32))
STATE, DATA = pruned(REFERENCE.initial_state(), 0.1), examples(64, (3, 32, 32))


def programs(kernels: native.Kernels, bits: int) -> list[RecomputingProgram]:
    network = Network(PLAIN.plan, STATE.masks, kernels)
    return [RecomputingProgram(network, "train", h, 64, 1, None, bits) for h in heads_of(network)]


def test_as_little_as_may_be_is_computed_again() -> None:
    fitting = SparseEngine(PLAIN.plan, stored_bits=4).program(STATE, "train", 64).memory.peak
    made = programs(PLAIN.kernels, 4)
    least = fitting
    for each in made:
        peak = each.memory.peak
        if peak >= least:
            continue  # a shorter head needs no more
        program = SparseEngine(PLAIN.plan, memory=peak).program(STATE, "train", 64)
        assert (program.repeated, program.stored_bits) == (each.head.count, 4)
        assert program.memory.peak <= peak
        least = peak
    assert least < 0.7 * fitting


def test_it_stores_as_many_bits_as_fit() -> None:
    eight = next(p for p in programs(PLAIN.kernels, 8) if p.head.count > 4)
    whole = SparseEngine(PLAIN.plan, stored_bits=4).program(STATE, "train", 64).memory.peak
    assert eight.memory.peak < whole
    shorter = [p for p in programs(PLAIN.kernels, 4) if p.head.count < eight.head.count]
    assert all(p.memory.peak > eight.memory.peak for p in shorter)
    program = SparseEngine(PLAIN.plan, memory=eight.memory.peak).program(STATE, "train", 64)
    assert (program.repeated, program.stored_bits) == (eight.head.count, 8)
    few = SparseEngine(PLAIN.plan, stored_bits=4, memory=eight.memory.peak)
    assert few.program(STATE, "train", 64).stored_bits == 4


def test_smaller_tiles_come_last() -> None:
    lanes = {native.load_kernels(simd).lanes for simd in native.available()}
    if len(lanes) == 1:
        pytest.skip(f"all kernels that run here have tiles of {lanes}")
    least = min(p.memory.peak for p in programs(PLAIN.kernels, 4))
    assert SparseEngine(PLAIN.plan, memory=least).program(STATE, "train", 64).kernels.lanes == 16
    engine = SparseEngine(PLAIN.plan, memory=least - 1)
    program = engine.program(STATE, "train", 64)
    assert program.kernels.lanes == 8 and program.memory.peak < least
    # What it does next has its own choice, whatever came before.
    assert engine.program(STATE, "evaluate", 64).kernels.lanes == 16
    assert engine.program(STATE, "train", 64).kernels.lanes == 8


def test_an_engine_within_a_memory_computes_what_one_without_does() -> None:
    least = min(p.memory.peak for p in programs(PLAIN.kernels, 4))
    bound, free = SparseEngine(PLAIN.plan, memory=least), SparseEngine(PLAIN.plan, stored_bits=4)
    amounts = dict.fromkeys(STATE.masks, 7)
    expected = free.top_gradients(STATE, DATA, amounts)
    for name, top in bound.top_gradients(STATE, DATA, amounts).items():
        np.testing.assert_array_equal(top.indices, expected[name].indices)
        np.testing.assert_array_equal(top.values, expected[name].values)
    assert bound.program(STATE, "train", 64).repeated
    gradients = free.gradients(STATE, DATA)
    for name, gradient in bound.gradients(STATE, DATA).items():
        np.testing.assert_array_equal(gradient, gradients[name])
    statistics = SparseEngine(PLAIN.plan, memory=least // 2)
    for frozen in (False, True):
        found = statistics.norm_moments(STATE, DATA, frozen)
        assert statistics.program(STATE, "statistics", 64).repeated
        if statistics.program(STATE, "statistics", 64).kernels is PLAIN.kernels:
            assert repr(found) == repr(free.norm_moments(STATE, DATA, frozen))


def test_a_step_allocates_next_to_nothing() -> None:
    network = Network(PLAIN.plan, STATE.masks, PLAIN.kernels)
    program = RecomputingProgram(network, "train", [*heads_of(network)][-1], 64, 1, None, 4)
    network.load(STATE)
    program.forward(DATA.inputs, np.arange(64))  # makes the tables of its calls

    def look(number: int) -> None:
        if number in network.layers:
            for _ in program.full_gradient(number, 1):
                pass

    for before, most in ((None, 50_000), (look, 50_000 + 4 * recomputing._BLOCK)):
        tracemalloc.start()
        program.forward(DATA.inputs, np.arange(64))
        program.loss(DATA.targets)
        program.backward(before=before)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most


def test_all_rows_come_at_once_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputing, "_BLOCK", 300)
    case = case_of("resnet8", 0.2)
    network = Network(case.plan, case.state.masks, PLAIN.kernels, part_tiles=1)
    check(case, network, 4)  # two rows at a time
    program = RecomputingProgram(network, "train", [*heads_of(network)][-1], COUNT)
    program.forward(case.inputs, np.arange(COUNT))
    program.loss(case.targets)
    seen = list[int]()

    def look(number: int) -> None:
        if number in network.layers:
            rows = network.layers[number].geometry.target[0]
            assert len([*program.full_gradient(number, rows)]) == 1
            seen.append(number)

    program.backward(before=look)
    assert sorted(seen) == sorted(network.layers)


def test_what_is_gone_is_not_read() -> None:
    network = Network(PLAIN.plan, STATE.masks, PLAIN.kernels)
    program = RecomputingProgram(network, "train", [*heads_of(network)][1], 64)
    program.forward(DATA.inputs, np.arange(64))
    assert program.read(program.head.edge).shape[0] == 64
    with pytest.raises(EngineError, match="a tile at a time"):
        program.read(min(program.head.inner))


def test_a_thread_of_the_walk_makes_no_difference() -> None:
    case = case_of("resnet8", 0.2)
    network = Network(case.plan, case.state.masks, PLAIN.kernels, part_tiles=1)
    few = replace(case, inputs=case.inputs[:17], targets=case.targets[:17])
    for threads in (2, 3):
        assert check(few, network, 8, threads) > 3
