"""The plan of a model: one captured network as a flat list of operations, stored as a file.

A plan says everything the sparse engine needs to know of a model except its numbers, and needs no
torch to be read. It speaks of ONE example, shape (channels, height, width); a linear layer is a
1x1 convolution on (features, 1, 1).

The file is JSON. Its "sha256" is that of the rest, written without white space in the same order
of keys; a reader accepts no byte but those that `save_plan` writes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from fedkit.core.errors import PlanError
from fedkit.core.files import read_whole, write_atomic
from fedkit.sparse.layout import Layout

VERSION = 1
"""Version of the plan file; a reader refuses others."""

Activation = Literal["none", "relu", "relu6"]
LayerKind = Literal["layer", "l1-layer"]
Pair = tuple[int, int]
Shape = tuple[int, int, int]

_strict = with_config(ConfigDict(strict=True, extra="forbid"))
_AGAIN = "capture the model again"


@_strict
@dataclass(frozen=True)
class Norm:
    """A batch normalisation over (examples, height, width), per channel.

    Attributes:
        name: Name of the module; the running statistics are `stats`.
        kind: "batch" divides by sqrt(variance + eps); "l1-batch" by sigma + eps, where sigma is
            sqrt(pi / 2) times the mean absolute deviation and its square the running_var.
        eps: Greater than 0.
        weight: Name of the scale, a parameter of shape (channels,), if there is one.
        bias: Name of the offset, likewise.
    """

    name: str
    kind: Literal["batch", "l1-batch"]
    eps: float
    weight: str | None
    bias: str | None

    @property
    def stats(self) -> tuple[str, str]:
        """Names of the running mean and variance."""
        return f"{self.name}.running_mean", f"{self.name}.running_var"


@_strict
@dataclass(frozen=True)
class StoredTensor:
    """A stored tensor. It holds RAW values; norm, then activation, are applied at every READ.

    Attributes:
        shape: (channels, height, width) of one example.
        norm: What a read normalises by; its result is never stored.
        activation: What a read applies after the norm, likewise.
    """

    shape: Shape
    norm: Norm | None = None
    activation: Activation = "none"


@_strict
@dataclass(frozen=True)
class Conv:
    """target = weight * read(source) + bias, zeros around the read values.

    A weight [out, in / groups, *kernel] keeps its four axes, that of a linear layer its two.
    """

    source: int
    target: int
    weight: str
    bias: str | None
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    kind: Literal["conv"] = "conv"


@_strict
@dataclass(frozen=True)
class Add:
    """target = read(left) + read(right), all of one shape."""

    left: int
    right: int
    target: int
    kind: Literal["add"] = "add"


@_strict
@dataclass(frozen=True)
class Pool:
    """target = the largest or the mean of each window of read(source).

    A mean divides by the full area of the kernel, padding included; a maximum never is padding.
    """

    source: int
    target: int
    kernel: Pair
    stride: Pair
    padding: Pair
    operation: Literal["max", "mean"]
    kind: Literal["pool"] = "pool"


@_strict
@dataclass(frozen=True)
class Copy:
    """Write read(source) to the channels of target from `channel` on.

    A concatenation is several copies into one target. A flatten is a copy of (c, h, w) to
    (c * h * w, 1, 1) in C order, with `channel` 0.
    """

    source: int
    target: int
    channel: int = 0
    kind: Literal["copy"] = "copy"


@_strict
@dataclass(frozen=True)
class LayerNorm:
    """target = weight * (read(source) - mean) / deviation + bias, over all of an example at once.

    Attributes:
        source: What is normalised.
        target: Of the same shape.
        name: Name of the module; nothing is tracked, so that there are no statistics.
        eps: Greater than 0.
        weight: Name of the scale, a parameter with a value per element, if there is one: of the
            tensor's shape, or (channels,) where its plane is (1, 1).
        bias: Name of the offset, likewise.
        kind: "layer" divides by sqrt(variance + eps); "l1-layer" by sqrt(pi / 2) times the mean
            absolute deviation, plus eps.
    """

    source: int
    target: int
    name: str
    eps: float
    weight: str | None
    bias: str | None
    kind: LayerKind


Op = Conv | Add | Pool | Copy | LayerNorm


@_strict
@dataclass(frozen=True)
class Plan:
    """A model, captured.

    Attributes:
        weights: Shape per trainable parameter, in the model's order.
        stats: Shape per running statistic, in the model's order.
        prunable: Names of the convolution and linear weights, in the model's order.
        tensors: All tensors; the first is the input, which has neither norm nor activation.
        ops: In the order of execution.
        output: Index of the tensor whose read value, of shape (classes, 1, 1), are the logits.
        version: `VERSION`.
    """

    weights: dict[str, tuple[int, ...]]
    stats: dict[str, tuple[int, ...]]
    prunable: tuple[str, ...]
    tensors: tuple[StoredTensor, ...]
    ops: tuple[Annotated[Op, Field(discriminator="kind")], ...]
    output: int
    version: int = VERSION

    @property
    def layout(self) -> Layout:
        """Names and shapes, as engines give them."""
        return Layout(self.weights, self.stats, self.prunable)


def sources(op: Op) -> tuple[int, ...]:
    """Return the tensors that an op reads."""
    return (op.left, op.right) if isinstance(op, Add) else (op.source,)


def norm_levels(plan: Plan) -> tuple[tuple[str, ...], ...]:
    """Return the plan's norms by level: each depends on norms of earlier levels alone."""
    depth = dict.fromkeys(range(len(plan.tensors)), 0)  # norms on the longest way to a raw tensor
    levels: dict[int, list[str]] = {}
    for op in plan.ops:
        for source in sources(op):
            passed = depth[source] + (plan.tensors[source].norm is not None)
            depth[op.target] = max(depth[op.target], passed)
    for index, tensor in enumerate(plan.tensors):
        if tensor.norm is not None:
            levels.setdefault(depth[index], []).append(tensor.norm.name)
    return tuple(tuple(levels[level]) for level in sorted(levels))


def absolute_norms(plan: Plan) -> frozenset[str]:
    """Return the names of the plan's L1 norms."""
    norms = (tensor.norm for tensor in plan.tensors if tensor.norm is not None)
    return frozenset(norm.name for norm in norms if norm.kind == "l1-batch")


# The file


def save_plan(plan: Plan, path: Path) -> None:
    """Write a plan to a file, whole or not at all.

    Raises:
        PlanError: The plan breaks a rule of `verify`, or the file cannot be written.
    """
    verify(plan)
    try:
        write_atomic(path, _render(asdict(plan)))
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
        plan = _parse(_read(path))
        verify(plan)
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
        return TypeAdapter(Plan).validate_json(json.dumps(content))
    except ValidationError as error:
        raise PlanError(_first_field(error)) from error


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
    return _digest(asdict(plan))


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _render(content: dict[str, Any]) -> bytes:
    return (json.dumps({**content, "sha256": _digest(content)}) + "\n").encode()


def _first_field(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    value = repr(first["input"])
    value = value if len(value) <= 60 else f"{value[:57]}..."
    return f"field {place} is {value}: {first['msg'].lower()}; {_AGAIN}"


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
    yield from _name_problems(plan)
    for index, tensor in enumerate(plan.tensors):
        for problem in _tensor_problems(plan, tensor):
            yield f"tensor {index} {problem}"
    yield from _input_problems(plan)
    yield from _order_problems(plan)
    for index, op in enumerate(plan.ops):
        for problem in _op_problems(plan, op):
            yield f"op {index} ({op.kind}) {problem}"
    yield from _output_problems(plan)
    yield from _use_problems(plan)


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
        for source in sources(op):
            if problem := _unready(plan, written, source):
                yield f"op {index} ({op.kind}) reads {problem}"
        if not 0 < op.target < len(plan.tensors):
            yield (
                f"op {index} ({op.kind}) writes tensor {op.target}; it must be one of 1 to "
                f"{len(plan.tensors) - 1}"
            )
        channels = _written_channels(plan, op)
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


def _written_channels(plan: Plan, op: Op) -> set[int]:
    channels = plan.tensors[op.target].shape[0]
    if not isinstance(op, Copy) or _flattens(plan, op):
        return set(range(channels))
    return set(range(op.channel, op.channel + plan.tensors[op.source].shape[0]))


def _flattens(plan: Plan, op: Copy) -> bool:
    source, target = plan.tensors[op.source].shape, plan.tensors[op.target].shape
    return op.channel == 0 and target == (math.prod(source), 1, 1)


def _op_problems(plan: Plan, op: Op) -> Iterator[str]:
    if isinstance(op, Conv):
        yield from _conv_problems(plan, op)
    elif isinstance(op, Pool):
        yield from _pool_problems(plan, op)
    elif isinstance(op, Copy):
        yield from _copy_problems(plan, op)
    elif isinstance(op, LayerNorm):
        yield from _layer_norm_problems(plan, op)
    else:
        yield from _add_problems(plan, op)


def _conv_problems(plan: Plan, op: Conv) -> Iterator[str]:
    source, target = plan.tensors[op.source].shape, plan.tensors[op.target].shape
    if op.groups < 1 or source[0] % op.groups or target[0] % op.groups:
        yield (
            f"has {op.groups} groups, which must divide its {source[0]} input and {target[0]} "
            "output channels"
        )
    weight = (target[0], source[0] // op.groups, *op.kernel)
    found = plan.weights.get(op.weight)
    linear = op.kernel == (1, 1) and op.groups == 1 and found == weight[:2]
    if found != weight and not linear:
        yield f"has weight {op.weight!r} of shape {found}; it must be {weight}"
    if op.bias is not None and plan.weights.get(op.bias) != target[:1]:
        yield f"has bias {op.bias!r} of shape {plan.weights.get(op.bias)}; it must be {target[:1]}"
    yield from _window_problems(source, target, op, op.dilation)


def _pool_problems(plan: Plan, op: Pool) -> Iterator[str]:
    source, target = plan.tensors[op.source].shape, plan.tensors[op.target].shape
    if source[0] != target[0]:
        yield f"turns {source[0]} channels into {target[0]}; a pooling must keep them"
    yield from _window_problems(source, target, op, (1, 1))
    if any(2 * padding > kernel for padding, kernel in zip(op.padding, op.kernel, strict=True)):
        yield f"has padding {op.padding}; it must be at most half of the kernel {op.kernel}"


def _window_problems(
    source: Shape, target: Shape, op: Conv | Pool, dilation: Pair
) -> Iterator[str]:
    if min(*op.kernel, *op.stride, *dilation) < 1 or min(op.padding) < 0:
        yield (
            f"has kernel {op.kernel}, stride {op.stride}, dilation {dilation}, padding "
            f"{op.padding}; the first three must be at least 1, padding at least 0"
        )
    plane = window_plane(source, op.kernel, op.stride, op.padding, dilation)
    if target[1:] != plane:
        yield (
            f"turns a plane of {source[1:]} into {target[1:]}; its kernel, stride, padding and "
            f"dilation give {plane}"
        )


def window_plane(
    source: Shape, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)
) -> Pair:
    """Return (height, width) of the windows over a plane.

    >>> window_plane((3, 32, 32), kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    (16, 16)
    """
    height, width = (
        (source[1 + axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1)
        // stride[axis]
        + 1
        for axis in (0, 1)
    )
    return height, width


def _copy_problems(plan: Plan, op: Copy) -> Iterator[str]:
    source, target = plan.tensors[op.source].shape, plan.tensors[op.target].shape
    fits = 0 <= op.channel <= target[0] - source[0] and source[1:] == target[1:]
    if not fits and not _flattens(plan, op):
        yield (
            f"writes {source} to {target} from channel {op.channel} on; the planes must be equal "
            f"and the channels fit, or the target be {(math.prod(source), 1, 1)}"
        )


def _add_problems(plan: Plan, op: Add) -> Iterator[str]:
    left, right, target = (plan.tensors[i].shape for i in (op.left, op.right, op.target))
    if not left == right == target:
        yield f"adds {left} and {right} to {target}; the shapes must be equal"


def _layer_norm_problems(plan: Plan, op: LayerNorm) -> Iterator[str]:
    source, target = plan.tensors[op.source].shape, plan.tensors[op.target].shape
    if source != target:
        yield f"turns {source} into {target}; a layer norm must keep the shape"
    if not 0 < op.eps < math.inf:
        yield f"has eps {op.eps}; it must be finite and greater than 0"
    shapes = [target, target[:1]] if target[1:] == (1, 1) else [target]
    for name in (op.weight, op.bias):
        if name is not None and plan.weights.get(name) not in shapes:
            yield (
                f"has parameter {name!r} of shape {plan.weights.get(name)}; it must be "
                f"{' or '.join(map(str, shapes))}, a value per element"
            )


def _output_problems(plan: Plan) -> Iterator[str]:
    output = plan.tensors[plan.output]
    if output.shape[1:] != (1, 1):
        yield f"the output has shape {output.shape}; it must be (classes, 1, 1)"
    if output.norm is not None:
        yield f"the output has norm {output.norm.name!r}; it must have none"


def _use_problems(plan: Plan) -> Iterator[str]:
    """Check that every gradient comes from somewhere, and that of a parameter from one place."""
    norms = [tensor.norm for tensor in plan.tensors if tensor.norm is not None]
    weighed = [op for op in plan.ops if isinstance(op, Conv | LayerNorm)]
    layers: list[Norm | Conv | LayerNorm] = [*norms, *weighed]
    used = Counter([layer.weight for layer in layers] + [layer.bias for layer in layers])
    used += Counter(name for norm in norms for name in norm.stats)
    for name in (*plan.weights, *plan.stats):
        if used[name] != 1:
            yield f"{name!r} is used {used[name]} times; each name must be used once"
    read = {plan.output}.union(*(sources(op) for op in plan.ops))
    for tensor in range(1, len(plan.tensors)):
        if tensor not in read:
            yield f"tensor {tensor} is neither read nor the output; a tensor must be read"
