"""What a batch must be like before anything is computed with it; both engines ask the same."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fedkit.core.errors import EngineError
from fedkit.engine.plan.structure import Plan, stored_shape
from fedkit.tasks.lazy_array import is_lazy


def check_inputs(plan: Plan, inputs: NDArray[Any], dtype: DTypeLike = np.float32) -> None:
    """Raise an `EngineError` unless inputs are a contiguous array as the plan takes them."""
    shape = plan.tensors[0].shape
    given, fits = stored_shape(inputs.shape[1:]), inputs.dtype == dtype
    if given != shape or not fits or not (is_lazy(inputs) or inputs.flags.c_contiguous):
        raise EngineError(
            f"inputs are {inputs.dtype} {inputs.shape}; the plan takes contiguous "
            f"{np.dtype(dtype)} [n, {', '.join(map(str, shape))}]"
        )


def check_tokens(rows: int, inputs: NDArray[Any]) -> None:
    """Raise an `EngineError` where whole numbers choose a row beyond those of a table."""
    if inputs.size and not 0 <= inputs.min() <= inputs.max() < rows:
        raise EngineError(
            f"inputs hold tokens of {inputs.min()} to {inputs.max()}; the model's embedding has "
            f"rows 0 to {rows - 1}"
        )


def check_order(order: NDArray[np.int64], examples: int, batch: int) -> None:
    """Raise an `EngineError` unless `order` picks 1 to `batch` of so many examples."""
    if not 0 < len(order) <= batch:
        raise EngineError(
            f"a batch of {len(order)} examples does not fit: memory is planned for 1 to {batch}; "
            "make the program for a larger batch"
        )
    if order.min() < 0 or order.max() >= examples:
        raise EngineError(
            f"a batch picks examples {order.min()} to {order.max()} of {examples}; positions "
            "count from 0"
        )


def check_statistics(plan: Plan, examples: int) -> None:
    """Raise an `EngineError` if a norm sees only one value per channel in so many examples."""
    for tensor in plan.tensors:
        if tensor.norm is not None and examples * math.prod(tensor.shape[1:]) == 1:
            raise one_value_error(tensor.norm.name)


def one_value_error(norm: str) -> EngineError:
    """Return what is wrong where a norm sees one value per channel."""
    return EngineError(
        f"norm {norm!r} sees one value per channel, which has no variance; give batches of at "
        "least 2 examples; a batch size of 2 leaves one over where their number is odd, and one of "
        "1 is too small (--batch-size)"
    )


def check_targets(plan: Plan, targets: NDArray[Any], examples: int) -> None:
    """Raise an `EngineError` unless targets are such as the loss takes, one for each example."""
    if targets.shape[:1] != (examples,) or examples == 0:
        raise EngineError(
            f"targets are {targets.dtype} {targets.shape}; the batch that ran forward has "
            f"{examples} examples, and needs a target for each"
        )
    if problem := plan.loss.targets_problem(plan.output_shape, targets):
        raise EngineError(problem)
