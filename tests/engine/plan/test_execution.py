"""The schedule against slow simulators, over random plans."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedkit.engine.ops.add import Add
from fedkit.engine.ops.pool import Pool
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.execution import (
    Backward,
    Finish,
    Forward,
    Key,
    LossStep,
    Schedule,
    Step,
    first_fit,
    forward_schedule,
    keeping_argmax,
    largest_first,
    needs_gradient,
    place,
    touched,
    training_schedule,
)
from fedkit.engine.plan.plan import verify
from fedkit.engine.plan.spread import Spread
from fedkit.engine.plan.structure import Plan, PlanOp, StoredTensor
from tests.engine.plan.random_plans import FUNCTIONS, LAYERS, plans
from tests.sets import drawn

many = settings(
    max_examples=drawn(200), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # fmt: skip

anything = st.one_of(plans(), plans(LAYERS), plans(FUNCTIONS))


class TokenGradients:
    """Memory that tells who wrote it last: a token per gradient, one cell per storage."""

    def __init__(self, plan: Plan, schedule: Schedule) -> None:
        self.plan, self.schedule = plan, schedule
        self.cells: dict[Key, object] = {}
        self.tokens: dict[int, object] = {}
        self.given: Counter[int] = Counter()
        self.finished: set[int] = set()

    def read(self, tensor: int) -> object:
        """Return the gradient, which must be as it was written for this tensor."""
        token = self.cells[self.schedule.storage(("g", tensor))]
        assert token is self.tokens[tensor], f"the gradient of tensor {tensor} was overwritten"
        return token

    def write(self, tensor: int, token: object) -> None:
        """Set the gradient of a tensor."""
        self.cells[self.schedule.storage(("g", tensor))] = self.tokens[tensor] = token

    def finish(self, tensor: int) -> None:
        """Pass a gradient through its activation; one without stays the same."""
        self.read(tensor)
        assert tensor not in self.finished
        self.finished.add(tensor)
        if self.plan.tensors[tensor].activation != "none":
            self.write(tensor, object())

    def check_backward(self) -> None:
        """Execute the backward pass."""
        done = []
        for step in self.schedule.steps:
            if isinstance(step, LossStep):
                self.write(self.plan.output, object())
                self.given[self.plan.output] += 1
            elif isinstance(step, Finish):
                self.finish(step.tensor)
            elif isinstance(step, Backward):
                self.backward(step)
                done.append(step.op)
        assert done == sorted(done, reverse=True)

    def backward(self, step: Backward) -> None:
        """Execute the backward pass of one op."""
        op, needing = self.plan.ops[step.op], needs_gradient(self.plan)
        read = self.plan.tensors[op.target]
        plain = read.norm is None and read.activation == "none"
        assert plain or op.target in self.finished
        users = [op for op in self.plan.ops if op.target in needing]
        uses = Counter(source for op in users for source in op.sources)
        assert self.given[op.target] == uses[op.target] + (op.target == self.plan.output)
        for contribution in step.contributions:
            tensor, token = contribution.tensor, self.read(op.target)
            assert contribution.accumulate == (self.given[tensor] > 0)
            if contribution.accumulate:
                self.read(tensor)
            is_same = isinstance(op, Add) and read.norm is None and not contribution.accumulate
            assert is_same or not contribution.shared
            if contribution.shared:
                self.tokens[tensor] = token
            else:
                self.write(tensor, token if is_same else object())
            self.given[tensor] += 1
            if contribution.finish:
                assert isinstance(op, Conv)
                self.finish(tensor)


@many
@given(anything)
def test_no_gradient_changes_between_its_last_write_and_its_last_read(plan: Plan) -> None:
    verify(plan)
    TokenGradients(plan, training_schedule(plan)).check_backward()


def same(count: int, ops: Sequence[PlanOp], relu: tuple[int, ...] = ()) -> Plan:
    """Return a plan of equal tensors, some with a ReLU; only its ops count."""
    tensors = [StoredTensor((1, 1, 1), None, "relu" if i in relu else "none") for i in range(count)]
    return Plan({}, {}, (), tuple(tensors), tuple(ops), count - 1)


def conv(source: int, target: int) -> Conv:
    return Conv(source, target, "w", None, (1, 1), (1, 1), (0, 0), (1, 1), 1)


def test_a_gradient_that_lies_in_two_sums_is_not_overwritten_by_a_third_tensor() -> None:
    """(1 + 3) + 2, where 2 has a ReLU: 1 and 3 share with 4, 4 and 2 must not share with 5 too."""
    ops: list[PlanOp] = [
        conv(0, 1),
        conv(1, 2),
        conv(2, 3),
        Add(1, 3, 4),
        Add(4, 2, 5),
        conv(5, 6),
    ]
    plan = same(7, ops, relu=(2,))
    TokenGradients(plan, training_schedule(plan)).check_backward()


def test_the_sides_of_a_sum_share_its_gradient() -> None:
    one_side = same(4, [conv(0, 1), Add(0, 1, 2), conv(2, 3)])
    assert training_schedule(one_side).owner == {1: 2}
    ops: list[PlanOp] = [conv(0, 1), conv(1, 2), conv(2, 3), Add(1, 3, 4), conv(4, 5)]
    residual = same(6, ops, relu=(1, 2, 4))
    assert training_schedule(residual).owner == {1: 4, 3: 4}


def test_a_simulated_clash_is_found() -> None:
    """The simulator itself: two sides of which the first changes before the second is read."""
    plan = same(5, [conv(0, 1), conv(0, 2), Add(1, 2, 3), conv(3, 4)], relu=(1, 2))
    schedule = training_schedule(plan)
    assert schedule.owner == {1: 3}
    steps = [
        Backward(2, tuple(replace(given, shared=True) for given in step.contributions))
        if isinstance(step, Backward) and step.op == 2
        else step
        for step in schedule.steps
    ]
    with pytest.raises(AssertionError, match="overwritten"):
        TokenGradients(plan, Schedule(tuple(steps), {1: 3, 2: 3})).check_backward()


# Memory


def keys(plan: Plan, schedule: Schedule, step: Step) -> set[Key]:
    """Return what a step touches: what keeps where maxima were reads that, and no source."""
    found = set(touched(plan, step))
    if isinstance(step, Forward | Backward) and step.op in schedule.argmax:
        op = plan.ops[step.op]
        found.add(("argmax", op.target))
        if isinstance(step, Backward):
            found -= {("x", source) for source in op.sources}
    return found


def lives(plan: Plan, schedule: Schedule) -> dict[Key, tuple[int, int]]:
    """Return the first and last step that touches each piece of memory, the slow way."""
    steps = [{schedule.storage(key) for key in keys(plan, schedule, s)} for s in schedule.steps]
    found = {}
    for key in set().union(*steps):
        moments = [moment for moment, keys in enumerate(steps) if key in keys]
        found[key] = (min(moments), max(moments))
    output = ("x", plan.output)
    found[output] = (found[output][0], len(steps))
    return found


@many
@given(
    anything, st.integers(1, 9), st.integers(1, 9), st.booleans(),
    st.none() | st.sets(st.integers(0, 9)),
)  # fmt: skip
def test_what_lives_at_the_same_time_has_bytes_of_its_own(
    plan: Plan, row: int, more: int, trains: bool, few: set[int] | None
) -> None:
    schedule = training_schedule(plan) if trains else forward_schedule(plan)
    schedule = keeping_argmax(plan, schedule, few) if trains else schedule
    sizes = {i: row * t.shape[0] + more * t.shape[1] for i, t in enumerate(plan.tensors)}
    offsets, peak = place(plan, schedule, lambda key: sizes[key[1]])
    alive = lives(plan, schedule)
    assert {schedule.storage(key) for key in offsets} == set(alive)
    for one, other in itertools.combinations(alive, 2):
        together = alive[one][0] <= alive[other][1] and alive[other][0] <= alive[one][1]
        apart = (
            offsets[one] + sizes[one[1]] <= offsets[other]
            or offsets[other] + sizes[other[1]] <= offsets[one]
        )
        assert apart or not together, (one, other)
    for key in offsets:
        assert offsets[key] == offsets[schedule.storage(key)]
        assert 0 <= offsets[key] <= peak - sizes[key[1]]
    at_once = [
        sum(sizes[key[1]] for key, (first, last) in alive.items() if first <= moment <= last)
        for moment in range(len(schedule.steps) + 1)
    ]
    assert max(at_once) <= peak <= sum(sizes[key[1]] for key in alive)


@many
@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(0, 12), st.integers(0, 12)), min_size=1
    )
)  # fmt: skip
def test_first_fit_over_any_lives(wanted: list[tuple[int, int, int]]) -> None:
    named = {
        ("x", number): (size, min(first, last), max(first, last))
        for number, (size, first, last) in enumerate(wanted)
    }
    placed = first_fit(named, largest_first(named))
    bytes_at = {moment: Counter[int]() for moment in range(13)}
    for key, (size, first, last) in named.items():
        for moment in range(first, last + 1):
            bytes_at[moment].update(range(placed[key], placed[key] + size))
    assert all(count == 1 for used in bytes_at.values() for count in used.values())


def test_a_forward_pass_needs_two_tensors_of_a_chain_at_a_time() -> None:
    plan = same(6, [conv(i, i + 1) for i in range(5)])
    _, peak = place(plan, forward_schedule(plan), lambda key: 10)
    assert peak == 20
    assert not any(isinstance(step, LossStep) for step in forward_schedule(plan).steps)
    assert all(isinstance(step, Forward) for step in forward_schedule(plan).steps)


def test_the_input_has_memory_of_its_own_before_the_first_op_that_reads_it() -> None:
    """Values of all examples come first here; what reads them is done before the input is read."""
    ops = (Spread("all", 1, "learned"), conv(1, 2), conv(0, 3), Add(2, 3, 4))
    plan = same(5, ops)
    offsets, _ = place(plan, forward_schedule(plan), lambda key: 10)
    assert offsets["x", 0] not in (offsets["x", 1], offsets["x", 2])


# Maxima


def pool(source: int, target: int, kernel: tuple[int, int] = (1, 1)) -> Pool:
    return Pool(source, target, kernel, (1, 1), (0, 0), "max")


def test_places_of_maxima_are_kept_where_that_saves_what_was_read() -> None:
    ops: list[PlanOp] = [conv(0, 1), pool(1, 2), conv(2, 3), pool(3, 4), pool(4, 5), pool(4, 6)]
    plan = same(8, [*ops, Add(5, 6, 7)], relu=(1,))
    schedule = training_schedule(plan)
    assert keeping_argmax(plan, schedule).argmax == {1, 3, 4, 5}
    # A ReLU reads 1 again, and nothing else 3 and 4.
    assert keeping_argmax(plan, schedule, ()).argmax == {3, 4, 5}
    assert keeping_argmax(plan, schedule, {1}).argmax == {1, 3, 4, 5}
    steps = {type(step) for step in schedule.steps}
    assert Finish in steps and not forward_schedule(plan).argmax


def test_a_source_that_is_looked_through_again_anyhow_saves_nothing() -> None:
    ops: list[PlanOp] = [conv(0, 1), pool(1, 2), pool(1, 3, (16, 16)), Add(2, 3, 4)]
    plan = same(5, ops)
    assert keeping_argmax(plan, training_schedule(plan), ()).argmax == set()
    assert keeping_argmax(plan, training_schedule(plan)).argmax == {1}


def test_maxima_that_give_no_gradient_are_nobodys() -> None:
    plan = same(3, [pool(0, 1), conv(1, 2)])
    assert keeping_argmax(plan, training_schedule(plan)).argmax == set()
