"""Functions of one value: near the exact ones, and the same bits by every instruction set."""

from __future__ import annotations

from ctypes import byref

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedkit.engine.kernels import native
from fedkit.engine.ops.function import FAMILY, function_struct
from fedkit.engine.plan.function import FunctionOp
from tests.naive.functions import FUNCTIONS

Floats = NDArray[np.float32]

OPS = [example.op for example in FAMILY.examples if isinstance(example.op, FunctionOp)]
ENDS = [0.0, -0.0, 3.0, -3.0, 1e-30, -1e-30, 88.0, -100.0, 1e20, -1e20, np.inf, -np.inf]
PIXELS = np.concatenate([np.linspace(-20, 20, 4000 - len(ENDS) - 1), ENDS, [np.nan]])
VALUES = PIXELS.astype(np.float32)


def run(op: FunctionOp, simd: str) -> tuple[Floats, Floats]:
    """Return values and slopes at `VALUES`, each pixel of which has lanes of its own."""
    kernels = native.load_kernels(simd)
    x, ones = (np.repeat(v, kernels.lanes) for v in (VALUES, np.ones_like(VALUES)))
    y, slopes = np.zeros_like(x), np.zeros_like(x)
    tensors = [
        native.CTensor(x.ctypes.data, slopes.ctypes.data, examples=kernels.lanes),
        native.CTensor(y.ctypes.data, ones.ctypes.data, examples=kernels.lanes),
    ]
    for tensor in tensors:
        tensor.channels, tensor.plane = 1, len(VALUES)
    op = FunctionOp(0, 1, op.settings, op.kind)
    struct = function_struct(op, tensors)
    kernels.function_forward(byref(struct), 0, 1)
    kernels.function_backward(byref(struct), 0, 1)
    found = [array.reshape(-1, kernels.lanes) for array in (y, slopes)]
    for array in found:
        np.testing.assert_array_equal(array, np.broadcast_to(array[:, :1], array.shape))
    return found[0][:, 0], found[1][:, 0]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.kind)
def test_values_and_slopes_are_torchs(op: FunctionOp) -> None:
    x = torch.from_numpy(VALUES).double().requires_grad_()
    value = FUNCTIONS[op.kind](x, *op.settings)
    (slope,) = torch.autograd.grad(value.sum(), x)
    wanted = value.detach().numpy()
    near = np.abs(VALUES) <= 100  # beyond, float64 is larger than float32 can be, or NaN
    for simd in native.available():
        y, dy = run(op, simd)
        np.testing.assert_allclose(y[near], wanted[near], rtol=4e-7, atol=3e-7)
        np.testing.assert_allclose(dy[near], slope.numpy()[near], rtol=3e-6, atol=2e-6)
        assert np.isnan(y[-1]) and np.isnan(y).sum() <= 2  # torch's SiLU is NaN at -infinity


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.kind)
def test_every_instruction_set_gives_the_same_bits(op: FunctionOp) -> None:
    first, *others = (run(op, simd) for simd in native.available())
    numbers = ~np.isnan(first[1])
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert one[numbers].tobytes() == two[numbers].tobytes()
            assert np.array_equal(one, two, equal_nan=True)
