"""Group norms in a whole model, and instance norms, which are no example of their family.

The generated tests ask for integer gradients within 0.97 of the direction of float ones, and over
few values an instance norm in integers is not: see docs/decisions/integer-engine/layer-norms.md.
"""

from __future__ import annotations

import pytest
import torch

from fedkit.engine.kernels import native
from fedkit.engine.ops.family import Example
from fedkit.engine.plan.layer_norm import GroupNorm
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.tasks.task import Examples
from tests.engine.ops.examples import AROUND, Around, case_of
from tests.engine.sparse.cases import engines, examples, pruned, zoo
from tests.engine.sparse.gradients import by_program, by_torch, worst
from tests.sets import slow_but


@pytest.mark.parametrize("around", AROUND[:2], ids=["plain", "batch"])
@pytest.mark.parametrize("density", slow_but([0.4], [0.4, 1.0]))
def test_instance_norms_have_torchs_gradients(density: float, around: Around) -> None:
    op = GroupNorm(1, 2, "norm", 0.01, None, None, 6)
    case = case_of(Example(op, ((6, 4, 5),) * 3), around, density)
    data = Examples(case.inputs, case.targets)
    for simd in native.available():
        program = SparseEngine(case.plan, simd=simd).program(case.state, "train", len(data.inputs))
        _, found, taken = by_program(program, data)
        _, expected = by_torch(case.plan, case.state, data, taken, torch.float64)
        assert worst(found, expected)[0] < (5e-5 if around.norm else 1e-5), simd


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [("resnet18-gn-w16", (3, 16, 16), 9), ("resnet18-gn", (3, 8, 8), 5)],
)
def test_a_resnet_of_group_norms_has_torchs_gradients(
    name: str, shape: tuple[int, int, int], count: int
) -> None:
    reference, engine = engines(zoo(name, shape), shape)
    data, state = examples(count, shape), pruned(reference.initial_state(), 0.1)
    for simd in native.available():
        program = SparseEngine(engine.plan, simd=simd).program(state, "train", count)
        _, found, taken = by_program(program, data)
        _, expected = by_torch(engine.plan, state, data, taken, torch.float64)
        assert worst(found, expected)[0] < 1e-5, simd
