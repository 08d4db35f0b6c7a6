"""Training with most tensors a tile at a time: the first ops run again for every norm.

A batch norm needs all examples before anything behind it can run, so what it reads would have to
be held for the whole batch. The first ops of a plan, its head, can instead run tile by tile, once
for each of their norms: a pass gets one norm further than the one before, and of its tiles only
sums are kept. The last pass leaves the edge, the one tensor between head and tail; it is held for
the whole batch, as all of the tail is. The backward pass goes likewise: the head forward again, and
then backward, one norm further each time. All sums are made and merged as if tensors were held, so
results are the same bits. Memory is that of a tile, and time grows with the square of the number of
norms.

Chen et al., 2016, "Training deep nets with sublinear memory cost", hold some tensors and compute
the others again; without batch norms once is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fedkit.engine.plan.execution import (
    Backward,
    Finish,
    Forward,
    Key,
    LossStep,
    Narrow,
    Schedule,
    Step,
    Widen,
    place_lives,
    touched,
)
from fedkit.engine.plan.structure import Plan


@dataclass(frozen=True)
class PlanHead:
    """The first ops of a plan, which run tile by tile.

    Attributes:
        count: How many.
        edge: What the others read of them.
        inner: The input, and what they write for themselves.
    """

    count: int
    edge: int
    inner: frozenset[int]


def heads(plan: Plan, able: Callable[[int], bool]) -> Iterator[PlanHead]:
    """Yield all heads that a plan can have, the shortest first.

    Args:
        plan: The model.
        able: Says of the number of an op whether it can run tile by tile.
    """
    for count in range(1, len(plan.ops) + 1):
        if not able(count - 1):
            return
        head, tail = plan.ops[:count], plan.ops[count:]
        written = {op.target for op in head}
        read = {source for op in tail for source in op.sources} | {plan.output}
        edges, again = written & read, {op.target for op in tail} & written
        whole = 0 in read or edges & {source for op in head for source in op.sources}
        if len(edges) == 1 and not again and not whole:
            (edge,) = edges
            yield PlanHead(count, edge, frozenset({0} | written - edges))


@dataclass(frozen=True)
class Passes:
    """The steps of a schedule by how often they run.

    Attributes:
        first: The head forward, up to each norm and to the edge.
        tail: What runs once behind it, forward.
        tail_back: And backward.
        again: The head forward once more, with what its backward pass reads.
        back: The head backward, to each norm and to the end.
    """

    first: tuple[Forward, ...]
    tail: tuple[Forward | Narrow, ...]
    tail_back: tuple[Widen | Finish | Backward, ...]
    again: tuple[Forward | Narrow, ...]
    back: tuple[Widen | Finish | Backward, ...]


def passes(plan: Plan, schedule: Schedule, head: PlanHead) -> Passes:
    """Return the steps of a schedule by how often they run.

    Args:
        plan: The model.
        schedule: A forward pass, or a forward and a backward pass.
        head: What runs tile by tile.
    """

    def inside(step: Step) -> bool:
        if isinstance(step, Forward | Backward):
            return step.op < head.count
        return not isinstance(step, LossStep) and step.tensor in head.inner

    forward = [step for step in schedule.steps if isinstance(step, Forward | Narrow)]
    back = [step for step in schedule.steps if isinstance(step, Widen | Finish | Backward)]
    of_head = [step for step in forward if inside(step)]
    ops = [step for step in of_head if isinstance(step, Forward)]
    again = (s for s in of_head if isinstance(s, Narrow) or plan.ops[s.op].target != head.edge)
    return Passes(
        first=tuple(ops),
        tail=tuple(step for step in forward if not inside(step)),
        tail_back=tuple(step for step in back if not inside(step)),
        again=tuple(again) if back else (),
        back=tuple(step for step in back if inside(step)),
    )


def place_passes(
    plan: Plan, schedule: Schedule, head: PlanHead, size: Callable[[Key], int]
) -> tuple[dict[Key, int], int]:
    """Place all tensors in one arena: of the head a tile, else the batch.

    Args:
        plan: The model.
        schedule: The steps.
        head: What runs tile by tile.
        size: Size per key, in any unit.

    Returns:
        The offset per key, and the size of the arena. What the head's first passes hold of a tensor
        has ("early", tensor): it lies elsewhere than when it is computed again.
    """
    by = passes(plan, schedule, head)
    loss = [step for step in schedule.steps if isinstance(step, LossStep)]
    once = [*by.first, *by.tail, *loss, *by.tail_back]
    steps = [*once, *by.again, *by.back]

    def keys(moment: int) -> Iterator[tuple[Key, Key]]:
        """Yield what a step touches, and where that is held."""
        for key in schedule.touched(plan, steps[moment], touched):
            held = schedule.storage(key)
            if moment >= len(by.first) or key[1] not in head.inner:
                yield key, held
            elif key[0] == "x":
                yield ("early", key[1]), ("early", held[1])

    lives, end = dict[Key, tuple[int, int]](), len(steps)
    for moment in range(end):
        for _, held in keys(moment):
            first, last = lives.get(held, (moment, 0))[0], moment
            # Passes over the head write its edge tile by tile, and read its gradient each time.
            if held[1] not in head.inner:
                first = 0 if moment < len(by.first) else first
                last = end if moment >= len(once) else last
            lives[held] = first, last
    output = schedule.storage(("x", plan.output))
    lives[output] = (lives[output][0], end)
    places, peak = place_lives(lives, size)
    return {key: places[held] for moment in range(end) for key, held in keys(moment)}, peak
