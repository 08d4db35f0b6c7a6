"""The numpy backend beside slow references, for tests of what it and its ops compute."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.integer.constants import Chain, Ints, Mix, Read, Requantisation
from fedkit.engine.integer.integer_network import IntegerNetwork
from fedkit.engine.integer.numpy_backend import NumpyBackend
from tests.naive import integers as naive

Array = NDArray[np.int64]
Sums = Array


class CheckedBackend(NumpyBackend):
    """The numpy backend, and after every op its reference; `seen` counts what was compared."""

    def __init__(self, network: IntegerNetwork) -> None:
        super().__init__(network)
        self.seen = dict[str, int]()

    def check(self, op: str, found: Any, expected: Any) -> None:
        self.seen[op] = self.seen.get(op, 0) + 1
        np.testing.assert_array_equal(found, np.array(expected, object), err_msg=op)

    def raw_sums(self, tensor: int) -> tuple[Sums, Ints]:
        sums, peak = super().raw_sums(tensor)
        raw = self.raw[tensor]
        self.check("raw peak", peak, naive.peaks(raw))
        self.check("raw sum", sums, [sum(raw[:, c].ravel().tolist()) for c in range(len(sums))])
        return sums, peak

    def raw_squares(self, tensor: int) -> tuple[Sums, Sums]:
        sums, squares = super().raw_squares(tensor)
        values = [self.raw[tensor][:, c].ravel().tolist() for c in range(len(sums))]
        self.check("raw sum", sums, [sum(channel) for channel in values])
        self.check("raw squares", squares, [sum(v * v for v in channel) for channel in values])
        return sums, squares

    def raw_spread(self, tensor: int, centre: Ints) -> Sums:
        found = super().raw_spread(tensor, centre)
        self.check("L1 spread", found, naive.spread(self.raw[tensor], centre))
        return found

    def requantise(self, tensor: int, how: Requantisation) -> None:
        super().requantise(tensor, how)
        self.check("requantise", self.x[tensor], naive.requantise(self.raw[tensor], how))

    def read_squares(self, tensor: int, read: Read) -> Sums:
        found = super().read_squares(tensor, read)
        values = naive.read(self.x[tensor], read)
        squares = [sum(v * v for v in values[:, c].ravel().tolist()) for c in range(len(found))]
        self.check("squares", found, squares)
        return found

    def finish(self, tensor: int, read: Read | None) -> tuple[Sums, Ints]:
        before, x = self.g[tensor], self.x.get(tensor)
        sums, peak = super().finish(tensor, read)
        expected = before
        if read is not None:
            assert x is not None
            expected = naive.masked(before, x, read)
        self.check("finish", self.g[tensor], expected)
        self.check("finish sums", sums, naive.finish_sums(expected, x))
        self.check("finish peak", peak, naive.peaks(expected))
        return sums, peak

    def passed_peak(self, tensor: int, chain: Chain) -> Ints:
        found = super().passed_peak(tensor, chain)
        self.check("passed peak", found, naive.peaks(self.slowly_passed(tensor, chain)))
        return found

    def slowly_passed(self, tensor: int, chain: Chain) -> Array:
        return naive.passed(self.g[tensor], self.x.get(tensor), chain)

    def before_copy(self, source: int, target: int, chain: Chain) -> tuple[Array, Array | None]:
        """Return what passes, and what the source's gradient holds."""
        return self.slowly_passed(target, chain), self.g.get(source)

    def check_copied(
        self, source: int, channel: int, before: tuple[Array, Array | None], mix: Mix | None
    ) -> None:
        p, old = before
        shape = (len(p), *self.plan.tensors[source].shape)
        begin = channel * p[0, 0].size
        taken = p.reshape(len(p), -1)[:, begin : begin + int(np.prod(shape[1:]))]
        self.check_given("copy", source, taken.reshape(shape), old, mix)

    def check_given(
        self, op: str, tensor: int, new: Array, old: Array | None, mix: Mix | None
    ) -> None:
        if mix is not None:
            assert old is not None
            new = naive.mixed(old, new, mix)
        self.check(f"gradient by {op}{'' if mix is None else ', added'}", self.g[tensor], new)
