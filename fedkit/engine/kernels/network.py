"""A plan with weights: the kept ones as one vector, and for each layer where they are."""

from __future__ import annotations

import functools
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import EngineError
from fedkit.engine.kernels import native
from fedkit.engine.plan.conv import Convolution, Order, arranged, restored
from fedkit.engine.plan.geometry import Geometry, Taps, backward_taps, forward_taps
from fedkit.engine.plan.structure import Norm, Plan
from fedkit.sparse.bits import pack
from fedkit.sparse.kept import KeptWeights, held, kept_weights, shapes_of
from fedkit.sparse.packed import PackedMasks, packed
from fedkit.sparse.state import Masks, ModelState, Weights

DENSE_ABOVE = 0.5
"""Density above which a layer runs dense; measured in docs/decisions/sparse-engine."""

Array = NDArray[Any]


class KeptPositions(Mapping[str, NDArray[np.int64]]):
    """Flat positions of the kept weights of layers, ascending, found when they are asked for.

    No step needs them, and they take twice the memory of the weights.
    """

    def __init__(self, masks: PackedMasks, names: Iterable[str]) -> None:
        self._masks, self._names = masks, dict.fromkeys(names)

    def __getitem__(self, name: str) -> NDArray[np.int64]:
        if name not in self._names:
            raise KeyError(name)
        return self._masks.positions(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Parameters:
    """All weights a network trains, in one vector: of each pruned layer only those kept.

    Args:
        shapes: Of the parameters.
        masks: Which weights are kept.
        own: The same in the orders of the convolutions.
        dense: Layers that have all their weights in the vector.
        orders: For each layer whose convolution has another order than the parameter, that.

    Attributes:
        values: float32 [n].
        kept: Positions of the kept weights of each sparse layer; a layer that is not listed has
            all its weights in the vector.
        pruned: For each layer that has all weights in the vector, but not all kept, which are not,
            bool flat.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        masks: PackedMasks,
        own: PackedMasks,
        dense: frozenset[str],
        orders: Mapping[str, Order],
    ) -> None:
        self._shapes, self._masks, self._orders = shapes, masks, orders
        self.kept = KeptPositions(own, (name for name in own if name not in dense))
        self.pruned = {n: ~own[n].reshape(-1) for n in own if n in dense and not own.all_kept(n)}
        self._parts: dict[str, slice] = {}
        total = 0
        for name, shape in shapes.items():
            whole = len(orders[name]) if name in orders else math.prod(shape)
            size = own.counts[name] if name in self.kept else whole
            self._parts[name] = slice(total, total + size)
            total += size
        self.values = np.zeros(total, np.float32)

    def part(self, name: str, vector: Array) -> Array:
        """Return the view of `vector` that belongs to a parameter."""
        return vector[self._parts[name]]

    def parts(self, names: Container[str] | None) -> list[slice]:
        """Return where some parameters lie in the vector, neighbours as one; None: all."""
        found = list[slice]()
        for name, part in self._parts.items():
            if names is not None and name not in names:
                continue
            begins = part.start
            if found and found[-1].stop == begins:
                begins = found.pop().start
            found.append(slice(begins, part.stop))
        return [part for part in found if part.stop > part.start]

    def load(self, weights: Weights) -> None:
        """Copy the kept weights."""
        found = kept_weights(weights, self._masks)
        for name in self._shapes:
            self.part(name, self.values)[:] = self._own(name, found)

    def _own(self, name: str, weights: KeptWeights) -> NDArray[np.float32]:
        """Return what the vector has of a parameter."""
        order, pruned = self._orders.get(name), name in self.kept
        if order is None and (pruned or name not in self._masks):
            return weights.kept[name]
        flat = arranged(weights[name], order)
        return flat[self.kept[name]] if pruned else flat

    def weights(self) -> KeptWeights:
        """Return the weights, of which nobody holds the memory but the result."""
        found = {name: self._of_masks(name).copy() for name in self._shapes}
        return KeptWeights(self._shapes, self._masks, found)

    def _of_masks(self, name: str) -> NDArray[np.float32]:
        """Return the kept values of a parameter, in its own order."""
        part = self.part(name, self.values)
        if name not in self._masks or (name in self.kept and name not in self._orders):
            return part
        flat = self.dense(name, part).reshape(-1)
        return flat if self._masks.all_kept(name) else flat[self._masks.positions(name)]

    def dense(self, name: str, part: Array) -> Array:
        """Return what a parameter has of a vector in its own shape, 0 where pruned.

        It may share memory with the part.
        """
        kept = self.kept.get(name)
        if kept is None:
            return self.whole(name, part)
        order, shape = self._orders.get(name), self._shapes[name]
        found = np.zeros(math.prod(shape) if order is None else len(order), part.dtype)
        found[kept] = part
        return self.whole(name, found)

    def whole(self, name: str, values: Array) -> Array:
        """Return all values of a layer, pruned or not, in the shape and order of its parameter."""
        return restored(values, self._orders.get(name), self._shapes[name])

    def order(self, name: str) -> Order | None:
        """Return the order of a layer's convolution, None if it is that of the parameter."""
        return self._orders.get(name)

    def mask_gradient(self, gradient: Array) -> None:
        """Set the gradients of pruned weights in dense layers to 0."""
        for name, pruned in self.pruned.items():
            self.part(name, gradient)[pruned] = 0


@dataclass(frozen=True)
class Layer:
    """One convolution with its masks."""

    geometry: Geometry
    dense: bool
    forward: Taps
    backward: tuple[Taps, ...]
    used_in: NDArray[np.uint8]
    used_out: NDArray[np.uint8]

    @property
    def index_bytes(self) -> int:
        """Bytes that tell where the kept weights are."""
        taps = (self.forward, *self.backward)
        return sum(t.first.nbytes + t.tap.nbytes for t in taps)


def make_layer(geometry: Geometry, masks: PackedMasks) -> Layer:
    """Choose how a layer is computed and, if sparse, list its taps in both directions.

    Args:
        geometry: Of the layer.
        masks: Which weights are kept, in the orders of the convolutions.
    """
    name = geometry.op.weight
    dense = geometry.op.groups == 1 and masks.counts[name] > DENSE_ABOVE * masks.size(name)
    everything = np.ones(max(geometry.source[0], geometry.target[0]), np.uint8)
    if dense:
        none = Taps(np.zeros(0, np.int32), np.empty(0, np.int64))
        return Layer(geometry, True, none, (), everything, everything)
    kept = masks.positions(name)
    backward = tuple(backward_taps(geometry, kept))
    forward = forward_taps(geometry, kept)
    # Not from the backward taps: a weight that only ever meets padding has none, but is read.
    inputs = np.bincount(forward.tap["offset"] // geometry.plane_in, minlength=geometry.source[0])
    # The gradient of a bias is summed from the packed planes, kept weights or not.
    outputs = (np.diff(forward.first) > 0) | (geometry.op.bias is not None)
    return Layer(
        geometry,
        False,
        forward,
        backward,
        np.asarray(inputs > 0, np.uint8),
        outputs.astype(np.uint8),
    )


class NormState:
    """What one norm computes per channel, beside its parameters."""

    def __init__(self, norm: Norm, channels: int) -> None:
        self.norm = norm
        for name in ("scale", "shift", "mean", "a", "b", "c"):
            setattr(self, name, np.zeros(channels, np.float32))
        for name in ("center", "spread", "signs"):
            setattr(self, name, np.zeros(channels, np.float64))

    scale: NDArray[np.float32]
    shift: NDArray[np.float32]
    mean: NDArray[np.float32]
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    c: NDArray[np.float32]
    center: NDArray[np.float64]
    spread: NDArray[np.float64]
    signs: NDArray[np.float64]

    def variance(self, count: int, unbiased: bool) -> NDArray[np.float64]:
        """Return the variance of the batch seen last, `count` values per channel.

        For an L1 norm it is the square of its deviation, as its running statistics hold it.
        """
        if self.norm.kind == "l1-batch":
            return np.asarray(np.pi / 2 * np.square(self.spread / count))
        return self.spread / (max(count - 1, 1) if unbiased else count)

    def use_running(self, state: ModelState) -> None:
        """Read the tensor under a state's running statistics."""
        mean, variance = (state.stats[name].astype(np.float64) for name in self.norm.stats)
        weight, bias = (
            state.weights[name].astype(np.float64) if name else default
            for name, default in ((self.norm.weight, 1.0), (self.norm.bias, 0.0))
        )
        l1 = self.norm.kind == "l1-batch"
        deviation = np.sqrt(variance) + self.norm.eps if l1 else np.sqrt(variance + self.norm.eps)
        self.scale[:] = weight / deviation
        self.shift[:] = bias - weight / deviation * mean


class Network:
    """A plan under masks, with its weights.

    Args:
        plan: The model.
        masks: Which weights are kept.
        kernels: The kernels that will run it.
        part_tiles: Most tiles that convolutions work off together; None: what suits a cache.

    Raises:
        EngineError: The masks do not fit the plan.
    """

    def __init__(
        self,
        plan: Plan,
        masks: Masks,
        kernels: native.Kernels,
        part_tiles: int | None = None,
    ) -> None:
        check_masks(plan, masks)
        self.plan, self.kernels, self.masks = plan, kernels, masks
        self.layers, self.parameters = layers_of(plan, masks, kernels.lanes, part_tiles)
        self.norms = {
            index: NormState(tensor.norm, tensor.shape[0])
            for index, tensor in enumerate(plan.tensors)
            if tensor.norm
        }

    def load(self, state: ModelState) -> None:
        """Take over a state's weights.

        Raises:
            EngineError: They do not fit the plan, or one is NaN or infinite.
        """
        check_state(self.plan, state)
        self.parameters.load(state.weights)

    @property
    def index_bytes(self) -> int:
        """Bytes that tell where kept weights and pixels are."""
        pruned = self.parameters.pruned.values()
        layers = self.layers.values()
        tables = {layer.geometry: layer.geometry.table_bytes for layer in layers}
        indices = sum(layer.index_bytes for layer in layers)
        return sum(array.nbytes for array in pruned) + indices + sum(tables.values())


def layers_of(
    plan: Plan, masks: Masks, lanes: int, part_tiles: int | None = None
) -> tuple[dict[int, Layer], Parameters]:
    """Return the convolutions of a plan under masks, by their numbers, and room for all weights."""
    found = dict(geometries(plan, lanes, part_tiles))
    orders = {
        geometry.op.weight: order
        for geometry in found.values()
        if (order := geometry.op.order(plan.weights[geometry.op.weight])) is not None
    }
    kept = packed(masks)
    own = _arranged(kept, orders)
    layers = {n: make_layer(geometry, own) for n, geometry in found.items()}
    dense = frozenset(layer.geometry.op.weight for layer in layers.values() if layer.dense)
    return layers, Parameters(plan.weights, kept, own, dense, orders)


def _arranged(masks: PackedMasks, orders: Mapping[str, Order]) -> PackedMasks:
    """Return masks in the orders of the convolutions."""
    shapes = {name: (len(order),) for name, order in orders.items()}
    bits = {name: pack(arranged(masks[name], order)) for name, order in orders.items()}
    return PackedMasks({**masks.shapes, **shapes}, {**masks.bits, **bits})


def geometries(
    plan: Plan, lanes: int, part_tiles: int | None = None
) -> Iterator[tuple[int, Geometry]]:
    """Yield the number of each convolution and its geometry in tiles of `lanes` examples."""
    for number, op in enumerate(plan.ops):
        if isinstance(op, Convolution):
            source, target = plan.tensors[op.source].shape, plan.tensors[op.target].shape
            yield number, _geometry(op, source, target, lanes, part_tiles)


# Tables of pixels depend on no mask, so that new masks need not make them anew.
_geometry = functools.lru_cache(maxsize=512)(Geometry)


def check_masks(plan: Plan, masks: Masks) -> None:
    """Raise an `EngineError` unless masks cover a plan's prunable weights, and nothing else."""
    if set(masks) != set(plan.prunable):
        odd = sorted(set(masks).symmetric_difference(plan.prunable))
        raise EngineError(
            f"masks and plan name different layers: {', '.join(odd)}; masks must cover exactly "
            "the plan's prunable weights"
        )
    shapes = shapes_of(masks)
    for name, shape in shapes.items():
        dtype = np.dtype(np.bool_) if isinstance(masks, PackedMasks) else masks[name].dtype
        if shape != plan.weights[name] or dtype != np.bool_:
            raise EngineError(
                f"mask of {name} is {dtype} {shape}, the plan has bool "
                f"{plan.weights[name]}; take masks of the same model"
            )


def check_state(plan: Plan, state: ModelState) -> None:
    """Raise an `EngineError` unless a state fits the plan and all its numbers are finite."""
    for arrays, shapes in ((state.weights, plan.weights), (state.stats, plan.stats)):
        values, has = held(arrays), shapes_of(arrays)
        for name, shape in shapes.items():
            if has.get(name) != tuple(shape):
                raise EngineError(
                    f"{name} is {has.get(name, 'missing')}, the plan has "
                    f"{tuple(shape)}; take a state of the same model"
                )
            if not np.isfinite(values[name]).all():
                raise EngineError(
                    f"{name} holds NaN or infinite values; lower the learning rate, or restore an "
                    "earlier checkpoint"
                )
