"""The tables of functions of one value against torch, and what a gate's gradient keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.ops.function import FAMILY
from fedkit.engine.ops.function_integer import tables
from fedkit.engine.plan.function import FunctionOp
from fedkit.engine.sparse.engine import SparseEngine
from tests.engine.sparse.cases import engines, examples, mobile, pruned
from tests.naive.functions import FUNCTIONS

OPS = [example.op for example in FAMILY.examples if isinstance(example.op, FunctionOp)]
STEPS = [0.001, 0.0625, 0.5]
"""With the second, 3 and -3 and other kinks are codes."""


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.kind)
def test_tables_hold_torchs_values_and_slopes(op: FunctionOp) -> None:
    for unit in STEPS:
        x = (unit * torch.arange(-128, 128, dtype=torch.float64)).requires_grad_()
        value = FUNCTIONS[op.kind](x, *op.settings)
        (slope,) = torch.autograd.grad(value.sum(), x)
        for (table, worth), wanted in zip(tables(op, unit), (value.detach(), slope), strict=True):
            expected = wanted.numpy()[1:]
            assert table.shape == (256,) and abs(table[1:].astype(int)).max() == 32767
            error = np.abs(table[1:] * worth - expected).max()
            assert error <= 0.5001 * np.abs(expected).max() / 32767


def test_a_model_of_gates_learns_in_integers_as_in_float() -> None:
    shape = (3, 9, 7)
    reference, engine = engines(mobile(shape), shape)
    state, data = pruned(reference.initial_state(), 0.6), examples(64, shape)
    exact = SparseEngine(engine.plan).gradients(state, data)
    found = IntegerEngine(engine.plan, bits=8).gradients(state, data)
    one, other = (
        np.concatenate([each[name].ravel() for name in exact]).astype(np.float64)
        for each in (exact, found)
    )
    assert one @ other / np.sqrt((one @ one) * (other @ other)) > 0.95
    assert one @ other / (one @ one) == pytest.approx(1, abs=0.15)
    gate = "3.gate.2.weight"
    along = (exact[gate] * found[gate]).sum() / np.linalg.norm(exact[gate])
    assert along / np.linalg.norm(found[gate]) > 0.9
