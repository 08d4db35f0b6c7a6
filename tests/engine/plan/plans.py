"""Random small plans, and data to run them on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.ops.add import Add
from fedkit.engine.ops.copy import Copy
from fedkit.engine.ops.function import FAMILY
from fedkit.engine.ops.pool import Pool
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.function import FunctionOp
from fedkit.engine.plan.layer_norm import GroupNorm, LayerNorm
from fedkit.engine.plan.pair import PairOp
from fedkit.engine.plan.plan import verify
from fedkit.engine.plan.structure import Norm, Plan, PlanOp, Shape, StoredTensor
from fedkit.engine.plan.windows import window_plane
from fedkit.sparse.state import ModelState, apply_masks

Choose = Callable[[Sequence[Any]], Any]
"""Returns one of some options; the first is the simplest."""

KINDS = ("conv", "pool", "add", "concat", "fan")
LAYERS = ("conv", "layer", "pool", "add", "concat", "fan")
"""With layer norms; apart, so that what `KINDS` draws stays the same."""
FUNCTIONS = ("conv", "function", "function", "pair", "gate", "gate", "pool", "fan")
"""With functions of one value, products and gates."""
DENSITIES = (0.0, 0.1, 0.4, 0.7, 1.0)
BATCHES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 20, 33)


@dataclass(frozen=True)
class PlanCase:
    """A plan with all that one step of training needs.

    Attributes:
        plan: The plan.
        state: Its weights and masks.
        inputs: float32 [n, c, h, w].
        targets: int64 [n].
        dense_above: Density above which ungrouped layers run dense: never, or all of them, too.
        part_tiles: Most tiles of a part, so that small batches have several parts.
    """

    plan: Plan
    state: ModelState
    inputs: NDArray[np.float32]
    targets: NDArray[np.int64]
    dense_above: float
    part_tiles: int


def random_case(
    choose: Choose,
    kinds: Sequence[str] = KINDS,
    most: int = 3,
    densities: Sequence[float] = DENSITIES,
) -> PlanCase:
    return random_data(random_plan(choose, kinds, most), choose, densities)


def random_data(plan: Plan, choose: Choose, densities: Sequence[float]) -> PlanCase:
    """Draw weights, and masks, some with empty rows."""
    rng = np.random.default_rng(choose(range(1 << 16)))
    masks = {
        name: _mask(rng, plan.weights[name], choose(densities), choose((False, True)))
        for name in plan.prunable[:-1]
    }
    # All gradients come through the last layer.
    last = plan.prunable[-1]
    masks[last] = _mask(rng, plan.weights[last], choose((1.0, 0.8, 0.4)), False)
    masks = {name: masks[name] for name in plan.prunable}
    weights = {
        name: _weight(rng, shape, name in plan.prunable) for name, shape in plan.weights.items()
    }
    # Small logits: the softmax of large ones magnifies how they are rounded.
    for name in (last, list(plan.weights)[-1]):
        weights[name] *= np.float32(0.25)
    stats = {
        name: rng.uniform(0.5, 2, shape).astype(np.float32) for name, shape in plan.stats.items()
    }
    lonely = any(tensor.norm and tensor.shape[1:] == (1, 1) for tensor in plan.tensors)
    count: int = choose(BATCHES[1:] if lonely else BATCHES)  # one value has no variance
    return PlanCase(
        plan,
        ModelState(apply_masks(weights, masks), stats, masks),
        rng.standard_normal((count, *plan.tensors[0].shape)).astype(np.float32),
        rng.integers(0, plan.tensors[plan.output].shape[0], count),
        dense_above=choose((0.5, 2.0, -1.0)),
        part_tiles=choose((1, 2, 16)),
    )


def _mask(
    rng: np.random.Generator, shape: tuple[int, ...], density: float, empty_rows: bool
) -> NDArray[np.bool_]:
    mask = rng.random(shape) < density
    if empty_rows:
        mask[rng.random(shape[0]) < 0.5] = False
    return mask


def _weight(
    rng: np.random.Generator, shape: tuple[int, ...], multiplies: bool
) -> NDArray[np.float32]:
    # Scales and offsets are large at times: there are values beyond 6.
    scale = 1 / math.sqrt(math.prod(shape[1:])) if multiplies else rng.choice((0.7, 5.0))
    value = rng.uniform(0.5, 1.5, shape) * rng.choice((-1, 1), shape)
    return np.asarray(value * scale, np.float32)


def random_plan(choose: Choose, kinds: Sequence[str], most: int) -> Plan:
    """Draw some ops over an image; a linear layer sees every tensor that nothing else reads."""
    builder = _Builder(choose)
    for _ in range(choose(range(1, most + 1))):
        getattr(builder, choose(kinds))()
    builder.classify()
    plan = Plan(
        builder.weights,
        builder.stats,
        tuple(op.weight for op in builder.ops if isinstance(op, Conv)),
        tuple(builder.tensors),
        tuple(builder.ops),
        len(builder.tensors) - 1,
    )
    verify(plan)
    return plan


class _Builder:
    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        height, width = choose(range(1, 8)), choose((1, 2, 3, 5, 7, 9, 12))
        self.tensors = [StoredTensor((choose((1, 2, 3, 4, 6)), height, width))]
        self.ops: list[PlanOp] = []
        self.weights: dict[str, tuple[int, ...]] = {}
        self.stats: dict[str, tuple[int, ...]] = {}

    def _weigh(self, shape: tuple[int, ...]) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = shape
        return name

    def _add_tensor(self, shape: Shape, norms: Sequence[str] = ("", "batch", "l1-batch")) -> int:
        choose = self._choose
        norm, activation = None, choose(("none", "relu", "relu6"))
        if kind := choose(norms):
            name = f"norm{len(self.stats)}"
            weight = choose((True, False)) and self._weigh(shape[:1])
            bias = choose((True, True, False)) and self._weigh(shape[:1])
            norm = Norm(name, kind, choose((0.3, 0.1)), weight or None, bias or None)
            self.stats.update(dict.fromkeys(norm.stats, shape[:1]))
        self.tensors.append(StoredTensor(shape, norm, activation))
        return len(self.tensors) - 1

    def _source(self) -> int:
        # The newest first: a chain is simpler than a fan.
        return int(self._choose(range(len(self.tensors) - 1, -1, -1)))

    def conv(self, source: int | None = None) -> None:
        choose, source = self._choose, self._source() if source is None else source
        shape = self.tensors[source].shape
        groups = choose([1, *(g for g in range(2, shape[0] + 1) if shape[0] % g == 0)])
        outputs = groups * choose((1, 2, 5, 9) if groups == 1 else (1, 2, 5))
        axes = [self._window_axis(size) for size in shape[1:]]
        kernel, stride, padding, dilation = zip(*axes, strict=True)
        plane = window_plane(shape, kernel, stride, padding, dilation)
        weight = self._weigh((outputs, shape[0] // groups, *kernel))
        bias = self._weigh((outputs,)) if choose((False, True)) else None
        target = self._add_tensor((outputs, *plane))
        op = Conv(source, target, weight, bias, kernel, stride, padding, dilation, groups)
        self.ops.append(op)

    def _window_axis(self, size: int) -> tuple[int, int, int, int]:
        """Draw kernel, stride, padding and dilation that leave at least one output."""
        choose = self._choose
        padding = choose(range(3))
        kernel = choose(range(1, min(5, size + 2 * padding) + 1))
        widest = (size + 2 * padding - 1) // (kernel - 1) if kernel > 1 else 3
        return kernel, choose((1, 2, 3)), padding, choose(range(1, min(3, widest) + 1))

    def pool(self, source: int | None = None) -> None:
        choose, source = self._choose, self._source() if source is None else source
        shape = self.tensors[source].shape
        axes = []
        for size in shape[1:]:
            kernel = choose(range(1, min(3, size) + 1))
            axes.append((kernel, choose((1, 2, 3)), choose(range(kernel // 2 + 1))))
        kernel, stride, padding = zip(*axes, strict=True)
        plane = window_plane(shape, kernel, stride, padding)
        target = self._add_tensor((shape[0], *plane))
        self.ops.append(Pool(source, target, kernel, stride, padding, choose(("max", "mean"))))

    def add(self) -> None:
        left = self._source()
        right = self._choose(self._alike(left, lambda one, two: one == two))
        self.ops.append(Add(left, right, self._add_tensor(self.tensors[left].shape)))

    def function(self) -> None:
        source, examples = self._source(), [example.op for example in FAMILY.examples]
        target = self._add_tensor(self.tensors[source].shape)
        op = self._choose([op for op in examples if isinstance(op, FunctionOp)])
        self.ops.append(replace(op, source=source, target=target))

    def pair(self) -> None:
        """Multiply or subtract; both sides may be one tensor."""
        left = self._source()
        right = self._choose(self._alike(left, lambda one, two: one == two))
        target = self._add_tensor(self.tensors[left].shape)
        self.ops.append(PairOp(left, right, target, self._choose(("mul", "sub"))))

    def gate(self) -> None:
        """Combine a map with its own mean, at either place."""
        source, sides = self._source(), [0, 0]
        channels, *plane = self.tensors[source].shape
        mean = self._add_tensor((channels, 1, 1), norms=("",))
        kernel = plane[0], plane[1]
        self.ops.append(Pool(source, mean, kernel, kernel, (0, 0), "mean"))
        place = self._choose((0, 1))
        sides[place], sides[1 - place] = mean, source
        kind = self._choose(("mul", "sub", "add-gate"))
        target = self._add_tensor(self.tensors[source].shape)
        self.ops.append(PairOp(sides[0], sides[1], target, kind))

    def concat(self) -> None:
        left = self._source()
        right = self._choose(self._alike(left, lambda one, two: one[1:] == two[1:]))
        (first, *plane), second = self.tensors[left].shape, self.tensors[right].shape[0]
        target = self._add_tensor((first + second, plane[0], plane[1]))
        copies = [Copy(left, target), Copy(right, target, first)]
        self.ops.extend(self._choose((copies, copies[::-1])))

    def layer(self) -> None:
        """Normalise the examples of a tensor, most often one that has a gradient."""
        choose, source = self._choose, self._source()
        shape = self.tensors[source].shape
        weight = choose((True, False)) and self._weigh(shape)
        bias = choose((True, True, False)) and self._weigh(shape)
        kind, eps = choose(("l1-layer", "layer")), choose((0.3, 0.1))
        target = self._add_tensor(shape, ("", "", "batch", "l1-batch"))
        name = f"layer{target}"
        self.ops.append(LayerNorm(source, target, name, eps, weight or None, bias or None, kind))

    def group(self) -> None:
        """Normalise groups of the channels of a tensor, each channel by itself at times."""
        choose, source = self._choose, self._source()
        shape = self.tensors[source].shape
        weight, bias = (choose((True, True, False)) and self._weigh(shape[:1]) for _ in range(2))
        groups = choose([each for each in range(1, shape[0] + 1) if shape[0] % each == 0])
        target = self._add_tensor(shape, ("", "", "batch", "l1-batch"))
        how = choose((0.3, 0.1)), weight or None, bias or None, groups
        self.ops.append(GroupNorm(source, target, f"group{target}", *how))

    def chain(self) -> None:
        """Let a convolution read another one's output, so that it has a gradient to give."""
        self.conv()
        self.conv(len(self.tensors) - 1)

    def fan(self) -> None:
        """Let two ops read one tensor that has a gradient, so that the second adds to it."""
        if len(self.tensors) == 1:
            self.conv()
        source = self._choose(range(len(self.tensors) - 1, 0, -1))
        for _ in range(2):
            self._choose((self.conv, self.pool))(source)

    def _alike(self, tensor: int, alike: Callable[[Shape, Shape], bool]) -> list[int]:
        """Return the tensors that go with one, another one first."""
        shape = self.tensors[tensor].shape
        found = [i for i, other in enumerate(self.tensors) if alike(shape, other.shape)]
        return sorted(found, key=lambda i: i == tensor)

    def classify(self) -> None:
        """Flatten what nothing reads, put it side by side, and end in a linear layer."""
        read = {source for op in self.ops for source in op.sources}
        ends = [i for i in range(len(self.tensors)) if i not in read]
        sizes = [math.prod(self.tensors[end].shape) for end in ends]
        features = self._flatten(ends, sizes)
        classes = self._choose((2, 5))
        weight, bias = self._weigh((classes, sum(sizes))), self._weigh((classes,))
        target = self._add_tensor((classes, 1, 1), norms=("",))
        one, none = (1, 1), (0, 0)
        self.ops.append(Conv(features, target, weight, bias, one, one, none, one, groups=1))

    def _flatten(self, ends: Sequence[int], sizes: Sequence[int]) -> int:
        norms = ("", "", "", "batch", "l1-batch")
        flat = []
        for end, size in zip(ends, sizes, strict=True):
            flat.append(self._add_tensor((size, 1, 1), norms))
            self.ops.append(Copy(end, flat[-1]))
        if len(flat) == 1:
            return flat[0]
        features, begin = self._add_tensor((sum(sizes), 1, 1), norms), 0
        for tensor, size in zip(flat, sizes, strict=True):
            self.ops.append(Copy(tensor, features, begin))
            begin += size
        return features
