"""Random float graphs of what rewrites look at: affine ops, norms, residual sums, moves, layers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edge.passes.unread import with_ops
from fedkit.graph import ir
from fedkit.graph.ops.norms import Groups, OfPlace
from fedkit.graph.ops.registry import infer_shape
from fedkit.graph.ops.transpose import Order
from fedkit.graph.places import Places

Random = np.random.Generator
_CONTINUES = ("affine", "affine", "constant", "norm", "group_norm", "move", "relu", "take")


@dataclass
class _Builder:
    random: Random
    tensors: dict[str, ir.Tensor] = field(default_factory=dict)
    ops: list[ir.Op] = field(default_factory=list)

    def constant(self, *shape: int, scale: float = 1.0) -> str:
        name = f"c{len(self.tensors)}"
        data = (scale * self.random.standard_normal(shape)).astype(np.float32)
        self.tensors[name] = ir.Tensor(name, data.shape, "float32", data)
        return name

    def op(
        self,
        kind: ir.Kind,
        inputs: tuple[str, ...],
        window: ir.Window | None = None,
        attributes: ir.Attributes | None = None,
        shape: ir.Shape | None = None,
    ) -> str:
        name = f"t{len(self.tensors)}"
        op = ir.Op(kind, inputs, (name,), window, source=f"m.{name}", attributes=attributes)
        given = shape or (1,)
        graph = ir.Graph({**self.tensors, name: ir.Tensor(name, given)}, (), (), ())
        self.tensors[name] = ir.Tensor(name, shape or infer_shape(graph, op))
        self.ops.append(op)
        return name

    def shape(self, name: str) -> ir.Shape:
        return self.tensors[name].shape

    def layer(self, x: str, out: int, kernel: int = 1, pads: bool = True) -> str:
        channels = self.shape(x)[3]
        side = kernel // 2 if pads else 0
        window = ir.Window((kernel, kernel), padding=(side,) * 4)
        size = 1 / np.sqrt(channels * kernel**2)
        names = self.constant(out, kernel, kernel, channels, scale=size), self.constant(out)
        return self.op("conv2d", (x, *names), window)

    def depthwise(self, x: str) -> str:
        channels = self.shape(x)[3]
        names = self.constant(1, 3, 3, channels, scale=0.4), self.constant(channels)
        return self.op("depthwise_conv2d", (x, *names), ir.Window((3, 3), padding=(1,) * 4))

    def go_on(self, x: str) -> str:
        """Add something behind a value that keeps its shape, or turns it."""
        *_, rows, columns, channels = self.shape(x)
        how = str(self.random.choice(_CONTINUES))
        if how == "affine":
            return self.op("affine", (x, self.constant(channels), self.constant(channels)))
        if how == "constant":
            part = self.constant(
                1, *(1 if self.random.random() < 0.7 else s for s in (rows, columns)), channels
            )
            return self.op(str(self.random.choice(["add", "sub", "mul"])), (x, part))
        if how == "norm":
            names = self.constant(channels), self.constant(channels)
            return self.op(
                "channel_norm",
                (x, *names),
                attributes=OfPlace(1e-3, bool(self.random.random() < 0.7)),
            )
        if how == "group_norm":
            names = self.constant(channels), self.constant(channels)
            return self.op("group_norm", (x, *names), attributes=Groups(1e-3, 1))
        if how == "move":
            shape = (1, columns, rows, channels)
            return self.op("transpose", (x,), attributes=Order((2, 1, 3)), shape=shape)
        if how == "take":
            places = tuple(int(each) for each in self.random.permutation(rows))
            return self.op("take", (x,), attributes=Places(rows=places))
        return self.op("relu", (x,))

    def branch(self, x: str) -> str:
        """Add a residual branch, which may scale what it ends in."""
        channels = self.shape(x)[3]
        inner = x
        for _ in range(int(self.random.integers(3))):
            inner = self.go_on(inner)
        wide = self.layer(inner, int(self.random.integers(1, 9)))
        last = self.layer(wide, channels)
        if self.random.random() < 0.3:
            rows = tuple(int(each) for each in self.random.permutation(self.shape(last)[1]))
            last = self.op("take", (last,), attributes=Places(rows=rows))
        if self.random.random() < 0.5:
            last = self.op("affine", (last, self.constant(channels), self.constant(channels)))
        if self.shape(last) != self.shape(x):
            return last
        return self.op(str(self.random.choice(["add", "add", "sub"])), (x, last))


def a_float_graph(random: Random, steps: int = 6) -> ir.Graph:
    """Return a verified float graph of some fifteen ops, with one output or two."""
    build = _Builder(random)
    high, wide, channels = (int(size) for size in random.integers(1, 6, 3))
    build.tensors["x"] = ir.Tensor("x", (1, high, wide, channels))
    values = [build.layer("x", int(random.choice([1, 2, 5, 8])))]
    for _ in range(steps):
        x = values[-1] if random.random() < 0.7 else values[int(random.integers(len(values)))]
        how = random.random()
        if how < 0.35:
            values.append(build.go_on(x))
        elif how < 0.6:
            values.append(build.branch(x))
        elif how < 0.7:
            scaled = build.op("affine", (x, *(build.constant(build.shape(x)[3]) for _ in "ab")))
            values.append(build.op("add", (x, scaled)))
        elif how < 0.8:
            values.append(build.depthwise(x))
        else:
            kernel = int(random.choice([1, 1, 3]))
            values.append(build.layer(x, int(random.integers(1, 9)), kernel))
    outputs = [values[-1]]
    if random.random() < 0.3:
        outputs.append(values[int(random.integers(len(values) - 1))])
    names = tuple(dict.fromkeys(outputs))
    return with_ops(ir.Graph(build.tensors, (), ("x",), names), build.ops)
