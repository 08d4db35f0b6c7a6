"""What a program asks of those who compute: the compiled kernels, or numpy where there are none.

Tensors are named by their index in the plan. `raw` is the int16 that an op
writes, `x` the int8 that `requantise` makes of it. All results are integers, and the same from
every backend.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.integer.constants import Chain, Ints, Read, Requantisation

Sums = NDArray[np.int64]


class Backend(Protocol):
    """Holds the tensors of one network for batches of a fixed largest size, and passes over them.

    What an op computes is in its family.
    """

    def ready(self) -> None:
        """Take the memory; all ops are made."""

    def begin(self, examples: int) -> None:
        """Make ready for a batch of so many examples."""

    def load(self, inputs: NDArray[np.int8], order: NDArray[np.int64]) -> None:
        """Take inputs[order], int8 [.., channels, height, width], as tensor 0."""

    def raw_sums(self, tensor: int) -> tuple[Sums, Ints]:
        """Return per channel the sum and the largest magnitude of raw."""

    def raw_squares(self, tensor: int) -> tuple[Sums, Sums]:
        """Return per channel the sum of raw, and of its square."""

    def raw_spread(self, tensor: int, centre: Ints) -> Sums:
        """Return per channel the sum of |raw - centre|."""

    def requantise(self, tensor: int, how: Requantisation) -> None:
        """Make x of raw."""

    def read_squares(self, tensor: int, read: Read) -> Sums:
        """Return per channel the sum of read(x)^2."""

    def raw_rows(self, tensor: int) -> NDArray[np.int16]:
        """Return raw, [n, channels, height, width]."""

    def codes(self, tensor: int) -> NDArray[np.int8]:
        """Return x, [n, channels, height, width]."""

    def set_gradient(self, tensor: int, gradient: NDArray[np.int16]) -> None:
        """Take the gradient of a tensor, [n, channels, height, width]."""

    def share_gradient(self, tensor: int, source: int) -> None:
        """Take a tensor's gradient as that of a source too, where the schedule shares them."""

    def finish(self, tensor: int, read: Read | None) -> tuple[Sums, Ints]:
        """Set a gradient to 0 where `read` passes none.

        Returns:
            Sums of g, g * x and sign(x), then of g and g * x where |x| < CODE, int64 [channels, 5];
            and the largest |g| per channel.
        """

    def passed_peak(self, tensor: int, chain: Chain) -> Ints:
        """Return per channel the largest magnitude of the passed gradient."""
