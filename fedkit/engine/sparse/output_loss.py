"""The loss of a batch: of its output tensor, or of outputs that were computed a few at a time."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref, c_double, c_int, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.kernels import native, structs
from fedkit.engine.kernels.structs import pointer
from fedkit.engine.plan.checks import check_targets
from fedkit.engine.plan.structure import Plan, StoredTensor
from fedkit.engine.sparse.float_op import Floats
from fedkit.tasks.losses import PLAIN

OverTiles = Callable[..., None]
"""Runs a kernel, given with its arguments, over all tiles of a batch."""


def has_kernel(plan: Plan) -> bool:
    """Whether C computes the loss; the others are few numbers, and numpy's."""
    return plan.loss == PLAIN


def kernel_loss(
    plan: Plan,
    kernels: native.Kernels,
    output: native.CTensor,
    targets: NDArray[Any],
    tiles: int,
    run: OverTiles,
) -> float:
    """Return the loss of a batch, and make the gradient of its output if that has memory.

    Args:
        plan: Of a loss that has a kernel.
        kernels: Compute it.
        output: The plan's output.
        targets: [n, ...].
        tiles: In which the n examples lie.
        run: Runs a kernel over them.
    """
    targets = np.ascontiguousarray(targets, np.int64)
    if plan.output_dims == 1:
        return float(kernels.cross_entropy(byref(output), c_void_p(pointer(targets))))
    sums = np.zeros(tiles)
    arguments = byref(output), c_void_p(pointer(targets)), c_void_p(pointer(sums))
    run(kernels.place_losses, *arguments, c_double(1 / targets.size))
    return float(sums.sum() / targets.size)


def loss_of_outputs(
    plan: Plan, kernels: native.Kernels, outputs: Floats, targets: NDArray[Any]
) -> float:
    """Return the loss of outputs, to the bits of a batch that was computed together.

    Args:
        plan: Has the loss.
        kernels: Compute it.
        outputs: What the model returned, float32 [n, ...].
        targets: [n, ...].

    Raises:
        EngineError: The targets are not such as the loss takes, or not as many as the outputs.
    """
    check_targets(plan, targets, len(outputs))
    if not has_kernel(plan):
        return plan.loss.gradient(outputs.astype(np.float64), targets)[0]
    shape = plan.tensors[plan.output].shape
    values = in_lanes(outputs.reshape(-1, *shape), kernels.lanes)
    tensor = structs.tensor(
        StoredTensor(shape), None, np.zeros((1, shape[0], 2)), pointer(values), None
    )
    tensor.examples = len(outputs)

    def run(kernel: native.Kernel, *arguments: Any) -> None:
        kernel(*arguments, c_int(0), c_int(len(values)))

    return kernel_loss(plan, kernels, tensor, targets, len(values), run)


def in_lanes(rows: NDArray[Any], lanes: int) -> Floats:
    """Return rows [n, ...] as tiles, float32 [tiles, ..., lanes]; lanes without a row are 0."""
    tiles = -(-len(rows) // lanes)
    whole = np.zeros((tiles * lanes, *rows.shape[1:]), np.float32)
    with np.errstate(over="ignore"):
        whole[: len(rows)] = rows
    tiled = whole.reshape(tiles, lanes, *rows.shape[1:])
    return np.ascontiguousarray(np.moveaxis(tiled, 1, -1))
