"""Random plans: any mixture of ops, norms, activations, and tensors that are read many times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from hypothesis import strategies as st

from fedkit.engine.ops.add import Add
from fedkit.engine.ops.copy import Copy
from fedkit.engine.ops.function import FAMILY
from fedkit.engine.ops.pool import Pool
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.function import FunctionOp
from fedkit.engine.plan.layer_norm import GroupNorm, LayerNorm
from fedkit.engine.plan.pair import Kind, PairOp
from fedkit.engine.plan.structure import (
    Activation,
    LayerKind,
    Norm,
    Plan,
    PlanOp,
    Shape,
    StoredTensor,
)

ONE = (1, 1)
THREE = (3, 3)

KINDS = ("conv", "add", "add", "add", "concat", "pool")
LAYERS = (*KINDS, "layer", "layer", "group")
"""With layer norms; apart, so that what `KINDS` draws stays the same."""
FUNCTIONS = (*KINDS, "function", "function", "mul", "sub", "gate", "gate")
"""With functions of one value, products and gates."""

SMOOTH = [
    example.op
    for example in FAMILY.examples
    if isinstance(example.op, FunctionOp)
    and example.op.kind in ("sigmoid", "tanh", "silu", "gelu", "mish", "erf")
]
"""Without kinks that rounding could take another way, and without growth."""


@dataclass
class Builder:
    """Adds ops to a plan; every tensor gets a name for what trains it from its number."""

    draw: st.DrawFn
    weights: dict[str, tuple[int, ...]] = field(default_factory=dict)
    stats: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tensors: list[StoredTensor] = field(default_factory=lambda: [StoredTensor((2, 3, 3))])
    ops: list[PlanOp] = field(default_factory=list)

    def new(self, shape: Shape, plain: bool = False) -> int:
        """Add a tensor, with a norm and an activation or not."""
        number = len(self.tensors)
        self.tensors.append(StoredTensor(shape))
        if not plain and self.draw(st.booleans()):
            norm = Norm(f"n{number}", self.draw(st.sampled_from(["batch", "l1-batch"])), 1e-3, *[
                f"n{number}.{kind}" if self.draw(st.booleans()) else None
                for kind in ("weight", "bias")
            ])  # fmt: skip
            self.tensors[number] = replace(self.tensors[number], norm=norm)
            self.stats |= dict.fromkeys(norm.stats, shape[:1])
            self.weights |= {name: shape[:1] for name in (norm.weight, norm.bias) if name}
        if not plain:
            activation = self.draw(st.sampled_from(get_args(Activation)))
            self.tensors[number] = replace(self.tensors[number], activation=activation)
        return number

    def conv(self, source: int, channels: int = 2, plain: bool = False) -> int:
        """Add a convolution that keeps the plane."""
        inputs, height, width = self.tensors[source].shape
        target = self.new((channels, height, width), plain)
        weight, bias = f"c{target}.weight", f"c{target}.bias" if self.draw(st.booleans()) else None
        kernel, padding = (THREE, ONE) if height > 1 else (ONE, (0, 0))
        self.weights[weight] = (channels, inputs, *kernel)
        if bias:
            self.weights[bias] = (channels,)
        self.ops.append(Conv(source, target, weight, bias, kernel, ONE, padding, ONE, 1))
        return target

    def layer(self, source: int) -> None:
        """Add a layer norm."""
        shape = self.tensors[source].shape
        target = self.new(shape)
        weight, bias = (
            f"l{target}.{kind}" if self.draw(st.booleans()) else None for kind in ("weight", "bias")
        )
        self.weights |= {name: shape for name in (weight, bias) if name}
        kind = self.draw(st.sampled_from(get_args(LayerKind)))
        self.ops.append(LayerNorm(source, target, f"l{target}", 1e-3, weight, bias, kind))

    def group(self, source: int) -> None:
        """Add a norm over groups of channels."""
        shape = self.tensors[source].shape
        target = self.new(shape)
        weight, bias = (
            f"g{target}.{kind}" if self.draw(st.booleans()) else None for kind in ("weight", "bias")
        )
        self.weights |= {name: shape[:1] for name in (weight, bias) if name}
        groups = self.draw(st.sampled_from([1, shape[0]]))
        self.ops.append(GroupNorm(source, target, f"g{target}", 1e-3, weight, bias, groups))

    def step(self, kinds: Sequence[str]) -> None:
        """Add one op that reads any tensors."""
        kind = self.draw(st.sampled_from(kinds))
        maps = [i for i, tensor in enumerate(self.tensors) if tensor.shape[1:] != ONE]
        one = self.draw(st.sampled_from(maps))
        shape = self.tensors[one].shape
        if kind == "conv":
            self.conv(one)
        elif kind == "layer":
            self.layer(one)
        elif kind == "group":
            self.group(one)
        elif kind == "pool":
            target = self.new(shape)
            pool = Pool(one, target, THREE, ONE, ONE, "max")
            self.ops.append(replace(pool, operation="mean") if self.draw(st.booleans()) else pool)
        elif kind == "function":
            op = self.draw(st.sampled_from(SMOOTH))
            self.ops.append(replace(op, source=one, target=self.new(shape)))
        elif kind == "gate":
            pooled = self.new((shape[0], 1, 1), plain=True)
            self.ops.append(Pool(one, pooled, THREE, ONE, (0, 0), "mean"))
            sides = [one, pooled] if self.draw(st.booleans()) else [pooled, one]
            combine = self.draw(st.sampled_from(get_args(Kind)))
            self.ops.append(PairOp(sides[0], sides[1], self.new(shape), combine))
        else:
            same = [i for i, tensor in enumerate(self.tensors) if tensor.shape == shape]
            other = self.draw(st.sampled_from(same))
            if kind in ("mul", "sub"):
                product: Literal["mul", "sub"] = "mul" if kind == "mul" else "sub"
                self.ops.append(PairOp(one, other, self.new(shape), product))
            elif kind == "add":
                self.ops.append(Add(one, other, self.new(shape)))
            elif shape[0] == 2:
                target = self.new((4, *shape[1:]))
                self.ops += [Copy(other, target, channel=2), Copy(one, target)]

    def plan(self) -> Plan:
        """Sum what nothing reads yet, and end in three logits."""
        read = {source for op in self.ops for source in op.sources}
        loose = [self.conv(i) for i in range(len(self.tensors)) if i not in read]
        total = loose[0]
        for tensor in loose[1:]:
            target = self.new(self.tensors[total].shape)
            self.ops.append(Add(total, tensor, target))
            total = target
        pooled = self.new((2, 1, 1), plain=True)
        self.ops.append(Pool(total, pooled, THREE, ONE, (0, 0), "mean"))
        output = self.conv(pooled, channels=3, plain=True)
        prunable = tuple(name for name in self.weights if name.startswith("c") and "w" in name)
        return Plan(
            self.weights, self.stats, prunable, tuple(self.tensors), tuple(self.ops), output
        )


@st.composite
def plans(draw: st.DrawFn, kinds: Sequence[str] = KINDS) -> Plan:
    """Draw a plan of (2, 3, 3) -> 3 logits that keeps all rules."""
    builder = Builder(draw)
    builder.conv(0)
    for _ in range(draw(st.integers(0, 8))):
        builder.step(kinds)
    return builder.plan()
