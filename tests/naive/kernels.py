"""Slow, obvious references for the sparse engine's kernels, forward and backward, in float64.

Every op works on whole unfolded inputs [n, c, kernel height, kernel width, height, width]; no
gradient is derived by a library.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.ops.add import Add
from fedkit.engine.ops.copy import Copy
from fedkit.engine.ops.pool import Pool
from fedkit.engine.plan.conv import Conv, Convolution
from fedkit.engine.plan.layer_norm import LayerNorm
from fedkit.engine.plan.structure import Activation, Norm, Pair, Plan, PlanOp

Array = NDArray[Any]
K = math.sqrt(math.pi / 2)


@dataclass
class BatchResult:
    """What one batch makes of a plan.

    Attributes:
        raw: The stored values of each tensor [n, c, h, w].
        loss: Mean cross-entropy.
        finished: Gradient of each tensor, of what its activation reads.
        gradients: Gradient of each parameter, pruned or not.
        sizes: For each parameter, the largest sum of magnitudes behind one of its gradients.
        kinks: Distances of what was computed to where a derivative jumps.
        condition: How much the norms magnify relative errors, by |x| / deviation of each.
    """

    raw: list[Array]
    loss: float = 0.0
    finished: list[Array] = field(default_factory=list)
    gradients: dict[str, Array] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)
    kinks: list[Array] = field(default_factory=list)
    condition: float = 1.0


def run(
    plan: Plan,
    weights: Mapping[str, Array],
    inputs: Array,
    targets: Array,
    stats: Mapping[str, Array] | None = None,
) -> BatchResult:
    """Run a batch forward and backward; norms use the batch, or `stats` (then only forward)."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    done = BatchResult([np.zeros((len(inputs), *tensor.shape)) for tensor in plan.tensors])
    done.raw[0][:] = inputs.reshape(done.raw[0].shape)
    for op in plan.ops:
        _forward(plan, weights, stats, done, op)
    logits = _read(plan, weights, stats, done, plan.output)[:, :, 0, 0]
    done.loss, gradient = cross_entropy(logits, targets)
    if stats is None:
        done.finished = [np.zeros_like(value) for value in done.raw]
        done.finished[plan.output] += gradient[:, :, None, None]
        done.gradients = {name: np.zeros(shape) for name, shape in plan.weights.items()}
        for number in reversed(range(len(plan.ops))):
            _backward(plan, weights, done, number)
    return done


def _read(
    plan: Plan,
    weights: Mapping[str, Array],
    stats: Mapping[str, Array] | None,
    done: BatchResult,
    tensor: int,
) -> Array:
    norm, kind = plan.tensors[tensor].norm, plan.tensors[tensor].activation
    return activate(kind, _normalised(norm, weights, stats, done.raw[tensor]))


def _normalised(
    norm: Norm | None, weights: Mapping[str, Array], stats: Mapping[str, Array] | None, x: Array
) -> Array:
    if norm is None:
        return x
    mean, deviation = batch_statistics(norm, x) if stats is None else running(norm, stats)
    y = (x - mean) / deviation
    y = y * _per_channel(weights[norm.weight]) if norm.weight else y
    return y + _per_channel(weights[norm.bias]) if norm.bias else y


def _forward(
    plan: Plan,
    weights: Mapping[str, Array],
    stats: Mapping[str, Array] | None,
    done: BatchResult,
    op: PlanOp,
) -> None:
    target = done.raw[op.target]
    if isinstance(op, Add):
        left, right = (_read(plan, weights, stats, done, side) for side in (op.left, op.right))
        target[:] = left + right
        return
    (source,) = op.sources
    value = _read(plan, weights, stats, done, source)
    if isinstance(op, Conv):
        bias = weights[op.bias] if op.bias else None
        target[:] = convolve(op, value, weights[op.weight], bias)
    elif isinstance(op, Pool):
        target[:] = pool(op, value)
    elif isinstance(op, LayerNorm):
        weight, bias = _layer_parameters(op, weights, value)
        target[:] = weight * layer_hat(op, value)[0] + bias
    else:
        assert isinstance(op, Copy)
        part = value.reshape(len(value), -1, *target.shape[2:])
        target[:, op.channel : op.channel + part.shape[1]] = part


def _backward(plan: Plan, weights: Mapping[str, Array], done: BatchResult, number: int) -> None:
    """Pass the gradient of an op's target on; the last op to write it finishes it first."""
    op = plan.ops[number]
    if number == max(n for n, other in enumerate(plan.ops) if other.target == op.target):
        _finish(plan, weights, done, op.target)
    gradient = _raw_gradient(plan, weights, done, op.target)
    if isinstance(op, Add):
        done.finished[op.left] += gradient
        done.finished[op.right] += gradient
        return
    (source,) = op.sources
    value = _read(plan, weights, None, done, source)
    if isinstance(op, Conv):
        to_input, to_weight = convolve_backward(op, value, weights[op.weight], gradient)
        done.gradients[op.weight] += to_weight.reshape(plan.weights[op.weight])
        _, sizes = convolve_backward(op, np.abs(value), weights[op.weight], np.abs(gradient))
        done.sizes[op.weight] = float(sizes.max())
        if op.bias:
            _add_sums(done, op.bias, gradient)
    elif isinstance(op, Pool):
        to_input = pool_backward(op, value, gradient)
        if op.operation == "max":
            done.kinks.append(second_best(op, value))
    elif isinstance(op, LayerNorm):
        to_input = _layer_backward(done, op, weights, value, gradient)
    else:
        assert isinstance(op, Copy)
        part = value.reshape(len(value), -1, *gradient.shape[2:])
        to_input = gradient[:, op.channel : op.channel + part.shape[1]].reshape(value.shape)
    done.finished[source] += to_input


def _layer_backward(
    done: BatchResult, op: LayerNorm, weights: Mapping[str, Array], x: Array, gradient: Array
) -> Array:
    weight, _ = _layer_parameters(op, weights, x)
    hat, deviation = layer_hat(op, x)
    for name, part in ((op.weight, gradient * hat), (op.bias, gradient)):
        if name:
            done.gradients[name] += part.sum(0).reshape(done.gradients[name].shape)
            done.sizes[name] = float(np.abs(part).sum(0).max())
    if op.kind == "l1-layer":
        done.kinks.append(np.abs(hat * deviation)[(x != 0) | (hat != 0)])
    done.condition *= max(1.0, float((np.maximum(np.abs(x), 1) / deviation).max()))
    return layer_backward(op, x, gradient * weight)


def _layer_parameters(op: LayerNorm, weights: Mapping[str, Array], x: Array) -> tuple[Array, Array]:
    shape = x.shape[1:]
    weight = weights[op.weight].reshape(shape) if op.weight else np.ones(shape)
    return weight, weights[op.bias].reshape(shape) if op.bias else np.zeros(shape)


def _finish(plan: Plan, weights: Mapping[str, Array], done: BatchResult, tensor: int) -> None:
    """Pass a gradient through the activation; add the gradients of the norm's parameters."""
    x, norm, kind = done.raw[tensor], plan.tensors[tensor].norm, plan.tensors[tensor].activation
    y = _normalised(norm, weights, None, x)
    done.finished[tensor] *= active(kind, y)
    done.kinks.extend(kinks(kind, y[(x != 0) | (y != 0)]))
    if norm is None:
        return
    mean, deviation = batch_statistics(norm, x)
    finished, centred = done.finished[tensor], x - mean
    # A channel that is constant, but not 0, is normalised to what rounding leaves of 0.
    done.kinks.append(np.abs(y[(x != 0) & (y == 0)]))
    if norm.weight:
        _add_sums(done, norm.weight, finished * centred / deviation)
    if norm.bias:
        _add_sums(done, norm.bias, finished)
    if norm.kind == "l1-batch":
        done.kinks.append(np.abs(centred[(x != 0) | (centred != 0)]))
    done.condition *= max(1.0, float((np.maximum(np.abs(x), 1) / deviation).max()))


def _add_sums(done: BatchResult, name: str, gradient: Array) -> None:
    done.gradients[name] += gradient.sum((0, 2, 3))
    done.sizes[name] = float(np.abs(gradient).sum((0, 2, 3)).max())


def _raw_gradient(
    plan: Plan, weights: Mapping[str, Array], done: BatchResult, tensor: int
) -> Array:
    norm = plan.tensors[tensor].norm
    if norm is None:
        return done.finished[tensor]
    scale = _per_channel(weights[norm.weight]) if norm.weight else 1.0
    return scale * normalise_backward(norm, done.raw[tensor], done.finished[tensor])


def _per_channel(values: Array) -> Array:
    return values[:, None, None]


# Windows


def places(
    op: Convolution | Pool, plane: tuple[int, ...], dilation: Pair = (1, 1)
) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Yield (ky, kx, oy, ox, y, x): output (oy, ox) sees input (y, x) at (ky, kx)."""
    reach = [dilation[axis] * (op.kernel[axis] - 1) for axis in (0, 1)]
    height, width = (
        (plane[axis] + 2 * op.padding[axis] - reach[axis] - 1) // op.stride[axis] + 1
        for axis in (0, 1)
    )
    for ky, kx, oy, ox in np.ndindex(*op.kernel, height, width):
        y = oy * op.stride[0] + ky * dilation[0] - op.padding[0]
        x = ox * op.stride[1] + kx * dilation[1] - op.padding[1]
        if 0 <= y < plane[0] and 0 <= x < plane[1]:
            yield ky, kx, oy, ox, y, x


def unfold(
    op: Conv | Pool,
    x: Array,
    output: tuple[int, ...],
    dilation: Pair = (1, 1),
    outside: float = 0.0,
) -> Array:
    """Return what each output sees: [n, c, ky, kx, oy, ox]."""
    seen = np.full((*x.shape[:2], *op.kernel, *output), outside)
    for ky, kx, oy, ox, y, i in places(op, x.shape[2:], dilation):
        seen[:, :, ky, kx, oy, ox] = x[:, :, y, i]
    return seen


def fold(op: Conv | Pool, seen: Array, plane: tuple[int, ...], dilation: Pair = (1, 1)) -> Array:
    """Add what belongs to each input; the transpose of `unfold`."""
    x = np.zeros((*seen.shape[:2], *plane))
    for ky, kx, oy, ox, y, i in places(op, plane, dilation):
        x[:, :, y, i] += seen[:, :, ky, kx, oy, ox]
    return x


def plane_of(op: Conv | Pool, plane: tuple[int, ...], dilation: Pair = (1, 1)) -> tuple[int, int]:
    height, width = (
        (plane[axis] + 2 * op.padding[axis] - dilation[axis] * (op.kernel[axis] - 1) - 1)
        // op.stride[axis]
        + 1
        for axis in (0, 1)
    )
    return height, width


# Ops


def convolve(op: Conv, x: Array, weight: Array, bias: Array | None) -> Array:
    seen = unfold(op, x, plane_of(op, x.shape[2:], op.dilation), op.dilation)
    y = np.einsum("ngcabij,gocab->ngoij", _grouped(op, seen), _weight(op, weight))
    y = y.reshape(len(x), -1, *y.shape[3:])
    return y if bias is None else y + _per_channel(bias)


def convolve_backward(op: Conv, x: Array, weight: Array, gradient: Array) -> tuple[Array, Array]:
    """Return the gradients of the input and of the weight [groups, out, in, ky, kx]."""
    seen = unfold(op, x, gradient.shape[2:], op.dilation)
    grouped = gradient.reshape(len(x), op.groups, -1, *gradient.shape[2:])
    to_weight = np.einsum("ngcabij,ngoij->gocab", _grouped(op, seen), grouped)
    to_seen = np.einsum("ngoij,gocab->ngcabij", grouped, _weight(op, weight))
    return fold(op, to_seen.reshape(seen.shape), x.shape[2:], op.dilation), to_weight


def _grouped(op: Conv, seen: Array) -> Array:
    return seen.reshape(len(seen), op.groups, -1, *seen.shape[2:])


def _weight(op: Conv, weight: Array) -> Array:
    return weight.reshape(op.groups, len(weight) // op.groups, -1, *op.kernel)


def pool(op: Pool, x: Array) -> Array:
    output = plane_of(op, x.shape[2:])
    if op.operation == "max":
        return unfold(op, x, output, outside=-np.inf).max((2, 3))
    sums = unfold(op, x, output).sum((2, 3))
    return sums / math.prod(op.kernel) if op.operation == "mean" else sums


def pool_backward(op: Pool, x: Array, gradient: Array) -> Array:
    if op.operation != "max":
        count = math.prod(op.kernel) if op.operation == "mean" else 1
        share = gradient[:, :, None, None] / count
        return fold(op, np.broadcast_to(share, (*x.shape[:2], *op.kernel, *gradient.shape[2:])),
                    x.shape[2:])  # fmt: skip
    seen = unfold(op, x, gradient.shape[2:], outside=-np.inf)
    flat = seen.reshape(*seen.shape[:2], -1, *seen.shape[4:])
    first = flat.argmax(2)[:, :, None] == np.arange(flat.shape[2])[:, None, None]
    return fold(op, (first * gradient[:, :, None]).reshape(seen.shape), x.shape[2:])


def second_best(op: Pool, x: Array) -> Array:
    """Return how much larger each window's maximum is than the next smaller value."""
    seen = unfold(op, x, plane_of(op, x.shape[2:]), outside=-np.inf)
    gaps = (seen.max((2, 3), keepdims=True) - seen).reshape(-1)
    return np.asarray(gaps[gaps > 0])


def batch_statistics(norm: Norm, x: Array) -> tuple[Array, Array]:
    mean = x.mean((0, 2, 3), keepdims=True)
    if norm.kind == "batch":
        variance = np.square(x - mean).mean((0, 2, 3), keepdims=True)
        return mean, np.sqrt(variance + norm.eps)
    return mean, K * np.abs(x - mean).mean((0, 2, 3), keepdims=True) + norm.eps


def l1_variance(x: Array) -> Array:
    """Return the variance per channel as an L1 norm's running statistics hold it."""
    magnitudes = np.abs(x - x.mean((0, 2, 3), keepdims=True))
    return np.asarray(np.square(K * magnitudes.mean((0, 2, 3))))


def running(norm: Norm, stats: Mapping[str, Array]) -> tuple[Array, Array]:
    mean, variance = (_per_channel(stats[name].astype(np.float64)) for name in norm.stats)
    if norm.kind == "batch":
        return mean, np.sqrt(variance + norm.eps)
    return mean, np.sqrt(variance) + norm.eps


def normalise_backward(norm: Norm, x: Array, gradient: Array) -> Array:
    """Return the gradient of x, given that of (x - mean) / deviation."""
    mean, deviation = batch_statistics(norm, x)
    centred = (x - mean) / deviation
    along = (gradient * centred).mean((0, 2, 3), keepdims=True)
    if norm.kind == "batch":
        carried = centred * along
    else:
        sign = np.sign(x - mean)
        carried = K * (sign - sign.mean((0, 2, 3), keepdims=True)) * along
    return np.asarray((gradient - gradient.mean((0, 2, 3), keepdims=True) - carried) / deviation)


def layer_hat(op: LayerNorm, x: Array) -> tuple[Array, Array]:
    """Return (x - mean) / deviation and the deviation, each example by itself."""
    axes = (1, 2, 3)
    centred = x - x.mean(axes, keepdims=True)
    if op.kind == "layer":
        deviation = np.sqrt(np.square(centred).mean(axes, keepdims=True) + op.eps)
    else:
        deviation = K * np.abs(centred).mean(axes, keepdims=True) + op.eps
    return centred / deviation, deviation


def layer_backward(op: LayerNorm, x: Array, gradient: Array) -> Array:
    """Return the gradient of x, given that of (x - mean) / deviation."""
    axes, (hat, deviation) = (1, 2, 3), layer_hat(op, x)
    along = (gradient * hat).mean(axes, keepdims=True)
    if op.kind == "layer":
        carried = hat * along
    else:
        carried = K * (np.sign(hat) - np.sign(hat).mean(axes, keepdims=True)) * along
    return np.asarray((gradient - gradient.mean(axes, keepdims=True) - carried) / deviation)


def activate(kind: Activation, y: Array) -> Array:
    return y if kind == "none" else np.clip(y, 0, np.inf if kind == "relu" else 6)


def active(kind: Activation, y: Array) -> Array:
    if kind == "none":
        return np.ones_like(y)
    return np.asarray((y > 0) & (y < (np.inf if kind == "relu" else 6)), np.float64)


def kinks(kind: Activation, y: Array) -> Iterator[Array]:
    if kind != "none":
        yield np.abs(y)
    if kind == "relu6":
        yield np.abs(y - 6)


def cross_entropy(logits: Array, targets: Array) -> tuple[float, Array]:
    """Return the mean loss and the gradient of the logits [n, classes]."""
    loss, gradient = 0.0, np.zeros(logits.shape)
    for example, (row, target) in enumerate(zip(logits.astype(np.float64), targets, strict=True)):
        power = np.exp(row - row.max())
        loss -= row[target] - row.max() - math.log(power.sum())
        gradient[example] = power / power.sum()
        gradient[example, target] -= 1
    return loss / len(logits), gradient / len(logits)


def sgd(
    weight: Array, velocity: Array, gradient: Array, rate: float, momentum: float, decay: float
) -> tuple[Array, Array]:
    """Return the next weight and velocity."""
    velocity = momentum * velocity + gradient + decay * weight
    return weight - rate * velocity, velocity
