"""Networks of integers for single plans."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.integer.integer_network import IntegerNetwork
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.structure import Plan, StoredTensor
from fedkit.sparse.state import ModelState

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


def network_of(weight: Floats, mask: Bools, bits: int) -> IntegerNetwork:
    """Return a network whose middle one of three layers has this weight and mask."""
    outputs, inputs = weight.shape[0], weight.shape[1]
    one, kernel = (1, 1), (weight.shape[2], weight.shape[3])
    shapes = {"first": (inputs, 1, 1, 1), "middle": weight.shape, "last": (2, outputs, 1, 1)}
    ops = (
        Conv(0, 1, "first", None, one, one, (0, 0), one, 1),
        Conv(1, 2, "middle", None, kernel, one, (0, 0), one, 1),
        Conv(2, 3, "last", None, one, one, (0, 0), one, 1),
    )
    size = weight.shape[2]
    tensors = (
        StoredTensor((1, size, size)),
        StoredTensor((inputs, size, size)),
        StoredTensor((outputs, 1, 1)),
        StoredTensor((2, 1, 1)),
    )
    plan = Plan(shapes, {}, tuple(shapes), tensors, ops, 3)
    masks = {name: np.ones(shape, np.bool_) for name, shape in shapes.items()}
    masks["middle"] = mask
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    weights["middle"] = np.where(mask, weight, np.float32(0))
    made = IntegerNetwork(plan, masks, bits, lanes=16)
    made.load(ModelState(weights, {}, masks))
    return made
