"""Normalisation over the channels of each place of an example: a layer norm of tokens, an RMS norm.

Its parameters have a gradient each, so that it is more than `NumpyFloatOp` is for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from fedkit.engine.ops.family import Example, Family
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.structure import OneSourceOp, Plan, strict
from fedkit.engine.sparse.float_op import Call, Floats, NumpyFloatOp, Workspace
from fedkit.graph import ir
from fedkit.graph.ops.norms import OfPlace


@strict
@dataclass(frozen=True)
class ChannelNorm(OneSourceOp):
    """target = weight * (read(source) - mean) / deviation + bias, over the channels of each place.

    Attributes:
        source: What is normalised.
        target: Of the same shape.
        eps: Greater than 0; it is added to the variance.
        weight: Name of the scale, a parameter of shape (channels,), if there is one.
        bias: Name of the offset, likewise.
        centred: Whether the mean is taken off; else the deviation is that from 0.
    """

    source: int
    target: int
    eps: float
    weight: str | None
    bias: str | None
    centred: bool
    kind: Literal["channel-norm"] = "channel-norm"
    normalises: ClassVar[bool] = True

    @property
    def parameters(self) -> tuple[str, ...]:
        """See `PlanOp.parameters`."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)

    @property
    def rereads(self) -> bool:
        """See `PlanOp.rereads`."""
        return True

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        source, target = (plan.tensors[each].shape for each in (self.source, self.target))
        if source != target:
            yield f"turns {source} into {target}; a norm must keep the shape"
        if not 0 < self.eps < math.inf:
            yield f"has eps {self.eps}; it must be finite and greater than 0"
        for name in self.parameters:
            if plan.weights.get(name) != target[:1]:
                found = plan.weights.get(name)
                yield f"has parameter {name!r} of shape {found}; it must be {target[:1]}"


class FloatChannelNorm(NumpyFloatOp[ChannelNorm]):
    """Computes on whole tensors; its sums are float64."""

    def __init__(self, op: ChannelNorm, number: int, work: Workspace) -> None:
        super().__init__(op, number, work)
        parameters = work.network.parameters
        self._values = {name: parameters.part(name, parameters.values) for name in op.parameters}

    def value(self, *sources: Floats) -> Floats:
        """See `NumpyFloatOp.value`."""
        hat = self._normalised(*sources)[0]
        return self._parameter(self.op.weight, 1) * hat + self._parameter(self.op.bias, 0)

    def gradients(self, gradient: Floats, *sources: Floats) -> Sequence[Floats]:
        """See `NumpyFloatOp.gradients`."""
        hat, inverse = self._normalised(*sources)
        g = self._parameter(self.op.weight, 1) * gradient
        along = hat * _mean(g * hat)
        return (inverse * (g - _mean(g) - along if self.op.centred else g - along),)

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        if any(map(work.trains, self.op.parameters)):
            yield self._give_parameters(work)
        yield from super().backward(work, given)

    def _give_parameters(self, work: Workspace) -> Call:
        (read,), passed = self._reads(work), self._passed(work)
        into = {n: work.network.parameters.part(n, work.gradient) for n in self.op.parameters}
        tensor = work.tensors[self.op.target]

        def run() -> None:
            gradient = passed()
            tiles, *_, lanes = gradient.shape
            example = np.arange(tiles * lanes).reshape(tiles, 1, 1, 1, lanes)
            g = np.where(example < tensor.examples, gradient, np.float32(0))
            for name, factor in ((self.op.weight, self._normalised(read())[0]), (self.op.bias, 1)):
                if name is not None:
                    into[name][:] = (g * factor).sum((0, 2, 3, 4), dtype=np.float64)

        return run

    def _normalised(self, x: Floats) -> tuple[Floats, Floats]:
        """Return normalised values, and one divided by the deviation of each place."""
        off = x - _mean(x) if self.op.centred else x
        variance = np.square(off, dtype=np.float64).mean(1, keepdims=True)
        inverse = (1 / np.sqrt(variance + self.op.eps)).astype(np.float32)
        return off * inverse, inverse

    def _parameter(self, name: str | None, instead: int) -> Floats:
        """Return a parameter beside [tiles, channels, height, width, lanes]."""
        values = np.array([instead]) if name is None else self._values[name]
        return values.astype(np.float32)[:, None, None, None]


def _mean(x: Floats) -> Floats:
    return np.asarray(x.mean(1, dtype=np.float64, keepdims=True), np.float32)


def _planned(maker: Any, op: ir.Op) -> int:
    assert isinstance(op.attributes, OfPlace)  # the verifier's rule
    how, source, target = op.attributes, maker.value(op), maker.target(op)
    weight, bias = maker.parameter(op, 1, 1.0), maker.parameter(op, 2, 0.0)
    maker.ops.append(ChannelNorm(source, target, how.eps, weight, bias, how.centred))
    return int(target)


_SHAPES = ((5, 3, 2),) * 3
_WEIGHTS = {"scale": (5,), "offset": (5,)}

FAMILY = Family(
    ChannelNorm,
    (
        Example(ChannelNorm(1, 2, 0.01, "scale", "offset", True), _SHAPES, _WEIGHTS),
        Example(ChannelNorm(1, 2, 0.01, "scale", None, False), _SHAPES, {"scale": (5,)}),
        Example(ChannelNorm(1, 2, 0.01, None, None, True), ((6, 1, 1),) * 3),
    ),
    FloatChannelNorm,
    integer=None,
    from_graph={"channel_norm": _planned},
)
