"""Small models around the examples that families of ops give."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fedkit.engine.ops.add import Add
from fedkit.engine.ops.family import Example
from fedkit.engine.ops.registry import FAMILIES
from fedkit.engine.plan.conv import Conv, Convolution
from fedkit.engine.plan.plan import verify
from fedkit.engine.plan.structure import Activation, Norm, Plan, PlanOp, StoredTensor
from fedkit.sparse.state import ModelState, apply_masks
from tests.engine.plan.plans import PlanCase
from tests.naive import plan as naive

ONE = (1, 1)
CLASSES = 3


def find_meanings() -> None:
    """Take over what the modules beside this one say that ops mean, their `MEANING`."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.name.startswith("test_") and module.name != "examples":
            found = importlib.import_module(f"tests.engine.ops.{module.name}")
            naive.MEANING.update(found.MEANING)


find_meanings()


@dataclass(frozen=True)
class Around:
    """What lies around an op: how its sources and its target are read."""

    norm: Literal["", "batch", "l1-batch"] = ""
    activation: Activation = "none"

    def tensor(self, index: int, shape: tuple[int, int, int]) -> StoredTensor:
        norm = Norm(f"norm{index}", self.norm, 0.1, None, None) if self.norm else None
        return StoredTensor(shape, norm, self.activation)


AROUND = (Around(), Around("batch", "relu"), Around("l1-batch", "relu6"))


def named() -> Iterator[tuple[str, Example]]:
    """Yield the examples of all families with a name for each."""
    families = list(dict.fromkeys(id(f) for f in FAMILIES.values()))
    for family in FAMILIES.values():
        if id(family) in families:
            families.remove(id(family))
            for number, example in enumerate(family.examples):
                yield f"{example.op.kind}-{number}", example


EXAMPLES = dict(named())


def plan_of(example: Example, around: Around = AROUND[0]) -> Plan:
    """Return a plan: a convolution writes each source of the op, a linear layer reads its target.

    Each has an offset, so that norms and activations meet values of both signs. An op without
    sources is added to what a convolution gives.
    """
    _, height, width = example.shapes[0]
    *sources, target = range(1, len(example.shapes))
    ops: list[PlanOp] = []
    weights: dict[str, tuple[int, ...]] = {}
    for index in sources:
        channels, *plane = example.shapes[index]
        kernel = (height - plane[0] + 1, width - plane[1] + 1)
        name, bias = f"source{index}", f"bias{index}"
        weights[name] = (channels, example.shapes[0][0], *kernel)
        weights[bias] = (channels,)
        ops.append(Conv(0, index, name, bias, kernel, ONE, (0, 0), ONE, 1))
    weights |= example.weights
    ops.append(example.op)
    shape = example.shapes[target]
    tensors = [
        StoredTensor(example.shapes[0]),
        *(around.tensor(index, example.shapes[index]) for index in (*sources, target)),
    ]
    end = target
    if not sources and not example.op.takes_tokens:
        kernel = (height - shape[1] + 1, width - shape[2] + 1)
        weights["beside"] = (shape[0], example.shapes[0][0], *kernel)
        end = target + 2
        ops.append(Conv(0, target + 1, "beside", None, kernel, ONE, (0, 0), ONE, 1))
        ops.append(Add(target, target + 1, end))
        tensors += [StoredTensor(shape)] * 2
    weights["last"] = (CLASSES, shape[0], *shape[1:])
    ops.append(Conv(end, end + 1, "last", None, (shape[1], shape[2]), ONE, (0, 0), ONE, 1))
    tensors.append(StoredTensor((CLASSES, 1, 1)))
    stats: dict[str, tuple[int, ...]] = {
        name: tensor.shape[:1]
        for tensor in tensors
        if tensor.norm is not None
        for name in tensor.norm.stats
    }
    prunable = tuple(op.weight for op in ops if isinstance(op, Convolution))
    prunable = tuple(name for name in weights if name in prunable)
    plan = Plan(weights, stats, prunable, tuple(tensors), tuple(ops), end + 1)
    verify(plan)
    return plan


def case_of(example: Example, around: Around = AROUND[0], density: float = 1.0) -> PlanCase:
    """Return the plan with numbers: 19 examples, no multiple of any number of lanes."""
    return numbered(plan_of(example, around), density, len(example.shapes))


def numbered(plan: Plan, density: float = 1.0, seed: int = 0) -> PlanCase:
    """Return a plan with random numbers."""
    rng = np.random.default_rng(seed)
    weights = {
        name: (rng.normal(0, 1, shape) / math.sqrt(max(1, math.prod(shape[1:])))).astype(np.float32)
        for name, shape in plan.weights.items()
    }
    stats = {name: np.ones(shape, np.float32) for name, shape in plan.stats.items()}
    masks = {name: rng.random(plan.weights[name]) < density for name in plan.prunable}
    inputs = rng.standard_normal((19, *plan.tensors[0].shape)).astype(np.float32)
    if plan.tokens:
        inputs = rng.integers(0, plan.tokens, (19, plan.tensors[0].shape[0]))
    return PlanCase(
        plan,
        ModelState(apply_masks(weights, masks), stats, masks),
        inputs,
        rng.integers(0, plan.tensors[plan.output].shape[0], 19),
        dense_above=0.5,
        part_tiles=16,
    )


def with_op(plan: Plan, op: PlanOp, number: int) -> Plan:
    """Return a plan with another op in place of one."""
    return replace(plan, ops=(*plan.ops[:number], op, *plan.ops[number + 1 :]))
