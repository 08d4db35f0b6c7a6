"""Normalisation over groups of channels of an example: a layer norm of each, by its kernels."""

from __future__ import annotations

from fedkit.engine.ops.family import Example, Family
from fedkit.engine.ops.layer_norm import FloatLayerNorm
from fedkit.engine.ops.layer_norm_integer import INTEGER
from fedkit.engine.plan.layer_norm import GroupNorm

_SHAPES = ((6, 4, 5),) * 3
_FEATURES = ((12, 1, 1),) * 3
_WEIGHTS = {"scale": (6,), "offset": (6,)}

FAMILY = Family(
    GroupNorm,
    (
        Example(GroupNorm(1, 2, "norm", 0.01, "scale", "offset", 2), _SHAPES, _WEIGHTS),
        Example(GroupNorm(1, 2, "norm", 0.01, None, None, 2), _SHAPES),
        Example(GroupNorm(1, 2, "norm", 0.01, None, "offset", 2), _FEATURES, {"offset": (12,)}),
        Example(GroupNorm(1, 2, "norm", 0.01, "scale", None, 1), _SHAPES, {"scale": (6,)}),
    ),
    FloatLayerNorm,
    INTEGER,
)
