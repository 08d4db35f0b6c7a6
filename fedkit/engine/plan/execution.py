"""When what is computed, and which memory it needs meanwhile.

A schedule is a list of steps over a plan's tensors. Every tensor has values and, in training, a
gradient; each lives in memory from the first step that touches it to the last, and tensors whose
lives do not meet share the same bytes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedkit.engine.plan.structure import Plan, PlanOp

Key = tuple[str, int]
"""("x", tensor) for values, ("g", tensor) for the gradient; integers have ("raw", tensor) too.

What is stored in few bits between the passes has ("code", tensor) and, if some op cannot read
these, ("wide", tensor) once it is wide again. Maxima that are not looked for again have
("argmax", tensor): where in its window each was.
"""


@dataclass(frozen=True)
class Forward:
    """Run op `op`; `completes` says whether its target is whole afterwards."""

    op: int
    completes: bool


@dataclass(frozen=True)
class LossStep:
    """Compute the loss and the gradient of the output."""


@dataclass(frozen=True)
class Narrow:
    """Store the values of `tensor` in few bits, as the forward pass needs them no longer."""

    tensor: int


@dataclass(frozen=True)
class Widen:
    """Make values of what `Narrow` stored, as the backward pass reads them next."""

    tensor: int


@dataclass(frozen=True)
class Finish:
    """Pass the gradient of `tensor` through its activation, and sum it for its norm."""

    tensor: int


@dataclass(frozen=True)
class Contribution:
    """What the backward pass of an op gives to the gradient of one source.

    Attributes:
        tensor: The source.
        accumulate: The gradient holds something already.
        finish: This contribution is the last, and the op itself finishes the gradient.
        shared: The gradient lies where the target's lies, so there is nothing to do.
    """

    tensor: int
    accumulate: bool
    finish: bool
    shared: bool


def sides(op: PlanOp, given: Sequence[Contribution]) -> Iterator[tuple[int, Contribution]]:
    """Yield what each source gets, 0 for the first: several contributions, if all are one tensor.

    Args:
        op: Of several sources.
        given: To those that need a gradient, in their order.
    """
    needing = {contribution.tensor for contribution in given}
    which = (side for side, source in enumerate(op.sources) if source in needing)
    return zip(which, given, strict=True)


@dataclass(frozen=True)
class Backward:
    """Run op `op` backward; the gradient of its target is finished."""

    op: int
    contributions: tuple[Contribution, ...]


Step = Forward | Narrow | LossStep | Widen | Finish | Backward


def finished_by(step: Step) -> list[int]:
    """Return the tensors whose gradient a step passes through the activation."""
    if isinstance(step, Finish):
        return [step.tensor]
    given = step.contributions if isinstance(step, Backward) else ()
    return [contribution.tensor for contribution in given if contribution.finish]


@dataclass(frozen=True)
class Schedule:
    """Steps in order.

    Attributes:
        steps: All of them.
        owner: The gradients that share memory: tensor -> tensor that owns it.
        narrow: Tensors that are stored in few bits between the passes.
        widened: Those of them that are made wide again, as some op reads no codes.
        argmax: Numbers of the ops that keep where their maxima were, and read no source again.
        over: What an op writes over what it reads for the last time: the former's key -> the
            latter's.
    """

    steps: tuple[Step, ...]
    owner: Mapping[int, int]
    narrow: frozenset[int] = frozenset()
    widened: frozenset[int] = frozenset()
    argmax: frozenset[int] = frozenset()
    over: Mapping[Key, Key] = field(default_factory=dict)

    def storage(self, key: Key) -> Key:
        """Return the key under whose name the memory is held."""
        kind, tensor = key
        key = kind, _last_owner(self.owner, tensor) if kind == "g" else tensor
        return self.storage(self.over[key]) if key in self.over else key

    def touched(self, plan: Plan, step: Step, touched: Touched) -> Iterator[Key]:
        """Yield what a step reads or writes, where it lies at that step."""
        unread: tuple[int, ...] = ()
        if isinstance(step, Forward | Backward) and step.op in self.argmax:
            op = plan.ops[step.op]
            yield "argmax", op.target
            unread = op.sources if isinstance(step, Backward) else ()
        for kind, tensor in touched(plan, step):
            if kind == "x" and tensor in unread:
                continue
            if kind == "x" and tensor in self.narrow and isinstance(step, Finish | Backward):
                kind = "wide" if tensor in self.widened else "code"
            yield kind, tensor


def _last_owner(owner: Mapping[int, int], tensor: int) -> int:
    while tensor in owner:
        tensor = owner[tensor]
    return tensor


def forward_schedule(plan: Plan) -> Schedule:
    """Return the forward pass alone."""
    return Schedule(tuple(_forward(plan)), {})


def training_schedule(
    plan: Plan, trained: Container[str] | None = None, apart: Container[int] = ()
) -> Schedule:
    """Return forward pass, loss and backward pass.

    Args:
        plan: The model.
        trained: Names of the weights whose gradients are wanted; None: of all. The pass ends where
            no earlier op has one.
        apart: Tensors whose gradients share no memory with those of what they were made from.
    """
    backward = _Backward(plan, trained, apart)
    return Schedule((*_forward(plan), LossStep(), *backward.steps), backward.owner)


def keeping_argmax(plan: Plan, schedule: Schedule, few: Container[int] | None = None) -> Schedule:
    """Return a training schedule that keeps where maxima were, and need not look for them again.

    Args:
        plan: The model.
        schedule: Its forward and backward pass.
        few: Tensors that may be stored in few bits between the passes. Then only those are kept
            whose source is one of these, or is read again for nothing else: they save memory. None:
            all are, as they save time.
    """
    passes = [step for step in schedule.steps if isinstance(step, Finish | Backward)]
    numbers = (step.op for step in passes if isinstance(step, Backward))
    able = frozenset(number for number in numbers if plan.ops[number].keeps_argmax)
    keeping = replace(schedule, argmax=able)
    if few is None:
        return keeping
    read = {key for step in passes for key in keeping.touched(plan, step, touched)}
    sources = {number: plan.ops[number].sources[0] for number in able}
    saving = (n for n, source in sources.items() if source in few or ("x", source) not in read)
    return replace(schedule, argmax=frozenset(saving))


def narrowed(plan: Plan, schedule: Schedule, tensors: Container[int]) -> Schedule:
    """Return a training schedule that stores some tensors in few bits between the passes.

    Args:
        plan: The model.
        schedule: Its forward and backward pass.
        tensors: Those that are, if the backward pass reads them at all.
    """
    last, first, wide = dict[int, int](), dict[int, int](), set[int]()
    for moment, step in enumerate(schedule.steps):
        keys = schedule.touched(plan, step, touched)
        for tensor in (t for kind, t in keys if kind == "x" and t in tensors):
            if isinstance(step, Forward):
                last[tensor] = moment
                continue
            first.setdefault(tensor, moment)
            if isinstance(step, Backward) and not plan.ops[step.op].reads_codes:
                wide.add(tensor)
    narrow = frozenset(first) & frozenset(last)
    widened = narrow & wide
    steps = list[Step]()
    for moment, step in enumerate(schedule.steps):
        steps += [Widen(tensor) for tensor in sorted(widened) if first[tensor] == moment]
        # Before its last reader, which may write over it.
        ending = [tensor for tensor in sorted(narrow) if last[tensor] == moment]
        target = plan.ops[step.op].target if isinstance(step, Forward) else None
        steps += [Narrow(tensor) for tensor in ending if tensor != target]
        steps.append(step)
        steps += [Narrow(tensor) for tensor in ending if tensor == target]
    return replace(schedule, steps=tuple(steps), narrow=narrow, widened=widened)


def overwriting(plan: Plan, schedule: Schedule, able: Container[int]) -> Schedule:
    """Return a schedule whose ops write over what they read for the last time, where sizes match.

    Args:
        plan: The model.
        schedule: Its steps.
        able: Numbers of the ops that may, forward and backward.
    """
    over = dict[Key, Key]()
    lives = _lives_with_output(plan, schedule, touched)

    def pair(moment: int, written: int, read: int, kind: str) -> None:
        one, other = schedule.storage((kind, written)), schedule.storage((kind, read))
        fits = plan.tensors[written].shape == plan.tensors[read].shape
        ends = lives[other][1] == moment and other not in over.values()
        if fits and ends and one != other and one not in over and lives[one][0] == moment:
            over[one] = other

    for moment, step in enumerate(schedule.steps):
        if not isinstance(step, Forward | Backward) or step.op not in able:
            continue
        op = plan.ops[step.op]
        if isinstance(step, Forward):
            for source in op.sources:
                pair(moment, op.target, source, "x")
        elif len(step.contributions) == 1:  # another would read what this one changes
            pair(moment, step.contributions[0].tensor, op.target, "g")
    return replace(schedule, over=over)


def _forward(plan: Plan) -> Iterable[Forward]:
    last = {op.target: number for number, op in enumerate(plan.ops)}
    return (Forward(n, last[op.target] == n) for n, op in enumerate(plan.ops))


def needs_gradient(plan: Plan, trained: Container[str] | None = None) -> frozenset[int]:
    """Return the tensors whose gradient some trained parameter depends on; None: any parameter."""
    needing: set[int] = set()
    for op in plan.ops:
        if _is_trained(plan, op, trained) or needing.intersection(op.sources):
            needing.add(op.target)
    return frozenset(needing)


def _is_trained(plan: Plan, op: PlanOp, trained: Container[str] | None) -> bool:
    """Say whether an op, or the norm of its target, has something to train."""
    norm = plan.tensors[op.target].norm
    if trained is None:
        return bool(op.parameters) or norm is not None
    own = (*op.parameters, *((norm.weight, norm.bias) if norm else ()))
    return any(name in trained for name in own if name is not None)


class _Backward:
    """Builds the backward pass, from the last op to the first."""

    def __init__(self, plan: Plan, trained: Container[str] | None, apart: Container[int]) -> None:
        self.plan, self.owner, self.apart = plan, dict[int, int](), apart
        self.steps: list[Step] = []
        self._finished: set[int] = set()
        needing = needs_gradient(plan, trained)
        self._left = {tensor: 0 for tensor in needing}
        self._written = {plan.output}
        for op in plan.ops:
            for source in op.sources:
                if op.target in needing and source in needing:
                    self._left[source] += 1
        for number in reversed(range(len(plan.ops))):
            if plan.ops[number].target in needing:
                self._add(number, plan.ops[number])

    def _add(self, number: int, op: PlanOp) -> None:
        if self._unfinished(op.target):
            self.steps.append(Finish(op.target))
            self._finished.add(op.target)
        given = [self._contribute(op, number, s) for s in op.sources if s in self._left]
        self.steps.append(Backward(number, tuple(given)))

    def _unfinished(self, tensor: int) -> bool:
        read = self.plan.tensors[tensor]
        changes = read.norm is not None or read.activation != "none"
        return changes and tensor not in self._finished

    def _contribute(self, op: PlanOp, number: int, tensor: int) -> Contribution:
        self._left[tensor] -= 1
        last, first = self._left[tensor] == 0, tensor not in self._written
        shared = first and op.shares_gradient and self._may_share(op, number, tensor)
        if shared:
            self.owner[tensor] = op.target
        self._written.add(tensor)
        finish = last and op.finishes_gradients and self._unfinished(tensor)
        if finish:
            self._finished.add(tensor)
        return Contribution(tensor, not first, finish, shared)

    def _may_share(self, op: PlanOp, number: int, tensor: int) -> bool:
        """Say whether the gradient of one side of a sum may lie in that of the sum.

        It may if no other gradient lies there that is still to be read. If only that of the other
        side does, both may, if one's is read for the last time before the other's changes: a side
        that nothing else reads and that no activation masks never changes.
        """
        if op.target in self.apart or self.plan.tensors[op.target].norm is not None:
            return False
        other = op.sources[-1] if tensor == op.sources[0] else op.sources[0]
        memory = _last_owner(self.owner, op.target)
        lying = (t for t in self.owner if _last_owner(self.owner, t) == memory)
        there = {t for t in lying if self._produced(t) < number}
        if not there:
            return True
        pair = (tensor, other)
        return there == {other} and any(
            self._constant(a, number) and self._produced(a) > self._next_use(b, number)
            for a, b in (pair, pair[::-1])
        )

    def _constant(self, tensor: int, number: int) -> bool:
        used = [n for n, op in enumerate(self.plan.ops) if tensor in op.sources]
        return used == [number] and self.plan.tensors[tensor].activation == "none"

    def _produced(self, tensor: int) -> int:
        """Return the first op that writes the tensor: the last one to read its gradient."""
        return min(n for n, op in enumerate(self.plan.ops) if op.target == tensor)

    def _next_use(self, tensor: int, number: int) -> int:
        """Return the op whose backward pass is the next to change the tensor's gradient."""
        earlier = [n for n in range(number) if tensor in self.plan.ops[n].sources]
        writers = [n for n, op in enumerate(self.plan.ops) if op.target == tensor]
        return max([*earlier, *writers])


# Memory

Touched = Callable[[Plan, Step], Sequence[Key]]
"""What a step reads or writes."""


def touched(plan: Plan, step: Step) -> list[Key]:
    """Return what a step reads or writes."""
    if isinstance(step, Narrow):
        return [("x", step.tensor), ("code", step.tensor)]
    if isinstance(step, Widen):
        return [("code", step.tensor), ("wide", step.tensor)]
    if isinstance(step, LossStep):
        return [("x", plan.output), ("g", plan.output)]
    if isinstance(step, Finish):
        return [("x", step.tensor), ("g", step.tensor)]
    op = plan.ops[step.op]
    if isinstance(step, Forward):
        return [("x", tensor) for tensor in (*op.sources, op.target)]
    keys: list[Key] = [("g", op.target), *(("g", c.tensor) for c in step.contributions)]
    if plan.tensors[op.target].norm is not None:
        keys.append(("x", op.target))
    finished = [c.tensor for c in step.contributions if c.finish]
    return keys + [("x", tensor) for tensor in (op.sources if op.rereads else finished)]


def place(
    plan: Plan,
    schedule: Schedule,
    size: Callable[[Key], int],
    touched: Touched = touched,
) -> tuple[dict[Key, int], int]:
    """Place all tensors in one arena.

    Args:
        plan: The model.
        schedule: The steps.
        size: Size per key, in any unit.
        touched: What a step reads or writes.

    Returns:
        The offset per key, and the size of the arena: its peak, known before the first step.
    """
    placed, peak = place_lives(_lives_with_output(plan, schedule, touched), size)
    return {
        key: placed[schedule.storage(key)]
        for step in schedule.steps
        for key in schedule.touched(plan, step, touched)
    }, peak


def place_lives(
    lives: Mapping[Key, tuple[int, int]], size: Callable[[Key], int]
) -> tuple[dict[Key, int], int]:
    """Place what is needed from a first to a last step; return offsets, and the size of all."""
    wanted = {key: (size(key), *life) for key, life in lives.items()}
    return _placed(tuple(wanted.items()))


def lives_of(plan: Plan, schedule: Schedule, touched: Touched) -> dict[Key, tuple[int, int]]:
    """Return the first and the last step that needs each memory."""
    lives: dict[Key, tuple[int, int]] = {}
    for moment, step in enumerate(schedule.steps):
        for key in schedule.touched(plan, step, touched):
            owner = schedule.storage(key)
            lives[owner] = (lives.get(owner, (moment, moment))[0], moment)
    # The input is there before the first step, which need not read it.
    if (given := schedule.storage(("x", 0))) in lives:
        lives[given] = (0, lives[given][1])
    return lives


def _lives_with_output(
    plan: Plan, schedule: Schedule, touched: Touched
) -> dict[Key, tuple[int, int]]:
    lives = lives_of(plan, schedule, touched)
    # The logits are read once all is done.
    for output in map(schedule.storage, (("x", plan.output), ("raw", plan.output))):
        if output in lives:
            lives[output] = (lives[output][0], len(schedule.steps))
    return lives


_ATTEMPTS = 4000
"""For an arena in Python, see `tightly`: some ten milliseconds for a ResNet-18."""

Wanted = Mapping[Key, tuple[int, int, int]]
"""Size, first and last step of each memory."""


def largest_first(wanted: Wanted) -> list[Key]:
    """Return an order to place by, in which the small fill what the large leave free."""
    return sorted(wanted, key=lambda key: (-wanted[key][0], wanted[key][1], key))


def first_fit(wanted: Wanted, order: Iterable[Key]) -> dict[Key, int]:
    """Give each memory the lowest free offset, in an order."""
    placed: dict[Key, int] = {}
    for key in order:
        size, first, last = wanted[key]
        busy = sorted(
            (placed[other], placed[other] + wanted[other][0])
            for other in placed
            if wanted[other][1] <= last and first <= wanted[other][2]
        )
        placed[key] = _gap(busy, size)
    return placed


def _gap(busy: Sequence[tuple[int, int]], size: int) -> int:
    offset = 0
    for begin, end in busy:
        if begin - offset >= size:
            break
        offset = max(offset, end)
    return offset


def least_peak(wanted: Wanted) -> int:
    """Return the most that is needed at a time, below which no placement gets."""
    moments = {first for _, first, _ in wanted.values()}
    return max(
        sum(size for size, first, last in wanted.values() if first <= moment <= last)
        for moment in moments
    )


def tightly(wanted: Wanted, attempts: int) -> tuple[dict[Key, int], int]:
    """Give each memory an offset; return these and the size of all.

    Each gets the lowest offset that is free, one after the other. Which order is best, nobody
    knows: it begins with the largest, and what then ends last comes first in the next attempt.

    Args:
        wanted: What is placed.
        attempts: How many there may be, times the number of memories: each takes time.
    """
    order = largest_first(wanted)
    best, least = dict[Key, int](), math.inf
    limit = least_peak(wanted)
    for _ in range(max(1, attempts // len(wanted))):
        places = first_fit(wanted, order)
        last = max(order, key=lambda key: places[key] + wanted[key][0])
        peak = places[last] + wanted[last][0]
        if peak < least:
            best, least = places, peak
        if peak == limit or order[0] == last:
            break
        order.remove(last)
        order.insert(0, last)
    return best, int(least)


@functools.lru_cache(maxsize=64)
def _placed(wanted: tuple[tuple[Key, tuple[int, int, int]], ...]) -> tuple[dict[Key, int], int]:
    """Place tightly, once for all programs that want the same, whatever their masks."""
    return tightly(dict(wanted), _ATTEMPTS)
