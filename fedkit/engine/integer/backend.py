"""What a program asks of those who compute: the compiled kernels, or numpy where there are none.

Tensors are named by their index in the plan, ops by their number. `raw` is the int16 that an op
writes, `x` the int8 that `requantise` makes of it. All results are integers, and the same from
every backend.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.integer.constants import Chain, Ints, Mix, Read, Requantisation
from fedkit.engine.integer.integer_network import Codes
from fedkit.engine.integer.layer_norm import Deviation, Scale

Sums = NDArray[np.int64]


class Backend(Protocol):
    """Computes with one network on batches of a fixed largest size."""

    def begin(self, examples: int) -> None:
        """Make ready for a batch of so many examples."""

    def load(self, inputs: NDArray[np.int8], order: NDArray[np.int64]) -> None:
        """Take inputs[order], int8 [.., channels, height, width], as tensor 0."""

    def conv_forward(self, number: int, read: Read, codes: Codes, bias: Ints, shift: Ints) -> None:
        """Write raw = (weights * read(x) + bias + half) >> shift."""

    def add_forward(self, number: int, left: Read, right: Read) -> None:
        """Write raw = left(x) + right(x)."""

    def copy_forward(self, number: int, read: Read) -> None:
        """Write read(x) to some channels of raw."""

    def pool_forward(self, number: int, read: Read, shift: int) -> None:
        """Write the largest read(x) of each window, or (their sum + half) >> shift."""

    def layer_forward(
        self, number: int, read: Read, how: Deviation, scale: Scale
    ) -> tuple[Ints, Ints]:
        """Normalise each example of read(x), and write raw = (a * hat + b + half) >> shift.

        Returns:
            Per example the multiplier and the shift of `layer_norm.reciprocal`.
        """

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

    def conv_backward(
        self,
        number: int,
        read: Read,
        chain: Chain,
        shift: Ints,
        mix: Mix | None,
        source: bool,
    ) -> tuple[Sums, Sums]:
        """Take the passed gradient p of an op's target, and the weights of its forward pass.

        Args:
            number: The op.
            read: How its source was read.
            chain: How the target's gradient passes.
            shift: sum >> shift, rounded half to even, is a gradient of the source.
            mix: How that is added to what the source's gradient holds; None: it holds nothing.
            source: Whether the source needs a gradient.

        Returns:
            Gradients of the kept weights, p * read(x), and per channel the sum of p; int64.
        """

    def copy_backward(
        self, number: int, source: int, chain: Chain, channel: int, mix: Mix | None
    ) -> None:
        """Give the passed gradient of target's channels from `channel` on to a source."""

    def pool_backward(
        self, number: int, read: Read, chain: Chain, shift: int, mix: Mix | None
    ) -> None:
        """Give the sum of the windows' passed gradients >> shift, rounded half to even."""

    def layer_sums(
        self, number: int, read: Read, chain: Chain, factor: Ints
    ) -> tuple[Sums, Sums, Ints]:
        """Sum what a layer norm's backward pass needs, of the target's passed gradient p.

        Args:
            number: The op.
            read: How its source was read.
            chain: How the target's gradient passes.
            factor: t = factor * p >> shift, rounded half to even, is the gradient of hat; int32
                [elements].

        Returns:
            Per element the sums over the examples of p * hat and p, int64 [elements, 2]; per
            example the sums of t, t * hat and the sign of hat, int64 [n, 3]; and the largest |t|
            of each, int32 [n].
        """

    def layer_backward(
        self, number: int, read: Read, chain: Chain, factor: Ints, out: Chain, mix: Mix | None
    ) -> None:
        """Give t, as `out` passes it example by example, to the source."""
