"""The rules that every graph keeps, float or integer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from fedkit.core.errors import ExportError
from fedkit.graph.integers import (
    LARGEST_MULTIPLIER,
    LARGEST_OF_PRODUCTS,
    SMALLEST_MULTIPLIER,
    largest_sums,
)
from fedkit.graph.ir import (
    LARGEST_KERNEL,
    LARGEST_SIZE,
    TOKENS,
    DType,
    Graph,
    Op,
    Quantization,
    Tensor,
)
from fedkit.graph.ops.registry import CHANNEL_AXIS, SPECS, infer_shape, spec_of, tokens_of

_INTEGER_RANGE: Mapping[DType, tuple[int, int]] = {
    "int8": (-128, 127),
    "int32": (-(2**31), 2**31 - 1),
}


def verify(graph: Graph) -> None:
    """Check every rule of the graph.

    Raises:
        ExportError: Names the first rule that is broken, and where.
    """
    for rule in _RULES:
        for violation in rule(graph):
            raise ExportError(
                f"the graph breaks a rule: {violation}; this is a fault of the pass or of the "
                f"model's values that came before, not of the target"
            )


def _name(op: Op) -> str:
    return f"op {op.kind} -> {op.output!r} (module {op.source!r})"


def _names_are_known(graph: Graph) -> Iterator[str]:
    for op in graph.ops:
        for name in (*op.inputs, *op.outputs):
            if name not in graph.tensors:
                yield f"{_name(op)} uses tensor {name!r}, which the graph does not have"
    for name in (*graph.inputs, *graph.outputs):
        if name not in graph.tensors:
            yield f"{name!r} is an input or output, but the graph does not have such a tensor"


def _kinds_are_known(graph: Graph) -> Iterator[str]:
    for op in graph.ops:
        if op.kind not in SPECS:
            yield f"{_name(op)} is of no kind that exists; these do: {', '.join(SPECS)}"


def _written_once_before_read(graph: Graph) -> Iterator[str]:
    ready = {name for name, tensor in graph.tensors.items() if tensor.data is not None}
    ready |= set(graph.inputs)
    for op in graph.ops:
        for name in op.inputs:
            if name not in ready:
                yield f"{_name(op)} reads {name!r} before an op writes it"
        for name in op.outputs:
            if name in ready:
                yield f"{_name(op)} writes {name!r}, which is a constant or written already"
        ready |= set(op.outputs)
    for name in graph.outputs:
        if name not in ready:
            yield f"output {name!r} is never written"


def _series_are_rows(graph: Graph) -> Iterator[str]:
    for name in graph.series:
        shape = graph.tensors[name].shape if name in graph.outputs else ()
        if len(shape) != 4 or shape[1] != 1:
            yield f"{name!r} is told to be a series, and is no output [1, 1, length, channels]"


def _guards_watch_values(graph: Graph) -> Iterator[str]:
    for name in graph.guards:
        if name not in graph.tensors or graph.tensors[name].data is not None:
            yield f"a range guard watches {name!r}, which is no activation of the graph"


def _operands_fit_the_kind(graph: Graph) -> Iterator[str]:
    for op in graph.ops:
        spec = spec_of(op)
        activations, constants = spec.activations, spec.constants
        if spec.variadic:
            activations = max(activations, len(op.inputs))
        is_constant = [graph.tensors[name].data is not None for name in op.inputs]
        fits = is_constant == [False] * activations + [True] * constants
        if spec.takes_constant and sum(is_constant) == 1 < len(is_constant):
            fits = len(is_constant) == activations
        if not fits or len(op.outputs) != 1:
            yield f"{_name(op)} must read {activations} activation(s), then {constants} constant(s)"
        if (op.window is not None) != spec.has_window:
            yield f"{_name(op)} must have a window exactly if its kind slides one"
        own = spec.attributes
        if type(op.attributes) is not (own or type(None)):
            what = f"attributes of the class {own.__name__}" if own else "no attributes"
            yield f"{_name(op)} must have {what}"
        if op.activation != "none" and not spec.fuses_activation:
            yield f"{_name(op)} cannot apply the activation {op.activation!r} itself"


def _shapes_agree(graph: Graph) -> Iterator[str]:
    for tensor in graph.tensors.values():
        if tensor.data is not None:
            if tensor.data.shape != tensor.shape or tensor.data.dtype != tensor.dtype:
                yield (
                    f"constant {tensor.name!r} is declared {tensor.dtype} {tensor.shape} "
                    f"but holds {tensor.data.dtype} {tensor.data.shape}"
                )
        elif len(tensor.shape) not in (2, 4) or tensor.shape[0] != 1 or min(tensor.shape) < 1:
            yield f"activation {tensor.name!r} has shape {tensor.shape}, not [1, h, w, c] or [1, f]"
    for op in graph.ops:
        yield from _operand_shapes_agree(graph, op)


def _sizes_can_be_held(graph: Graph) -> Iterator[str]:
    for name, tensor in graph.tensors.items():
        if math.prod(tensor.shape) > LARGEST_SIZE:
            yield f"tensor {name!r} of shape {tensor.shape} has more than {LARGEST_SIZE} elements"
    for op in graph.ops:
        if op.window is not None:
            _, height, width, channels = graph.tensors[op.inputs[0]].shape
            top, bottom, left, right = op.window.padding
            padded = (height + top + bottom) * (width + left + right) * channels
            if padded > LARGEST_SIZE or math.prod(op.window.kernel) > LARGEST_KERNEL:
                yield (
                    f"{_name(op)} has the window {op.window}, whose kernel must have at most "
                    f"{LARGEST_KERNEL} places and whose padded input {LARGEST_SIZE} elements"
                )


def _operand_shapes_agree(graph: Graph, op: Op) -> Iterator[str]:
    shapes = [graph.tensors[name].shape for name in op.inputs]
    spec = spec_of(op)
    if (spec.has_window or spec.reads_map) and len(shapes[0]) != 4:
        yield f"{_name(op)} needs [1, h, w, c] but reads {shapes[0]}"
    elif (expected := spec.operands(op, shapes)) != shapes[1:]:
        yield f"{_name(op)} needs operands of shape {expected} but has {shapes[1:]}"
    elif (inferred := infer_shape(graph, op)) != graph.tensors[op.output].shape:
        yield f"{_name(op)} is declared {graph.tensors[op.output].shape} but gives {inferred}"
    else:
        yield from (f"{_name(op)} {broken}" for broken in spec.rules(graph, op))


def _constants_are_finite(graph: Graph) -> Iterator[str]:
    for tensor in graph.tensors.values():
        if tensor.data is not None and not np.isfinite(tensor.data).all():
            yield f"constant {tensor.name!r} holds NaN or infinity; retrain or repair the weights"


def _quantised_wholly_or_not_at_all(graph: Graph) -> Iterator[str]:
    quantised = any(tensor.quantization for tensor in graph.tensors.values())
    for tensor in graph.tensors.values():
        if (tensor.quantization is not None) != quantised:
            yield f"tensor {tensor.name!r} must be quantised if and only if all others are"
        if (tensor.dtype == "float32") == quantised:
            yield f"tensor {tensor.name!r} is {tensor.dtype}, which does not fit its quantisation"


def _quantisation_is_sound(graph: Graph) -> Iterator[str]:
    tokens = set(graph.inputs) if tokens_of(graph) else set()
    for tensor in graph.tensors.values():
        q = tensor.quantization
        if q is None:
            continue
        if tensor.data is None and tensor.name in tokens:
            if (tensor.dtype, q) != ("int32", TOKENS):
                yield f"input {tensor.name!r} is of tokens, and must be int32 of the scale 1"
        elif tensor.data is None and (q.axis is not None or tensor.dtype != "int8"):
            yield f"activation {tensor.name!r} must be int8 with one scale, not {tensor.dtype}"
        if q.axis is not None and not 0 <= q.axis < len(tensor.shape):
            yield f"tensor {tensor.name!r} has scales along axis {q.axis}, which it does not have"
            continue
        low, high = _INTEGER_RANGE[tensor.dtype]
        count = 1 if q.axis is None else tensor.shape[q.axis]
        if len(q.scale) != count or len(q.zero_point) != count:
            yield f"tensor {tensor.name!r} needs {count} scale(s) but has {len(q.scale)}"
        if not all(math.isfinite(s) and s > 0 for s in q.scale):
            yield f"tensor {tensor.name!r} has a scale that is not a positive number"
        if not all(low <= z <= high for z in q.zero_point):
            yield f"tensor {tensor.name!r} has a zero point outside {tensor.dtype}"


def _scales_agree(graph: Graph) -> Iterator[str]:
    for op in graph.ops:
        x, out, spec = graph.tensors[op.inputs[0]], graph.tensors[op.output], spec_of(op)
        if x.quantization is None:
            continue
        of_inputs = {graph.tensors[name].quantization for name in op.inputs}
        if spec.scale == "kept" and of_inputs != {out.quantization}:
            yield f"{_name(op)} must keep the scale and zero point of its inputs"
        if spec.looks_up and graph.tensors[op.inputs[1]].quantization != out.quantization:
            yield f"{_name(op)} must have the scale and zero point of its table"
        for name in op.inputs if spec.wide_constants else ():
            tensor = graph.tensors[name]
            if tensor.data is not None and (tensor.dtype != "int32" or tensor.zero_point):
                yield f"{_name(op)} must read {name!r} as int32 with one scale, zero point 0"
        for number in spec.symmetric:
            if graph.tensors[op.inputs[number]].zero_point:
                yield f"{_name(op)} must read {op.inputs[number]!r} with the zero point 0"
        if isinstance(spec.scale, Quantization):
            if out.quantization != spec.scale:
                yield f"{_name(op)} must have {spec.scale} for its output, always"
        elif spec.weights:
            yield from _weight_scales_agree(op, x, *(graph.tensors[n] for n in op.inputs[1:]))
        elif spec.scale == "product":
            left, right = (graph.tensors[name].scale for name in op.inputs)
            if left * right > LARGEST_OF_PRODUCTS * out.scale:
                yield f"{_name(op)} must have an output scale of twice its inputs' product or more"
        elif spec.scale != "free" and not all(
            _is_below_largest(graph.tensors[name].scale / out.scale) for name in op.inputs
        ):
            yield f"{_name(op)} must have an output scale above 1/256 of its inputs' scales"


def _is_below_largest(factor: float) -> bool:
    return bool(np.float32(factor) < LARGEST_MULTIPLIER)


def _weight_scales_agree(op: Op, x: Tensor, weight: Tensor, bias: Tensor) -> Iterator[str]:
    assert weight.quantization and bias.quantization  # an earlier rule
    axes = weight.quantization.axis, bias.quantization.axis
    if (weight.dtype, bias.dtype, *axes) != ("int8", "int32", CHANNEL_AXIS[op.kind], 0):
        yield f"{_name(op)} must have int8 weights and int32 biases with a scale per channel"
        return
    if any(weight.quantization.zero_point) or any(bias.quantization.zero_point):
        yield f"{_name(op)} must have symmetric weights and bias (zero points 0)"
    product = x.scale * np.asarray(weight.quantization.scale)
    if not np.allclose(bias.quantization.scale, product, rtol=1e-6, atol=0):
        yield f"{_name(op)} must have a bias scale equal to input scale * weight scale"


def _multipliers_fit(graph: Graph) -> Iterator[str]:
    for op in graph.ops:
        x, out = graph.tensors[op.inputs[0]], graph.tensors[op.output]
        if x.quantization is None or not spec_of(op).weights:
            continue
        weight, bias = (graph.tensors[name] for name in op.inputs[1:])
        assert weight.quantization  # an earlier rule
        factor = x.scale * np.asarray(weight.quantization.scale) / out.scale
        if not (factor.min() >= SMALLEST_MULTIPLIER and _is_below_largest(factor.max())):
            found = f"{factor.min():.3g} to {factor.max():.3g}"
            yield f"{_name(op)} rescales by {found}; it must be at least 2^-31 and below 256"
        worst = largest_sums(graph.constant(weight.name), graph.constant(bias.name), op.kind)
        if worst.max() >= 2**31:
            yield f"{_name(op)} sums up to {worst.max()} in an accumulator of 32 bits"
        # Kernels shift a sum to the left before they multiply it by what is below 1.
        shifted = np.ldexp(worst.astype(np.float64), np.maximum(np.frexp(factor)[1], 0))
        if shifted.max() >= 2**31 > worst.max():
            yield f"{_name(op)} rescales sums to {shifted.max():.3g}, which 32 bits do not hold"


_RULES: tuple[Callable[[Graph], Iterator[str]], ...] = (
    _names_are_known,
    _kinds_are_known,
    _written_once_before_read,
    _series_are_rows,
    _guards_watch_values,
    _operands_fit_the_kind,
    _shapes_agree,
    _sizes_can_be_held,
    _constants_are_finite,
    _quantised_wholly_or_not_at_all,
    _quantisation_is_sound,
    _scales_agree,
    _multipliers_fit,
)
"""In order: a rule may rely on those before it."""
