"""What targets are, in a few words."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def describe(targets: NDArray[Any]) -> str:
    """Say in a few words what targets are: dtype, shape, and from where to where they go."""
    shape = ", ".join(("n", *map(str, targets.shape[1:])))
    reach = ", none"
    if targets.size:
        reach = f" from {float(targets.min()):.6g} to {float(targets.max()):.6g}"
    return f"{targets.dtype} [{shape}]{reach}"


def first_example(wrong: NDArray[np.bool_]) -> str:
    """Name the first example with something wrong in it, given bool [n, ...] of its targets."""
    return f"the first in example {int(wrong.reshape(len(wrong), -1).any(axis=1).argmax())}"
