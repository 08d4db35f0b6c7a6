"""Products of quantised numbers with integer weights, in one int32 accumulator.

    Y_nk = scale * sum_c (q_nc << (groups - 1 - e_c)) * w_ck

Three realisations give the same bits: shift the stored operand before the product (one plain int8
product, where the format fits int8), shift each product (a shifter behind every multiplier, as in
an FPGA), or shift the weights' rows. The order of the channels is never touched.

The sum needs one scale of the weights for all c. Weights that were quantised with a scale per c,
as per output channel for the forward pass, are used by multiplying those scales into the channels
of the gradient before it is quantised.

ShiftQuant as we reconstruct it; only the abstract of Guo et al., arXiv 2411.10948, was available.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import QuantizationError
from fedkit.integers.format import INT8_MOST, Quantized, groups_that_fit, largest_level

Realisation = Literal["operand", "product", "weight"]
Backend = Literal["numpy", "torch"]

Int32s = NDArray[np.int32]


def matmul(
    quantized: Quantized,
    weights: NDArray[np.int8],
    realisation: Realisation = "operand",
    backend: Backend = "numpy",
) -> Int32s:
    """Return sum_c (q_nc << (groups - 1 - e_c)) * w_ck; times `output_scale` it is the product.

    Args:
        quantized: [n, c], channels on axis 1.
        weights: int8 [c, k], under one scale for all c.
        realisation: Where the shift is done; the result does not depend on it.
        backend: "numpy" defines the result. "torch" computes "operand" by `torch._int_mm`, which
            is fast on processors with int8 dot products (VNNI) and slow, but right, on others.

    Returns:
        int32 [n, k].

    Raises:
        QuantizationError: Shapes or types do not fit, the operand does not fit int8, a sum could
            leave int32, or there is no such realisation on the backend.
    """
    _check_operands(quantized, weights)
    _check_sums(quantized, weights)
    if realisation == "operand":
        _check_int8(quantized)
    found = _REALISATIONS.get((realisation, backend))
    if found is None:
        raise QuantizationError(
            f"no realisation {realisation!r} on backend {backend!r}; there are "
            + ", ".join(f"{name} on {where}" for name, where in _REALISATIONS)
        )
    return found(quantized, weights)


def output_scale(
    quantized: Quantized, weight_scale: float | NDArray[np.float64]
) -> float | NDArray[np.float64]:
    """Return what to multiply the result of `matmul` by.

    Args:
        quantized: The left operand.
        weight_scale: Scale of the weights, one or [k].
    """
    return weight_scale * quantized.step


def _shift_operand(quantized: Quantized, weights: NDArray[np.int8]) -> Int32s:
    return quantized.aligned() @ weights.astype(np.int32)


def _shift_operand_in_torch(quantized: Quantized, weights: NDArray[np.int8]) -> Int32s:
    import torch

    operand = torch.from_numpy(quantized.aligned().astype(np.int8))
    product = torch._int_mm(operand, torch.from_numpy(np.ascontiguousarray(weights)))
    return np.asarray(product.numpy())


def _shift_product(quantized: Quantized, weights: NDArray[np.int8]) -> Int32s:
    total = np.zeros((len(quantized.values), weights.shape[1]), np.int32)
    for c, shift in enumerate(quantized.shifts):
        products = np.multiply.outer(quantized.values[:, c], weights[c], dtype=np.int32)
        total += products << shift
    return total


def _shift_weight(quantized: Quantized, weights: NDArray[np.int8]) -> Int32s:
    return quantized.values.astype(np.int32) @ (
        weights.astype(np.int32) << quantized.shifts[:, None]
    )


_REALISATIONS = {
    ("operand", "numpy"): _shift_operand,
    ("operand", "torch"): _shift_operand_in_torch,
    ("product", "numpy"): _shift_product,
    ("weight", "numpy"): _shift_weight,
}


def _check_operands(quantized: Quantized, weights: NDArray[np.int8]) -> None:
    shape = quantized.values.shape
    if len(shape) != 2 or quantized.axis != 1:
        raise QuantizationError(
            f"the operand has shape {shape} and channels on axis {quantized.axis}; need [n, c] "
            "with channels on axis 1: reshape before quantising"
        )
    if weights.dtype != np.int8 or weights.ndim != 2 or len(weights) != shape[1]:
        raise QuantizationError(
            f"weights are {weights.dtype} {weights.shape}; need int8 [{shape[1]}, k], a row per "
            "channel: transpose or quantise them"
        )


def _check_int8(quantized: Quantized) -> None:
    if not quantized.fits_int8:
        bits, groups = quantized.bits, quantized.groups
        raise QuantizationError(
            f"{bits} bits in {groups} groups reach {largest_level(bits) << groups - 1} when the "
            f"operand is shifted; int8 ends at {INT8_MOST}: use at most {groups_that_fit(bits)} "
            "groups, or shift the product or the weight"
        )


def _check_sums(quantized: Quantized, weights: NDArray[np.int8]) -> None:
    terms = len(weights)
    left = int(np.abs(quantized.aligned()).max(initial=0))
    right = int(np.abs(weights.astype(np.int16)).max(initial=0))
    if terms * left * right >= 2**31:
        raise QuantizationError(
            f"a sum of {terms} products up to {left} * {right} can leave int32; their product must "
            "be below 2^31: split the channels, or use fewer groups"
        )
