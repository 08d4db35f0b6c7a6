"""Masks with a bit per weight: what a device, the wire and a server's merge work on."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedkit.sparse import bits as flags
from fedkit.sparse.bits import Bits


class PackedMasks(Mapping[str, NDArray[np.bool_]]):
    """Masks that hold a bit per weight; a bool array is made of one whenever it is looked up.

    Args:
        shapes: Shape per layer, in the model's order.
        bits: Per layer what is kept, see `fedkit.sparse.bits`; nobody changes them.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], bits: Mapping[str, Bits]) -> None:
        self.shapes, self.bits = shapes, bits

    def __getitem__(self, name: str) -> NDArray[np.bool_]:
        return flags.unpack(self.bits[name], self.size(name)).reshape(self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.bits)

    def __len__(self) -> int:
        return len(self.bits)

    def __contains__(self, name: object) -> bool:
        return name in self.bits

    def size(self, name: str) -> int:
        """Return the number of weights of a layer, kept or not."""
        return math.prod(self.shapes[name])

    @cached_property
    def counts(self) -> dict[str, int]:
        """Kept weights per layer."""
        return {name: flags.ones(bits) for name, bits in self.bits.items()}

    def all_kept(self, name: str) -> bool:
        """Whether no weight of a layer is pruned."""
        return self.counts[name] == self.size(name)

    def positions(self, name: str) -> NDArray[np.int64]:
        """Return the flat positions of the kept weights of a layer, ascending."""
        return flags.positions(self.bits[name])

    def at(self, name: str, where: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the weights at some flat positions of a layer are kept."""
        return flags.at(self.bits[name], where)

    def same(self, other: PackedMasks, name: str) -> bool:
        """Whether others keep the same weights of a layer."""
        one, two = self.bits[name], other.bits[name]
        alike = self.shapes[name] == other.shapes[name]
        return one is two or (alike and np.array_equal(one, two))

    def alike(self, other: PackedMasks) -> bool:
        """Whether others are of the same layers and keep the same weights."""
        return self is other or (
            self.bits.keys() == other.bits.keys() and all(self.same(other, name) for name in self)
        )

    def union(self, other: PackedMasks) -> PackedMasks:
        """Return what either keeps; these masks themselves where others keep the same."""
        return self if self.alike(other) else self.merged(other, np.bitwise_or)

    def only(self, names: Container[str]) -> PackedMasks:
        """Return the masks of some layers; the same object where it has no others."""
        if all(name in names for name in self.bits):
            return self
        return self._with({name: bits for name, bits in self.bits.items() if name in names})

    def merged(self, other: PackedMasks, how: Callable[[Bits, Bits], Bits]) -> PackedMasks:
        """Return masks of the same layers, bits merged by a function such as `np.bitwise_xor`."""
        return self._with({n: how(bits, other.bits[n]) for n, bits in self.bits.items()})

    def changed(self, bits: Mapping[str, Bits]) -> PackedMasks:
        """Return masks with other bits for some layers."""
        return self._with({**self.bits, **bits})

    def _with(self, bits: Mapping[str, Bits]) -> PackedMasks:
        return PackedMasks({name: self.shapes[name] for name in bits}, bits)


def packed(masks: Mapping[str, NDArray[np.bool_]]) -> PackedMasks:
    """Return masks with a bit per weight; the same object where they are so already."""
    if isinstance(masks, PackedMasks):
        return masks
    shapes = {name: mask.shape for name, mask in masks.items()}
    return PackedMasks(shapes, {name: flags.pack(mask) for name, mask in masks.items()})
