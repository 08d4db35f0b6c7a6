"""From the nodes of a traced model to the tensors and ops of a plan, one handler per layer.

A handler takes the arguments of the torch function it stands for; modules are translated to the
same arguments. What it cannot express it refuses with a reason.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F

from fedkit.engine.ops.add import Add
from fedkit.engine.ops.copy import Copy
from fedkit.engine.ops.pool import Pool
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.layer_norm import LayerNorm
from fedkit.engine.plan.structure import Activation, LayerKind, Norm, Pair, Shape, StoredTensor
from fedkit.engine.plan.structure import PlanOp as Op
from fedkit.engine.plan.windows import window_plane
from fedkit.nn.norm import L1BatchNorm2d, L1LayerNorm

Handler = Callable[..., int]
_HANDLERS: dict[Any, Handler] = {}
_AS_FUNCTION: dict[type[nn.Module], tuple[str, ...]] = {}


class UnsupportedNode(Exception):
    """One node that a plan cannot express, and why."""


class _Unknown(Exception):
    """An operand that was refused itself, so that nothing more can be said."""


def _lowers(*targets: Any) -> Callable[[Handler], Handler]:
    """Register a handler for functions, names of tensor methods, or types of modules."""

    def register(handler: Handler) -> Handler:
        _HANDLERS.update(dict.fromkeys(targets, handler))
        return handler

    return register


def _lowers_module(module: type[nn.Module], *attributes: str) -> Callable[[Handler], Handler]:
    """Register a handler for modules too, which give their attributes as its arguments."""
    _AS_FUNCTION[module] = attributes
    return _lowers(module)


@dataclass
class PlanLowering:
    """What has been lowered so far.

    Attributes:
        parameters: Name of each parameter, by its id.
        modules: Name of each module, by its id.
        shapes: Shape of one example in each node's value, where that is a tensor.
        constants: The value of each node where that holds no tensor.
    """

    parameters: Mapping[int, str]
    modules: Mapping[int, str]
    shapes: Mapping[fx.Node, tuple[int, ...]]
    constants: Mapping[fx.Node, object]
    tensors: list[StoredTensor] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    values: dict[fx.Node, int] = field(default_factory=dict)
    views: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def new(self, shape: Shape) -> int:
        """Add a plain tensor."""
        self.tensors.append(StoredTensor(shape))
        return len(self.tensors) - 1

    def copied(self, source: int) -> int:
        """Add a plain tensor that holds what a read of `source` gives."""
        target = self.new(self.tensors[source].shape)
        self.ops.append(Copy(source, target))
        return target

    def value(self, x: object, rank: int | None = None) -> int:
        """Return the tensor of an operand, whose example must have `rank` axes if given."""
        if not isinstance(x, fx.Node) or x.op == "get_attr":
            raise UnsupportedNode("an operand is not a value that the network computes")
        if x not in self.values:
            raise _Unknown
        if rank not in (None, len(self.shapes[x])):
            raise UnsupportedNode(f"its input has shape (n, {', '.join(map(str, self.shapes[x]))})")
        return self.values[x]

    def is_only_read_here(self, x: fx.Node) -> bool:
        """Whether the one who reads `x` now is the only one who ever does, by any view of it."""
        is_viewed = x in self.views
        return len(self.readers(x)) == 1 and (
            not is_viewed or self.is_only_read_here(self.views[x])
        )

    def readers(self, x: fx.Node) -> list[fx.Node]:
        """Return the nodes that compute something from the numbers of `x`."""
        return [user for user in x.users if user not in self.constants]

    def own(self, x: fx.Node, is_free: bool) -> int:
        """Return a tensor to attach a norm or activation to: that of `x`, or a copy of it."""
        tensor = self.value(x)
        if tensor != 0 and is_free and self.is_only_read_here(x):
            return tensor
        return self.copied(tensor)


def planned(shape: Sequence[int]) -> Shape | None:
    """Return (channels, height, width) for an image or features; None for anything else."""
    if len(shape) == 1:
        return shape[0], 1, 1
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 else None


def lower_node(lowering: PlanLowering, node: fx.Node, module: nn.Module | None) -> None:
    """Lower one call.

    Raises:
        Unsupported: It cannot be; what follows can be lowered as if it had been.
    """
    try:
        lowering.values[node] = _handle(lowering, node, module)
    except _Unknown:
        return
    except UnsupportedNode:
        shape = planned(lowering.shapes.get(node, ()))
        if shape is not None:
            lowering.values[node] = lowering.new(shape)
        raise


def _handle(lowering: PlanLowering, node: fx.Node, module: nn.Module | None) -> int:
    target = node.target if module is None else type(module)
    if target is operator.getitem and node.args[0] not in lowering.values:
        raise _Unknown
    if target not in _HANDLERS:
        raise UnsupportedNode("not supported")
    args, kwargs = _arguments(lowering, node, module)
    try:
        inspect.signature(_HANDLERS[target]).bind(lowering, node, *args, **kwargs)
    except TypeError as error:
        raise UnsupportedNode(f"with these arguments: {error}") from None
    return _HANDLERS[target](lowering, node, *args, **kwargs)


def _arguments(
    lowering: PlanLowering, node: fx.Node, module: nn.Module | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def known(x: fx.Node) -> Any:
        return lowering.constants.get(x, x)

    args: Any = map_arg(node.args, known)
    kwargs: Any = map_arg(node.kwargs, known)
    if module is None:
        return args, kwargs
    if type(module) not in _AS_FUNCTION:
        return (module, *args), kwargs
    return args, {**kwargs, **{name: getattr(module, name) for name in _AS_FUNCTION[type(module)]}}


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise UnsupportedNode(reason)


def _require_writable(lowering: PlanLowering, x: object) -> None:
    read_elsewhere = isinstance(x, fx.Node) and not lowering.is_only_read_here(x)
    _require(not read_elsewhere, "in place on a value that is read elsewhere too")


def _pair(value: int | Sequence[int]) -> Pair:
    values = [value] if isinstance(value, int) else list(value)
    return values[0], values[-1]


# Layers with parameters


@_lowers(nn.Conv2d)
def _conv(lowering: PlanLowering, node: fx.Node, conv: nn.Conv2d, input: object) -> int:
    source = lowering.value(input, rank=3)
    _require(conv.padding_mode == "zeros", f"padding_mode {conv.padding_mode!r}, not 'zeros'")
    kernel, stride, dilation = _pair(conv.kernel_size), _pair(conv.stride), _pair(conv.dilation)
    padding = _padding(conv, kernel, dilation)
    plane = window_plane(lowering.tensors[source].shape, kernel, stride, padding, dilation)
    target = lowering.new((conv.out_channels, *plane))
    weight, bias = _names(lowering, conv)
    assert weight is not None
    op = Conv(source, target, weight, bias, kernel, stride, padding, dilation, conv.groups)
    lowering.ops.append(op)
    return target


def _padding(conv: nn.Conv2d, kernel: Pair, dilation: Pair) -> Pair:
    if conv.padding == "valid":
        return 0, 0
    if conv.padding != "same":
        assert not isinstance(conv.padding, str)
        return _pair(conv.padding)
    total = [dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)]
    is_even = all(pixels % 2 == 0 for pixels in total)
    _require(is_even, f"padding 'same' is uneven for kernel {kernel}, dilation {dilation}")
    return total[0] // 2, total[1] // 2


@_lowers(nn.Linear)
def _linear(lowering: PlanLowering, node: fx.Node, linear: nn.Linear, input: object) -> int:
    source = lowering.value(input, rank=1)
    target = lowering.new((linear.out_features, 1, 1))
    weight, bias = _names(lowering, linear)
    assert weight is not None
    one = (1, 1)
    lowering.ops.append(Conv(source, target, weight, bias, one, one, (0, 0), one, groups=1))
    return target


@_lowers(nn.BatchNorm1d, nn.BatchNorm2d, L1BatchNorm2d)
def _norm(
    lowering: PlanLowering, node: fx.Node, norm: nn.modules.batchnorm._BatchNorm, input: fx.Node
) -> int:
    lowering.value(input, rank=1 if isinstance(norm, nn.BatchNorm1d) else 3)
    _require(norm.running_mean is not None, "track_running_stats is False")
    before = lowering.tensors[lowering.value(input)]
    tensor = lowering.own(input, before == StoredTensor(before.shape))
    attached = Norm(
        lowering.modules[id(norm)],
        "l1-batch" if isinstance(norm, L1BatchNorm2d) else "batch",
        norm.eps,
        *_names(lowering, norm),
    )
    lowering.tensors[tensor] = replace(lowering.tensors[tensor], norm=attached)
    return tensor


@_lowers(nn.LayerNorm, L1LayerNorm)
def _layer_norm(lowering: PlanLowering, node: fx.Node, norm: nn.LayerNorm, input: fx.Node) -> int:
    source = lowering.value(input)
    whole, shape = lowering.shapes[input], tuple(norm.normalized_shape)
    _require(shape == whole, f"normalized_shape {shape}, not that of a whole example, {whole}")
    target = lowering.new(lowering.tensors[source].shape)
    kind: LayerKind = "l1-layer" if isinstance(norm, L1LayerNorm) else "layer"
    weight, bias = _names(lowering, norm)
    name = lowering.modules[id(norm)]
    lowering.ops.append(LayerNorm(source, target, name, norm.eps, weight, bias, kind))
    return target


def _names(lowering: PlanLowering, layer: nn.Module) -> tuple[str | None, str | None]:
    weight, bias = (getattr(layer, kind, None) for kind in ("weight", "bias"))
    for kind, parameter in (("weight", weight), ("bias", bias)):
        is_one = parameter is None or id(parameter) in lowering.parameters
        _require(is_one, f"its {kind} is not a parameter")
    return lowering.parameters.get(id(weight)), lowering.parameters.get(id(bias))


# Activations and what does nothing


@_lowers_module(nn.ReLU, "inplace")
@_lowers(F.relu, torch.relu, "relu")
def _relu(lowering: PlanLowering, node: fx.Node, input: fx.Node, inplace: bool = False) -> int:
    return _activate(lowering, input, "relu", inplace)


@_lowers(F.relu_, torch.relu_, "relu_")
def _relu_in_place(lowering: PlanLowering, node: fx.Node, input: fx.Node) -> int:
    return _activate(lowering, input, "relu", inplace=True)


@_lowers_module(nn.ReLU6, "inplace")
@_lowers(F.relu6)
def _relu6(lowering: PlanLowering, node: fx.Node, input: fx.Node, inplace: bool = False) -> int:
    return _activate(lowering, input, "relu6", inplace)


def _activate(lowering: PlanLowering, x: fx.Node, activation: Activation, inplace: bool) -> int:
    before = lowering.tensors[lowering.value(x)]
    if inplace:
        _require_writable(lowering, x)
    tensor = lowering.own(x, before.activation == "none")
    lowering.tensors[tensor] = replace(lowering.tensors[tensor], activation=activation)
    return tensor


@_lowers_module(nn.Identity)
@_lowers("contiguous")
def _identity(lowering: PlanLowering, node: fx.Node, input: fx.Node) -> int:
    tensor = lowering.value(input)
    lowering.views[node] = input
    return tensor


@_lowers_module(nn.Dropout, "p", "inplace")
@_lowers_module(nn.Dropout1d, "p", "inplace")
@_lowers_module(nn.Dropout2d, "p", "inplace")
@_lowers(F.dropout, F.dropout1d, F.dropout2d)
def _dropout(
    lowering: PlanLowering,
    node: fx.Node,
    input: fx.Node,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> int:
    _require(p == 0, f"p = {p}, training would be random; only p = 0 can be captured")
    return _identity(lowering, node, input)


# Pooling


@_lowers_module(
    nn.MaxPool2d, "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"
)
@_lowers(F.max_pool2d, torch.max_pool2d)
def _max_pool(
    lowering: PlanLowering,
    node: fx.Node,
    input: object,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> int:
    _require(_pair(dilation) == (1, 1), f"dilation {dilation}, not 1")
    _require(not ceil_mode, "ceil_mode is True")
    _require(not return_indices, "return_indices is True")
    return _pool(lowering, input, "max", _pair(kernel_size), stride, _pair(padding))


@_lowers_module(
    nn.AvgPool2d,
    *("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
)
@_lowers(F.avg_pool2d)
def _mean_pool(
    lowering: PlanLowering,
    node: fx.Node,
    input: object,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> int:
    _require(not ceil_mode, "ceil_mode is True")
    is_full = count_include_pad or _pair(padding) == (0, 0)
    _require(is_full, f"count_include_pad is False with padding {padding}")
    _require(divisor_override is None, f"divisor_override is {divisor_override}")
    return _pool(lowering, input, "mean", _pair(kernel_size), stride, _pair(padding))


def _pool(
    lowering: PlanLowering,
    x: object,
    operation: Any,
    kernel: Pair,
    stride: int | Sequence[int] | None,
    padding: Pair,
) -> int:
    source = lowering.value(x, rank=3)
    step = _pair(stride) if stride else kernel
    shape = lowering.tensors[source].shape
    target = lowering.new((shape[0], *window_plane(shape, kernel, step, padding)))
    lowering.ops.append(Pool(source, target, kernel, step, padding, operation))
    return target


@_lowers_module(nn.AdaptiveAvgPool2d, "output_size")
@_lowers(F.adaptive_avg_pool2d)
def _global_mean(lowering: PlanLowering, node: fx.Node, input: object, output_size: Any) -> int:
    _require(_is_one(output_size), f"output size {output_size}, not 1")
    return _pool_whole(lowering, input, "mean")


@_lowers_module(nn.AdaptiveMaxPool2d, "output_size", "return_indices")
@_lowers(F.adaptive_max_pool2d)
def _global_max(
    lowering: PlanLowering,
    node: fx.Node,
    input: object,
    output_size: Any,
    return_indices: bool = False,
) -> int:
    _require(_is_one(output_size), f"output size {output_size}, not 1")
    _require(not return_indices, "return_indices is True")
    return _pool_whole(lowering, input, "max")


@_lowers("mean", torch.mean)
def _mean(
    lowering: PlanLowering, node: fx.Node, input: object, dim: Any = None, keepdim: bool = False
) -> int:
    lowering.value(input, rank=3)
    axes = set() if dim is None else {axis % 4 for axis in ([dim] if isinstance(dim, int) else dim)}
    _require(axes == {2, 3}, f"a mean over axes {dim}; only over height and width")
    return _pool_whole(lowering, input, "mean")


def _is_one(output_size: Any) -> bool:
    return output_size == 1 or (isinstance(output_size, Sequence) and set(output_size) == {1})


def _pool_whole(lowering: PlanLowering, x: object, operation: str) -> int:
    plane = lowering.tensors[lowering.value(x, rank=3)].shape[1:]
    return _pool(lowering, x, operation, plane, plane, (0, 0))


# Several values; shapes


@_lowers(operator.add, "add", torch.add)
def _add(lowering: PlanLowering, node: fx.Node, input: Any, other: Any, *, alpha: float = 1) -> int:
    left, right = lowering.value(input), lowering.value(other)
    shapes = lowering.shapes[input], lowering.shapes[other]
    _require(shapes[0] == shapes[1], f"adds shapes {shapes[0]} and {shapes[1]}; only equal ones")
    _require(alpha == 1, f"alpha is {alpha}, not 1")
    target = lowering.new(lowering.tensors[left].shape)
    lowering.ops.append(Add(left, right, target))
    return target


@_lowers(operator.iadd, "add_")
def _add_in_place(
    lowering: PlanLowering, node: fx.Node, input: Any, other: Any, *, alpha: float = 1
) -> int:
    _require_writable(lowering, input)
    return _add(lowering, node, input, other, alpha=alpha)


@_lowers(torch.cat, torch.concat)
def _cat(lowering: PlanLowering, node: fx.Node, tensors: Any, dim: int = 0) -> int:
    if isinstance(tensors, fx.Node):
        raise _Unknown  # the tuple of something refused
    sources = [lowering.value(x) for x in tensors]
    _require(dim % (1 + len(lowering.shapes[tensors[0]])) == 1, f"along axis {dim}, not 1")
    parts = [lowering.tensors[source].shape for source in sources]
    target = lowering.new((sum(part[0] for part in parts), *parts[0][1:]))
    start = 0
    for source, part in zip(sources, parts, strict=True):
        lowering.ops.append(Copy(source, target, start))
        start += part[0]
    return target


@_lowers_module(nn.Flatten)
@_lowers(torch.flatten, "flatten", "view", "reshape", torch.reshape)
def _reshape(lowering: PlanLowering, node: fx.Node, input: fx.Node, *_: Any, **__: Any) -> int:
    source = lowering.value(input)
    before, after = lowering.tensors[source].shape, planned(lowering.shapes[node])
    flat = (math.prod(before), 1, 1)
    found = lowering.shapes[node] or "what mixes the examples"
    _require(
        after in (before, flat),
        f"turns {lowering.shapes[input]} into {found}; only a flatten to {flat[:1]} can be",
    )
    lowering.views[node] = input
    if before == after:
        return source
    target = lowering.new(flat)
    lowering.ops.append(Copy(source, target))
    return target
