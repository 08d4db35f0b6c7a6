"""Runs random layers by kernels that were compiled with sanitizers; a program of its own.

    python -m tests.edge.targets.c99.sanitized LIBRARY SHORT ROUNDS

It ends with 0 if no kernel left its memory and every result was right. SHORT is by how many bytes
each tensor is too small: 0, or else the sanitizer must stop the program. ROUNDS is how many layers
of each kind there are.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edge.targets.c99 import pack
from tests.edge.targets.c99 import cases
from tests.edge.targets.c99.library import InferenceKernels, TensorBuffer


class ShortTensor(TensorBuffer):
    """A tensor whose memory ends too early."""

    short = 0

    def __post_init__(self) -> None:
        self.memory = np.full(self.planes.size + pack.SLACK - self.short, 0xA5, np.uint8)


def main(library: str, short: str, rounds: str) -> None:
    if int(short):
        ShortTensor.short = int(short)
        _replace_tensors()
    kernels = InferenceKernels(Path(library))
    for seed in range(int(rounds)):
        for check in cases.CHECKS.values():
            check(kernels, np.random.default_rng(seed))
        for kind in cases.CONVS:
            cases.check_random_conv(kernels, np.random.default_rng(seed), kind)


def _replace_tensors() -> None:
    from tests.edge.targets.c99 import library

    library.TensorBuffer = ShortTensor  # type: ignore[misc]


if __name__ == "__main__":
    main(*sys.argv[1:])
