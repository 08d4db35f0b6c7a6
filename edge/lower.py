"""Turn a torch module into a float graph: the one door, and the only file here that sees torch.

`torch.export` gives the ATen graph of the evaluation-mode model; each ATen op has one short
handler below. What is computed from constants alone (a mask times a weight, a weight norm) is
evaluated here and becomes a constant itself.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from edge import ir
from fedkit.errors import ExportError

Arguments = Mapping[str, Any]
"""Argument name of the ATen schema -> value; tensors are `ir.Tensor` or constant `torch.Tensor`."""


class _Unsupported(Exception):
    """One op that cannot be lowered; collected, so that the user sees all of them at once."""


@dataclass
class _Lowering:
    """What has been lowered so far."""

    tensors: dict[str, ir.Tensor] = field(default_factory=dict)
    ops: list[ir.Op] = field(default_factory=list)
    values: dict[fx.Node, ir.Tensor | torch.Tensor] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    def activation(self, name: str, shape: ir.Shape) -> ir.Tensor:
        self.tensors[name] = ir.Tensor(name, shape)
        return self.tensors[name]

    def constant(self, name: str, value: torch.Tensor) -> ir.Tensor:
        data = value.detach().to(torch.float32).contiguous().numpy()
        self.tensors[name] = ir.Tensor(name, tuple(data.shape), "float32", data)
        return self.tensors[name]

    def op(
        self,
        kind: ir.Kind,
        node: fx.Node,
        inputs: Sequence[ir.Tensor],
        shape: ir.Shape,
        window: ir.Window | None = None,
        suffix: str = "",
    ) -> ir.Tensor:
        out = self.activation(node.name + suffix, shape)
        names = tuple(tensor.name for tensor in inputs)
        self.ops.append(ir.Op(kind, names, (out.name,), window, source=_module_of(node)))
        return out


_Handler = Callable[[_Lowering, fx.Node, Arguments], ir.Tensor]
_HANDLERS: dict[str, _Handler] = {}


def _lowers(*targets: str) -> Callable[[_Handler], _Handler]:
    def register(handler: _Handler) -> _Handler:
        _HANDLERS.update(dict.fromkeys(targets, handler))
        return handler

    return register


def lower(model: nn.Module, input_shape: Sequence[int]) -> ir.Graph:
    """Lower a torch module to a float graph.

    The model is neither changed nor moved; it is lowered as it behaves in evaluation mode.

    Args:
        model: Takes float32 [n, channels, height, width] or [n, features], returns one tensor.
        input_shape: (channels, height, width) or (features,) of one example.

    Returns:
        A graph in the layouts of `edge.ir`, not yet optimised; it passes `ir.verify`.

    Raises:
        ExportError: The model cannot be traced, or holds unsupported ops; all are listed.
    """
    if len(input_shape) not in (1, 3):
        raise ExportError(
            f"input_shape is {tuple(input_shape)}; it must be (channels, height, width) or "
            f"(features,), without the batch dimension"
        )
    program = _export(model, tuple(input_shape))
    lowering = _Lowering()
    _bind_inputs(program, lowering)
    for node in program.graph.nodes:
        if node.op == "call_function":
            _lower_node(lowering, node)
    _raise_complaints(lowering)
    graph = ir.Graph(
        lowering.tensors, tuple(lowering.ops), _inputs(program), (_output(program, lowering),)
    )
    ir.verify(graph)
    return graph


def _export(model: nn.Module, input_shape: tuple[int, ...]) -> ExportedProgram:
    twin = copy.deepcopy(model).to("cpu", torch.float32).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the twin, which nobody sees
            return torch.export.export(twin, (torch.zeros(1, *input_shape),))
    except Exception as error:  # torch.export documents no narrower class
        raise ExportError(
            f"torch.export cannot trace {type(model).__name__} for inputs of shape {input_shape}: "
            f"{str(error).strip().splitlines()[0]}; the forward pass must be free of control flow "
            f"that depends on data, and fit that shape"
        ) from error


def _bind_inputs(program: ExportedProgram, lowering: _Lowering) -> None:
    constants = {**program.state_dict, **program.constants}
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            lowering.values[node] = lowering.activation(node.name, _shape_of(node))
        else:
            lowering.values[node] = constants[str(spec.target)]


def _inputs(program: ExportedProgram) -> tuple[str, ...]:
    specs = program.graph_signature.input_specs
    return tuple(spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT)


def _output(program: ExportedProgram, lowering: _Lowering) -> str:
    specs = program.graph_signature.output_specs
    names = [spec.arg.name for spec in specs if spec.kind is OutputKind.USER_OUTPUT]
    if len(names) != 1:
        raise ExportError(f"the model returns {len(names)} tensors; an artifact has exactly one")
    found = {node.name: value for node, value in lowering.values.items()}[names[0]]
    if isinstance(found, torch.Tensor):
        raise ExportError("the model's output does not depend on its input; nothing to export")
    if len(found.shape) == 4 and not _order_is_free(found.shape):
        raise ExportError(
            f"the model returns a feature map, {found.shape} in NHWC; an artifact returns "
            f"[n, classes]: end the model with a pooling or flatten and a linear layer"
        )
    return found.name


def _lower_node(lowering: _Lowering, node: fx.Node) -> None:
    """Lower one ATen op; if that fails, note why and go on as if it had worked."""
    if "_assert" in str(node.target):
        return
    arguments = _arguments(lowering, node)
    if _is_constant(arguments) and callable(node.target):
        kwargs = {key: arguments[key] for key in node.kwargs}
        positional = [value for key, value in arguments.items() if key not in kwargs]
        lowering.values[node] = node.target(*positional[: len(node.args)], **kwargs)
        return
    handler = _HANDLERS.get(str(node.target))
    try:
        if handler is None:
            raise _Unsupported(f"{node.target} is not supported")
        lowering.values[node] = handler(lowering, node, arguments)
    except _Unsupported as error:
        _complain(lowering, node, str(error))


def _complain(lowering: _Lowering, node: fx.Node, reason: str) -> None:
    is_part_of_unsupported = "getitem" in str(node.target)
    if not is_part_of_unsupported:
        lowering.complaints.append(f"module {_module_of(node)!r}: {reason}")
    shape = tuple(getattr(node.meta.get("val"), "shape", (1, 1)))
    lowering.values[node] = ir.Tensor(node.name, shape if len(shape) != 4 else _nhwc(shape))


def _raise_complaints(lowering: _Lowering) -> None:
    if lowering.complaints:
        listed = "\n  ".join(lowering.complaints)
        raise ExportError(
            f"{len(lowering.complaints)} op(s) of the model cannot be exported:\n  {listed}\n"
            f"replace them by supported layers: conv2d, linear, batch norm, relu, relu6, add, "
            f"average and max pooling, mean over height and width, zero padding, flatten"
        )


def _arguments(lowering: _Lowering, node: fx.Node) -> dict[str, Any]:
    """Name the arguments of an op and fill in the defaults of its schema."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    named = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    named |= dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    named |= node.kwargs
    order = [a.name for a in schema.arguments if a.name in named]
    return {
        name: lowering.values[named[name]] if isinstance(named[name], fx.Node) else named[name]
        for name in order
    }


def _is_constant(arguments: Arguments) -> bool:
    return bool(arguments) and not any(_holds_activation(v) for v in arguments.values())


def _holds_activation(value: Any) -> bool:
    in_list = isinstance(value, list | tuple) and any(isinstance(v, fx.Node) for v in value)
    return in_list or isinstance(value, ir.Tensor)


def _module_of(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return str(list(stack.values())[-1][0]) or "(model)"


def _nhwc(shape: ir.Shape) -> ir.Shape:
    n, c, h, w = shape
    return n, h, w, c


def _graph_shape(shape: ir.Shape) -> ir.Shape:
    if len(shape) == 4:
        return _nhwc(shape)
    if len(shape) == 2:
        return shape
    raise _Unsupported(f"a value of shape {shape}; only [n, c, h, w] and [n, features] exist here")


def _shape_of(node: fx.Node) -> ir.Shape:
    return _graph_shape(tuple(node.meta["val"].shape))


def _order_is_free(shape: ir.Shape) -> bool:
    """Whether NHWC and NCHW put the elements in the same order."""
    return len(shape) != 4 or shape[1] * shape[2] == 1 or shape[3] == 1


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise _Unsupported(reason)


def _input(value: Any, rank: int | None = None) -> ir.Tensor:
    if not isinstance(value, ir.Tensor):
        raise _Unsupported("an operand is a constant where an activation is expected")
    _require(rank in (None, len(value.shape)), f"input of shape {value.shape}, not of rank {rank}")
    return value


def _pair(value: Sequence[int] | int) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def _window(
    x: ir.Tensor, out: ir.Shape, window: ir.Window, symmetric: Sequence[int] = (0, 0)
) -> ir.Window:
    """Add torch's symmetric padding to `window`, less what no step of the window reaches.

    Where the stride leaves a remainder, torch pads more at the bottom and right than it reads;
    without that excess the padding often is the one that TFLite calls "SAME".
    """
    pads: list[int] = []
    for axis, before in enumerate(_pair(symmetric)):
        reach = window.dilation[axis] * (window.kernel[axis] - 1) + 1
        needed = (out[1 + axis] - 1) * window.stride[axis] + reach
        pads += [before, max(0, needed - x.shape[1 + axis] - before)]
    return replace(window, padding=(pads[0], pads[1], pads[2], pads[3]))


@_lowers("aten.conv2d.default", "aten.conv2d.padding")
def _conv2d(lowering: _Lowering, node: fx.Node, a: Arguments) -> ir.Tensor:
    x, weight = _input(a["input"], 4), a["weight"]
    groups, cin = a["groups"], x.shape[3]
    _require(groups in (1, cin), f"conv2d with {groups} groups; 1 or one per channel can be")
    out = _shape_of(node)
    kernel = (int(weight.shape[2]), int(weight.shape[3]))
    window = ir.Window(kernel, _pair(a["stride"]), _pair(a["dilation"]))
    if a["padding"] == "same":
        window = replace(window, padding=ir.same_padding(x.shape[1:3], out[1:3], window))
    else:
        window = _window(x, out, window, (0, 0) if a["padding"] == "valid" else a["padding"])
    if groups == 1:
        kind: ir.Kind = "conv2d"
        weight = weight.permute(0, 2, 3, 1)
    else:
        kind = "depthwise_conv2d"
        weight = weight.permute(1, 2, 3, 0)
    return lowering.op(kind, node, _operands(lowering, node, x, weight, a["bias"]), out, window)


@_lowers("aten.linear.default")
def _linear(lowering: _Lowering, node: fx.Node, a: Arguments) -> ir.Tensor:
    operands = _operands(lowering, node, _input(a["input"], 2), a["weight"], a["bias"])
    return lowering.op("linear", node, operands, _shape_of(node))


def _operands(
    lowering: _Lowering, node: fx.Node, x: ir.Tensor, weight: Any, bias: Any
) -> list[ir.Tensor]:
    _require(isinstance(weight, torch.Tensor), "weights that depend on the input")
    bias = torch.zeros(_shape_of(node)[-1]) if bias is None else bias
    return [
        x,
        lowering.constant(f"{node.name}.weight", weight),
        lowering.constant(f"{node.name}.bias", bias),
    ]


@_lowers("aten.batch_norm.default")
def _batch_norm(lowering: _Lowering, node: fx.Node, a: Arguments) -> ir.Tensor:
    x = _input(a["input"])
    _require(not a["training"], "batch norm without running statistics")
    mean, variance = a["running_mean"].double(), a["running_var"].double()
    scale = torch.rsqrt(variance + a["eps"])
    scale = scale if a["weight"] is None else scale * a["weight"]
    shift = -mean * scale if a["bias"] is None else a["bias"] - mean * scale
    return lowering.op(
        "affine",
        node,
        [
            x,
            lowering.constant(f"{node.name}.scale", scale),
            lowering.constant(f"{node.name}.shift", shift),
        ],
        _shape_of(node),
    )


@_lowers("aten.relu.default", "aten.relu_.default")
def _relu(lowering: _Lowering, node: fx.Node, a: Arguments) -> ir.Tensor:
    return _elementwise(lowering, node, "relu", _input(a["self"]))


@_lowers(
    "aten.relu6.default",
    "aten.relu6_.default",
    "aten.hardtanh.default",
    "aten.hardtanh_.default",
    "aten.clamp.default",
    "aten.clamp_.default",
    "aten.clamp_min.default",
)
def _clamp(lowering: _Lowering, node: fx.Node, a: Arguments) -> ir.Tensor:
    low = a.get("min_val", a.get("min", 0))
    high = a.get("max_val", a.get("max", 6 if "relu6" in str(node.target) else None))
    _require(low == 0 and high in (None, 6), f"a clamp to [{low}, {high}]; relu and relu6 can be")
    return _elementwise(lowering, node, "relu6" if high else "relu", _input(a["self"]))


@_lowers("aten.add.Tensor", "aten.add_.Tensor")
def _add(lowering: _Lowering, node: fx.Node, a: Arguments) -> ir.Tensor:
    x, y = _input(a["self"]), _input(a["other"])
    _require(x.shape == y.shape, f"an addition of shapes {x.shape} and {y.shape}; they must agree")
    _require(a["alpha"] == 1, f"an addition with alpha = {a['alpha']}; only 1 can be")
    return _elementwise(lowering, node, "add", x, y)


def _elementwise(
    lowering: _Lowering, node: fx.Node, kind: ir.Kind, *inputs: ir.Tensor
) -> ir.Tensor:
    out = lowering.op(kind, node, inputs, _shape_of(node))
    if str(node.target).split(".")[1].endswith("_"):
        _rebind(lowering, inputs[0], out)
    return out


def _rebind(lowering: _Lowering, old: ir.Tensor, new: ir.Tensor) -> None:
    """Let every name of a tensor that was changed in place mean its new value."""
    for op in lowering.ops:
        is_view = op.kind in ("reshape", "flatten_nchw")
        _require(
            not (is_view and old.name in (*op.inputs, *op.outputs)),
            "an in-place op on a tensor that shares memory with its flattened form; set "
            "inplace=False",
        )
    for node, value in lowering.values.items():
        if value is old:
            lowering.values[node] = new


@_lowers("aten.adaptive_avg_pool2d.default")
def _adaptive_avg_pool2d(lowering: _Lowering, node: fx.Node, a: Arguments) -> ir.Tensor:
    x, out = _input(a["self"], 4), _shape_of(node)
    if out[1:3] == (1, 1):
        return lowering.op("mean", node, [x], out)
    divides = x.shape[1] % out[1] == 0 and x.shape[2] % out[2] == 0
    _require(divides, f"adaptive pooling of {x.shape[1:3]} to {out[1:3]}, which does not divide it")
    kernel = (x.shape[1] // out[1], x.shape[2] // out[2])
    return lowering.op("avg_pool2d", node, [x], out, ir.Window(kernel, kernel))


@_lowers("aten.mean.dim")
def _mean(lowering: _Lowering, node: fx.Node, a: Arguments) -> ir.Tensor:
    x = _input(a["self"], 4)
    dims = sorted(dim % 4 for dim in a["dim"] or ())
    _require(dims == [2, 3], f"a mean over dimensions {a['dim']}; height and width can be")
    return lowering.op("mean", node, [x], _shape_of(node))


@_lowers("aten.avg_pool2d.default")
def _avg_pool2d(lowering: _Lowering, node: fx.Node, a: Arguments) -> ir.Tensor:
    x, out = _input(a["self"], 4), _shape_of(node)
    kernel, padding = _pair(a["kernel_size"]), _pair(a["padding"])
    _require(not a["ceil_mode"], "avg_pool2d with ceil_mode")
    divisor = a["divisor_override"]
    _require(divisor in (None, math.prod(kernel)), f"avg_pool2d with divisor_override = {divisor}")
    window = ir.Window(kernel, _pair(a["stride"] or kernel))
    if a["count_include_pad"] and any(padding):
        x, padding = _pad_by(lowering, node, x, _window(x, out, window, padding)), (0, 0)
    return lowering.op("avg_pool2d", node, [x], out, _window(x, out, window, padding))


def _pad_by(lowering: _Lowering, node: fx.Node, x: ir.Tensor, like: ir.Window) -> ir.Tensor:
    pad = ir.Window(padding=like.padding)
    shape = (1, *pad.output(x.shape[1], x.shape[2]), x.shape[3])
    return lowering.op("pad", node, [x], shape, pad, suffix=".pad")


@_lowers("aten.max_pool2d.default")
def _max_pool2d(lowering: _Lowering, node: fx.Node, a: Arguments) -> ir.Tensor:
    x, out = _input(a["self"], 4), _shape_of(node)
    _require(_pair(a["dilation"]) == (1, 1), f"max_pool2d with dilation {a['dilation']}")
    kernel = _pair(a["kernel_size"])
    window = ir.Window(kernel, _pair(a["stride"] or kernel))
    return lowering.op("max_pool2d", node, [x], out, _window(x, out, window, a["padding"]))


@_lowers("aten.pad.default", "aten.constant_pad_nd.default")
def _pad(lowering: _Lowering, node: fx.Node, a: Arguments) -> ir.Tensor:
    x = _input(a["self"], 4)
    amounts = [*a["pad"], 0, 0, 0, 0]
    is_zero = a.get("mode", "constant") == "constant" and a["value"] in (None, 0)
    _require(is_zero, f"{a.get('mode', 'constant')} padding with {a['value']}; zeros can be")
    spatial = len(a["pad"]) <= 4 and min(amounts) >= 0
    _require(spatial, f"padding by {a['pad']}; height and width can grow, and nothing shrink")
    left, right, top, bottom = amounts[:4]
    return lowering.op(
        "pad", node, [x], _shape_of(node), ir.Window(padding=(top, bottom, left, right))
    )


@_lowers(
    "aten.flatten.using_ints",
    "aten.view.default",
    "aten.reshape.default",
    "aten.squeeze.dims",
    "aten.squeeze.dim",
    "aten.unsqueeze.default",
    "aten.unflatten.int",
)
def _reshape(lowering: _Lowering, node: fx.Node, a: Arguments) -> ir.Tensor:
    x, out = _input(a["self"]), _shape_of(node)
    if x.shape == out:
        return x
    if _order_is_free(x.shape) and _order_is_free(out):
        return lowering.op("reshape", node, [x], out)
    is_flatten = len(x.shape) == 4 and out == (1, math.prod(x.shape))
    _require(is_flatten, f"a reshape of {x.shape} to {out} (NHWC); flatten to [n, features] can be")
    return lowering.op("flatten_nchw", node, [x], out)


@_lowers(
    "aten.dropout.default",
    "aten.dropout_.default",
    "aten.feature_dropout.default",
    "aten.alias.default",
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.detach.default",
)
def _identity(lowering: _Lowering, node: fx.Node, a: Arguments) -> ir.Tensor:
    _require(not a.get("train", False), "dropout that is on in evaluation")
    return _input(a.get("self", a.get("input")))
