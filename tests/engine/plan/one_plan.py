"""A plan with every kind of op."""

from __future__ import annotations

from fedkit.engine.ops.add import Add
from fedkit.engine.ops.copy import Copy
from fedkit.engine.ops.pool import Pool
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.structure import Norm, Plan, StoredTensor

ONE = (1, 1)
CONV = Conv(0, 1, "conv.weight", None, (3, 3), ONE, ONE, ONE, groups=2)
POOL = Pool(3, 4, (2, 2), (2, 2), (0, 0), "max")
LINEAR = Conv(5, 6, "fc.weight", "fc.bias", ONE, ONE, (0, 0), ONE, groups=1)
NORM = Norm("norm", "batch", 1e-5, "norm.weight", "norm.bias")
PLAN = Plan(
    weights={
        "conv.weight": (4, 1, 3, 3),
        "norm.weight": (4,),
        "norm.bias": (4,),
        "fc.weight": (3, 32),
        "fc.bias": (3,),
    },
    stats={"norm.running_mean": (4,), "norm.running_var": (4,)},
    prunable=("conv.weight", "fc.weight"),
    tensors=(
        StoredTensor((2, 4, 4)),
        StoredTensor((4, 4, 4), NORM, "relu"),
        StoredTensor((4, 4, 4)),
        StoredTensor((8, 4, 4)),
        StoredTensor((8, 2, 2)),
        StoredTensor((32, 1, 1)),
        StoredTensor((3, 1, 1)),
    ),
    ops=(
        CONV,
        Add(1, 1, 2),
        Copy(2, 3, channel=4),
        Copy(1, 3),
        POOL,
        Copy(4, 5),
        LINEAR,
    ),
    output=6,
)
