"""Random int8 graphs of several ops: branches, sums, concats of what had other scales, pools."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from fedkit.graph import ir
from tests.edge.single_ops import Case, Random, a_ratio, a_scale_for_six, constants, graph_of

_Op = tuple[ir.Kind, ir.Activation]


@dataclass
class _Builder:
    """Maps of one height and width, which any op may read."""

    random: Random
    tensors: list[ir.Tensor] = field(default_factory=list)
    ops: list[ir.Op] = field(default_factory=list)

    def new(self, shape: ir.Shape, quantization: ir.Quantization | None = None) -> ir.Tensor:
        point = int(self.random.choice([-128, 0, 127, self.random.integers(-128, 128)]))
        made = ir.Quantization((a_scale_for_six(self.random),), (point,))
        name = f"t{len(self.tensors)}" if self.tensors else "x"
        self.tensors.append(ir.Tensor(name, shape, "int8", None, quantization or made))
        return self.tensors[-1]

    def op(
        self,
        kind: ir.Kind,
        inputs: tuple[ir.Tensor, ...],
        out: ir.Tensor,
        window: ir.Window | None = None,
        activation: ir.Activation = "none",
        extra: tuple[str, ...] = (),
    ) -> ir.Tensor:
        names = (*(each.name for each in inputs), *extra)
        self.ops.append(ir.Op(kind, names, (out.name,), window, activation))
        return out

    def choice(self, *choices: ir.Activation) -> ir.Activation:
        return choices[int(self.random.integers(len(choices)))]

    def convolution(self, x: ir.Tensor, out: ir.Tensor) -> ir.Tensor:
        """Add a convolution whose sums reach some hundred steps of the output."""
        kernel, count = int(self.random.choice([1, 3])), out.shape[3]
        shape = (count, kernel, kernel, x.shape[3])
        weight = self.random.integers(-127, 128, shape)
        reach = 255 * np.sqrt(weight[0].size) * 40
        factor = 600 / reach * np.exp2(self.random.uniform(-2, 1, count))
        if self.random.random() < 0.5:
            factor = np.exp2(np.round(np.log2(factor)))
        scales = factor * out.scale / x.scale
        bias = self.random.integers(-int(reach / 4), int(reach / 4), count)
        made = constants(out.name, "conv2d", weight, bias, scales, x)
        self.tensors += made
        side = kernel // 2
        window = ir.Window((kernel, kernel), padding=(side, side, side, side))
        names = tuple(each.name for each in made)
        act = self.choice("none", "relu", "relu6")
        return self.op("conv2d", (x,), out, window, act, names)

    def fresh(self, x: ir.Tensor, out: ir.Tensor) -> ir.Tensor:
        """Compute any tensor from a map, in the scale that it has."""
        ratio = x.scale / out.scale
        if x.shape == out.shape and 2**-10 < ratio < 2**5:
            how = int(self.random.integers(3))
            if how == 0:
                return self.op("relu", (x,), out)
            if how == 1:
                return self.op("relu6", (x,), out)
        return self.convolution(x, out)

    def add(self, x: ir.Tensor, y: ir.Tensor) -> ir.Tensor:
        scale = float(np.float32(max(x.scale, y.scale) * self.random.choice([0.5, 1, 1.7])))
        out = self.new(x.shape)
        self.tensors[-1] = out = replace(
            out, quantization=ir.Quantization((scale,), (out.zero_point,))
        )
        return self.op("add", (x, y), out, None, self.choice("none", "relu", "relu6"))

    def concat(self, parts: list[ir.Tensor]) -> ir.Tensor:
        """Join branches that end in one quantisation, each from a map of its own scale."""
        first = self.new(parts[0].shape)
        common = [self.fresh(parts[0], first)]
        for part in parts[1:]:
            common.append(self.fresh(part, self.new(part.shape, first.quantization)))
        width = sum(part.shape[3] for part in common)
        out = self.new((*first.shape[:3], width), first.quantization)
        return self.op("concat", tuple(common), out)

    def pool(self, x: ir.Tensor, kind: ir.Kind) -> ir.Tensor:
        return self.op(
            kind,
            (x,),
            self.new(x.shape, x.quantization),
            ir.Window((3, 3), padding=(1, 1, 1, 1)),
        )

    def end(self, x: ir.Tensor) -> None:
        """Pool over all, one way or the other, or flatten."""
        how = int(self.random.integers(3))
        if how == 0:
            scale = float(np.float32(x.scale / a_ratio(self.random)))
            quantization = ir.Quantization((scale,), (int(self.random.integers(-128, 128)),))
            x = self.op("mean", (x,), self.new((1, x.shape[3]), quantization))
        elif how == 1:
            whole = ir.Window((x.shape[1], x.shape[2]))
            x = self.op("avg_pool2d", (x,), self.new((1, 1, 1, x.shape[3]), x.quantization), whole)
        else:
            size = x.shape[1] * x.shape[2] * x.shape[3]
            x = self.op("flatten_nchw", (x,), self.new((1, size), x.quantization))
        self._name_output(x)

    def _name_output(self, x: ir.Tensor) -> None:
        self.tensors = [replace(t, name="y") if t is x else t for t in self.tensors]
        self.ops[-1] = replace(self.ops[-1], outputs=("y",))


def a_graph(random: Random, steps: int = 6) -> Case:
    """Return a graph of some ten ops, and inputs [4, h, w, c]."""
    build = _Builder(random)
    high, wide = (int(size) for size in random.integers(2, 7, 2))
    maps = [build.new((1, high, wide, int(random.integers(1, 9))))]
    for _ in range(steps):
        x, y = (maps[int(random.integers(len(maps)))] for _ in range(2))
        how = int(random.integers(5))
        if how == 0 and len(maps) > 1:
            maps.append(build.concat([x, y]))
        elif how == 1:
            same = build.fresh(y, build.new(x.shape)) if x.shape != y.shape else y
            maps.append(build.add(x, same))
        elif how == 2:
            maps.append(build.pool(x, "avg_pool2d"))
        elif how == 3:
            maps.append(build.pool(x, "max_pool2d"))
        else:
            maps.append(build.fresh(x, build.new((1, high, wide, int(random.integers(1, 9))))))
    build.end(maps[-1])
    graph = pruned(build)
    return graph, random.integers(-128, 128, (4, high, wide, maps[0].shape[3])).astype(np.int8)


def pruned(build: _Builder) -> ir.Graph:
    """Return the graph without what its output does not need."""
    tensors = {tensor.name: tensor for tensor in build.tensors}
    whole = ir.Graph(tensors, tuple(build.ops), ("x",), ("y",))
    return graph_of([*(used := ir.until(whole, "y")).tensors.values()], *used.ops)
