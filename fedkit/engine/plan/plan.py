"""The plan of a model: one captured network as a flat list of operations, stored as a file.

A plan says everything the sparse engine needs to know of a model except its numbers, and needs no
torch to be read. Its parts are in `structure`, its kinds of ops in `fedkit.engine.ops`.

The file is JSON. Its "sha256" is that of the rest, written without white space in the same order
of keys; a reader accepts no byte but those that `save_plan` writes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict
from pathlib import Path
from typing import Any, cast

from fedkit.core.errors import PlanError, TaskError
from fedkit.core.files import read_whole, write_atomic
from fedkit.core.text import cut
from fedkit.core.typed import Typed, TypedError
from fedkit.engine.ops.registry import FAMILIES
from fedkit.engine.plan.conv import are_alike
from fedkit.engine.plan.structure import VERSION, Plan, PlanOp, StoredTensor, stored_shape
from fedkit.graph.ir import LARGEST_SIZE
from fedkit.tasks.losses import LOSSES, PLAIN, Loss

_AGAIN = "capture the model again"
_MOST_WEIGHTS = 2**30


# The file


class _Ops(Mapping[str, type[PlanOp]]):
    """Kind of an op -> its class. A kind is imported when a plan has it."""

    def __getitem__(self, kind: str) -> type[PlanOp]:
        return FAMILIES[kind].op

    def __iter__(self) -> Iterator[str]:
        return iter(FAMILIES)

    def __len__(self) -> int:
        return len(FAMILIES)


_TYPED = Typed({PlanOp: _Ops(), Loss: LOSSES})

_LEFT_OUT = {"loss": PLAIN, "output_dims": 1}
"""Fields that the file lacks where they have these values, as all plans once had."""


def save_plan(plan: Plan, path: Path) -> None:
    """Write a plan to a file, whole or not at all.

    Raises:
        PlanError: The plan breaks a rule of `verify`, or the file cannot be written.
    """
    verify(plan)
    try:
        write_atomic(path, _render(content_of(plan)))
    except OSError as error:
        raise PlanError(
            f"plan file {path} cannot be written: {error.strerror}; give a path in a folder that "
            "exists and can be written to"
        ) from error


def load_plan(path: Path) -> Plan:
    """Read a plan and check it.

    Raises:
        PlanError: There is no such file; it is cut off, altered or of another version; a field has
            a wrong value; or the plan breaks a rule of `verify`.
    """
    try:
        data = _read(path)
        plan = _parse(data)
        verify(plan)
        if _render(content_of(plan)) != data:
            raise PlanError(f"is not written as this program writes such a plan; {_AGAIN}")
    except PlanError as error:
        raise PlanError(f"plan file {path}: {error}") from error.__cause__
    return plan


def _read(path: Path) -> bytes:
    try:
        return read_whole(path)
    except OSError as error:
        raise PlanError(f"cannot be read ({error.strerror}); capture the model first") from error


def _parse(data: bytes) -> Plan:
    content = _content(data)
    if content.get("version") != VERSION:
        raise PlanError(
            f"has version {content.get('version')!r}, this program reads {VERSION}; {_AGAIN}"
        )
    found = content.pop("sha256", None)
    if _render(content) != data:
        raise PlanError(
            f"is altered: it gives sha256 {found!r}, its content has {_digest(content)!r}; restore "
            f"the file or {_AGAIN}"
        )
    try:
        return cast(Plan, _TYPED.read(Plan, content))
    except TypedError as error:
        raise PlanError(_first_field(error)) from error
    except TaskError as error:  # a loss checks its own values
        raise PlanError(f"{cut(str(error), 300)}; {_AGAIN}") from error


def _content(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PlanError(
            f"is not JSON, so it is truncated or altered ({error}); restore the file or {_AGAIN}"
        ) from error
    if not isinstance(content, dict):
        raise PlanError(f"holds a {type(content).__name__}, a plan is a JSON object; {_AGAIN}")
    return content


def plan_digest(plan: Plan) -> str:
    """Return the SHA-256 that the file of a plan gives, in hexadecimal: equal for equal plans."""
    return _digest(content_of(plan))


def content_of(plan: Plan) -> dict[str, Any]:
    """Return what the file of a plan says, but for its digest."""
    content = asdict(plan)
    for name, usual in _LEFT_OUT.items():
        if getattr(plan, name) == usual:
            del content[name]
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _render(content: dict[str, Any]) -> bytes:
    return (json.dumps({**content, "sha256": _digest(content)}) + "\n").encode()


def _first_field(error: TypedError) -> str:
    place = cut(".".join(map(str, error.place)), 200)
    value = "missing" if error.found is MISSING else cut(repr(error.found), 60)
    return f"field {place} is {value}: {cut(error.rule, 300)}; {_AGAIN}"


# The rules


def verify(plan: Plan) -> None:
    """Check that a plan can be executed as it stands.

    Raises:
        PlanError: A rule is broken; the message names the first one.
    """
    for problem in _problems(plan):
        raise PlanError(f"{problem}; {_AGAIN}")


def _problems(plan: Plan) -> Iterator[str]:
    """Yield what is wrong; what follows a problem may rest on its absence."""
    if plan.version != VERSION:
        yield f"the plan has version {plan.version}, this program reads {VERSION}"
    yield from _size_problems(plan)
    yield from _name_problems(plan)
    for index, tensor in enumerate(plan.tensors):
        for problem in _tensor_problems(plan, tensor):
            yield f"tensor {index} {problem}"
    yield from _input_problems(plan)
    yield from _order_problems(plan)
    readers = {op.takes_tokens for op in plan.ops if 0 in op.sources}
    if len(readers) > 1:
        yield "some ops read the input as whole numbers and some as real ones; all must as the same"
    for index, op in enumerate(plan.ops):
        for problem in op.problems(plan):
            yield f"op {index} ({op.kind}) {problem}"
    yield from _output_problems(plan)
    yield from _use_problems(plan)


def _size_problems(plan: Plan) -> Iterator[str]:
    """Yield what kernels, which count in 32 bits, could not even be told."""
    shapes = (tensor.shape for tensor in plan.tensors)
    if any(math.prod(shape) > LARGEST_SIZE for shape in shapes):
        yield f"an example of a tensor has more than {LARGEST_SIZE} values"
    if any(
        math.prod(shape) > _MOST_WEIGHTS for shape in (*plan.weights.values(), *plan.stats.values())
    ):
        yield f"a parameter has more than {_MOST_WEIGHTS} values"
    for index, op in enumerate(plan.ops):
        if any(abs(number) > LARGEST_SIZE for number in _whole_numbers(vars(op).values())):
            yield f"op {index} ({op.kind}) has a number beyond {LARGEST_SIZE}"


def _whole_numbers(values: Iterable[Any]) -> Iterator[int]:
    for value in values:
        if isinstance(value, int):
            yield value
        elif isinstance(value, tuple):
            yield from _whole_numbers(value)


def _name_problems(plan: Plan) -> Iterator[str]:
    for name, shape in {**plan.weights, **plan.stats}.items():
        if min(shape, default=1) < 1:
            yield f"{name!r} has shape {shape}; every axis must be at least 1"
    for name, count in Counter(plan.prunable).items():
        if name not in plan.weights:
            yield f"prunable {name!r} is not a weight; prunable names must be among the weights"
        if count > 1:
            yield f"prunable {name!r} is listed {count} times; a name must be listed once"


def _tensor_problems(plan: Plan, tensor: StoredTensor) -> Iterator[str]:
    channels = tensor.shape[0]
    if min(tensor.shape) < 1:
        yield f"has shape {tensor.shape}; every axis must be at least 1"
    if (norm := tensor.norm) is None:
        return
    if not 0 < norm.eps < math.inf:
        yield f"has a norm with eps {norm.eps}; it must be finite and greater than 0"
    for table, name in (
        (plan.weights, norm.weight),
        (plan.weights, norm.bias),
        (plan.stats, norm.stats[0]),
        (plan.stats, norm.stats[1]),
    ):
        if name is not None and table.get(name) != (channels,):
            yield (
                f"has norm {norm.name!r}, whose {name!r} has shape {table.get(name)}; it must be "
                f"among the {'weights' if table is plan.weights else 'stats'} with shape "
                f"{(channels,)}"
            )


def _input_problems(plan: Plan) -> Iterator[str]:
    if not plan.tensors:
        yield "the plan has no tensors; tensor 0 must be the input"
    elif plan.tensors[0] != StoredTensor(plan.tensors[0].shape):
        yield "tensor 0 has a norm or an activation; it must be the plain input"


def _order_problems(plan: Plan) -> Iterator[str]:
    """Follow the ops through their order; channels count as written one by one."""
    written: list[set[int]] = [set() for _ in plan.tensors]
    if plan.tensors:
        written[0] = set(range(plan.tensors[0].shape[0]))
    for index, op in enumerate(plan.ops):
        for source in op.sources:
            if problem := _unready(plan, written, source):
                yield f"op {index} ({op.kind}) reads {problem}"
        if not 0 < op.target < len(plan.tensors):
            yield (
                f"op {index} ({op.kind}) writes tensor {op.target}; it must be one of 1 to "
                f"{len(plan.tensors) - 1}"
            )
        channels = set(op.channels(plan))
        if channels & written[op.target]:
            yield (
                f"op {index} ({op.kind}) writes tensor {op.target}, which is written already; "
                "every channel of a tensor must be written once"
            )
        written[op.target] |= channels
    for tensor in range(len(plan.tensors)):
        if problem := _unready(plan, written, tensor):
            yield f"after the last op, there is {problem}"
    if problem := _unready(plan, written, plan.output):
        yield f"the output is {problem}"


def _unready(plan: Plan, written: list[set[int]], tensor: int) -> str:
    if not 0 <= tensor < len(plan.tensors):
        return f"tensor {tensor}; there are only 0 to {len(plan.tensors) - 1}"
    done, channels = len(written[tensor]), plan.tensors[tensor].shape[0]
    if done != channels:
        return f"tensor {tensor} with {done} of {channels} channels written; all must be"
    return ""


def _output_problems(plan: Plan) -> Iterator[str]:
    output = plan.tensors[plan.output]
    if plan.output_dims not in (1, 2, 3):
        yield f"the output has {plan.output_dims} dimensions; it must have 1, 2 or 3"
    if stored_shape(plan.output_shape) != output.shape:
        yield (
            f"the output has shape {output.shape} and {plan.output_dims} dimension(s); with 1 it "
            "must be (features, 1, 1), with 2 (channels, 1, length)"
        )
    if output.norm is not None:
        yield f"the output has norm {output.norm.name!r}; it must have none"
    if problem := plan.loss.outputs_problem(plan.output_shape):
        yield problem


def _use_problems(plan: Plan) -> Iterator[str]:
    """Check that every gradient comes from somewhere, and that of a parameter from one place."""
    norms = [tensor.norm for tensor in plan.tensors if tensor.norm is not None]
    used = Counter(name for op in plan.ops for name in op.parameters)
    layers = (name for norm in norms for name in (norm.weight, norm.bias, *norm.stats))
    used += Counter(name for name in layers if name is not None)
    for name in (*plan.weights, *plan.stats):
        users = [op for op in plan.ops if name in op.parameters]
        if used[name] != 1 and not (len(users) == used[name] and are_alike(users)):
            yield (
                f"{name!r} is used {used[name]} times; each name must be used once, or by layers "
                "that are alike but for what they read and write"
            )
    read = {plan.output}.union(*(op.sources for op in plan.ops))
    for tensor in range(len(plan.tensors)):
        if tensor not in read:
            yield f"tensor {tensor} is neither read nor the output; a tensor must be read"
