"""Weights as what is kept of them: a model of 1 % takes 1 % of the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.sparse.packed import PackedMasks, packed

Floats = NDArray[np.float32]


class KeptWeights(Mapping[str, Floats]):
    """Weights that hold kept values and masks; looked up, a parameter is made a dense array.

    A dense array is made anew each time, so nothing that is written into one is remembered.

    Args:
        shapes: Shape per parameter, in the model's order.
        masks: Of those that can be pruned.
        kept: Per parameter the kept values, or all where it has no mask, float32 flat; nobody
            changes them.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        masks: PackedMasks,
        kept: Mapping[str, Floats],
    ) -> None:
        self.shapes, self.masks, self.kept = shapes, masks, kept

    def __getitem__(self, name: str) -> Floats:
        values, shape = self.kept[name], self.shapes[name]
        if name in self.masks and not self.masks.all_kept(name):
            dense = np.zeros(math.prod(shape), values.dtype)
            dense[self.masks.positions(name)] = values
            values = dense
        return values.reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)

    def __contains__(self, name: object) -> bool:
        return name in self.kept

    def only(self, names: Container[str]) -> KeptWeights:
        """Return some of the parameters."""
        values = {name: value for name, value in self.kept.items() if name in names}
        shapes = {name: self.shapes[name] for name in values}
        return KeptWeights(shapes, self.masks.only(values), values)

    def changed(self, change: Callable[[str, Floats], Floats]) -> KeptWeights:
        """Return weights with the kept values of each parameter changed, given its name."""
        found = {name: change(name, values) for name, values in self.kept.items()}
        return KeptWeights(self.shapes, self.masks, found)

    def under(self, masks: PackedMasks) -> KeptWeights:
        """Return these weights under other masks: what stays has its value, what is new is 0."""
        masks = masks.only(self.kept)
        if masks is self.masks:
            return self
        found = {name: self._moved(name, values, masks) for name, values in self.kept.items()}
        return KeptWeights(self.shapes, masks, found)

    def _moved(self, name: str, values: Floats, masks: PackedMasks) -> Floats:
        if name not in masks:
            return self[name].reshape(-1)
        if name not in self.masks:
            return values if masks.all_kept(name) else values[masks.positions(name)]
        if masks.same(self.masks, name):
            return values
        before, after = self.masks.positions(name), masks.positions(name)
        moved = np.zeros(len(after), values.dtype)
        moved[self.masks.at(name, after)] = values[masks.at(name, before)]
        return moved


def kept_weights(
    weights: Mapping[str, Floats], masks: Mapping[str, NDArray[np.bool_]]
) -> KeptWeights:
    """Return weights as what some masks keep of them.

    What is kept whole shares memory with what was given; of dense arrays nothing else is held.

    Args:
        weights: Dense arrays, or `KeptWeights` under any masks: what those pruned is 0.
        masks: Of some of them; a parameter without a mask is kept whole.
    """
    bits = packed(masks)
    if isinstance(weights, KeptWeights):
        return weights.under(bits)
    flat = {name: value.reshape(-1) for name, value in weights.items()}
    return KeptWeights(shapes_of(weights), PackedMasks({}, {}), flat).under(bits)


def joined(*parts: KeptWeights) -> KeptWeights:
    """Return the parameters of several parts of one model; of a name that two have, the last."""
    shapes: dict[str, Any] = {}
    own: dict[str, Any] = {}
    bits: dict[str, Any] = {}
    for part in parts:
        shapes |= {name: part.shapes[name] for name in part}
        own |= part.kept
        bits = {n: b for n, b in bits.items() if n not in part} | dict(part.masks.bits)
    return KeptWeights(shapes, PackedMasks({n: shapes[n] for n in bits}, bits), own)


def nothing(shapes: Mapping[str, tuple[int, ...]]) -> KeptWeights:
    """Return weights that are all 0, of which nothing is held."""
    none = {name: np.zeros(-(-math.prod(shape) // 8), np.uint8) for name, shape in shapes.items()}
    empty = np.empty(0, np.float32)
    return KeptWeights(shapes, PackedMasks(shapes, none), dict.fromkeys(shapes, empty))


def shapes_of(arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of arrays, which those of `KeptWeights` and `PackedMasks` have at hand."""
    if isinstance(arrays, KeptWeights | PackedMasks):
        return arrays.shapes
    return {name: value.shape for name, value in arrays.items()}


def held(weights: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Return what is in memory of each parameter: kept values of `KeptWeights`, or all."""
    return weights.kept if isinstance(weights, KeptWeights) else weights
