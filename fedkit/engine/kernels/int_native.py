"""The structs of int_kernels.h, field by field, and the integer kernels."""

from __future__ import annotations

import enum
from ctypes import POINTER, Structure, c_double, c_int32, c_int64, c_uint32, c_uint64, c_void_p


class IntTensor(Structure):
    """`struct int_tensor`."""

    _fields_ = (
        ("x", c_void_p),
        ("raw", c_void_p),
        ("gradient", c_void_p),
        ("examples", c_int64),
        ("channels", c_int32),
        ("plane", c_int32),
    )


class IntRead(Structure):
    """`struct int_read`."""

    _fields_ = (
        ("a", c_void_p),
        ("b", c_void_p),
        ("shift", c_void_p),
        ("low", c_int32),
        ("high", c_int32),
    )


class IntChain(Structure):
    """`struct int_chain`."""

    _fields_ = (
        ("a", c_void_p),
        ("b", c_void_p),
        ("c", c_void_p),
        ("shift", c_void_p),
        ("factor", c_void_p),
        ("carrier", c_int32),
        ("limit", c_int32),
        ("random", c_int32),
        ("key_low", c_uint32),
        ("key_high", c_uint32),
    )


class IntMix(Structure):
    """`struct int_mix`."""

    _fields_ = (("a", c_void_p), ("b", c_void_p), ("shift", c_void_p))


class IntShares(Structure):
    """`struct int_shares`."""

    _fields_ = (
        ("cut", c_int32),
        ("left", c_int32),
        ("a", c_int32),
        ("top", c_int32),
        ("bits", c_int32),
    )


class IntSide(Structure):
    """`struct int_side`."""

    _fields_ = (
        ("tensor", POINTER(IntTensor)),
        ("read", IntRead),
        ("mix", IntMix),
        ("shift", c_void_p),
        ("first_unclipped", c_void_p),
        ("last_unclipped", c_void_p),
        ("gives", c_int32),
        ("accumulate", c_int32),
    )


class IntParameter(Structure):
    """`struct int_parameter`."""

    _fields_ = (
        ("weight", c_void_p),
        ("point", c_void_p),
        ("gradient", c_void_p),
        ("unit", c_void_p),
    )


class IntUnits(Structure):
    """`struct int_units`."""

    _fields_ = (
        ("seed", c_uint64),
        ("step", c_uint64),
        ("read", IntRead),
        ("other", IntRead),
        ("chain", IntChain),
        ("mix", IntMix),
        ("sums", c_void_p),
        ("reals", c_void_p),
        ("scratch", c_void_p),
        ("failed", c_double),
        ("rule", c_int32),
        ("tiles", c_int32),
        ("running", c_int32),
        ("takes", c_int32),
    )


class IntNorm(Structure):
    """`struct int_norm`."""

    _fields_ = (
        ("scale", IntParameter),
        ("offset", IntParameter),
        ("mean", c_void_p),
        ("spread", c_void_p),
        ("variance", c_void_p),
        ("running_mean", c_void_p),
        ("running_deviation", c_void_p),
        ("eps", c_double),
        ("k", c_double),
        ("l1", c_int32),
    )


class IntWorth(Structure):
    """`struct int_worth`."""

    _fields_ = (
        ("units", POINTER(IntUnits)),
        ("tensor", POINTER(IntTensor)),
        ("norm", POINTER(IntNorm)),
        ("factor", c_void_p),
        ("offset", c_void_p),
        ("raw_unit", c_void_p),
        ("unit", c_void_p),
        ("most", c_void_p),
        ("a", c_void_p),
        ("b", c_void_p),
        ("c", c_void_p),
        ("deviation", c_void_p),
        ("bound", c_double),
        ("carrier", c_int32),
        ("finished", c_int32),
        ("activation", c_int32),
        ("finer", c_int32),
    )


class IntOrder(Structure):
    """`struct int_order`."""

    _fields_ = (
        ("weight", c_void_p),
        ("index", c_void_p),
        ("count", c_int64),
    )


class IntCodes(Structure):
    """`struct int_codes`."""

    _fields_ = (
        ("code", c_void_p),
        ("scale", c_void_p),
        ("ends", c_void_p),
        ("column", c_void_p),
        ("orders", POINTER(IntOrder)),
        ("clip", c_double),
        ("rows", c_int32),
        ("columns", c_int32),
        ("area", c_int32),
        ("order_count", c_int32),
        ("most", c_int32),
    )


class IntCopyStep(Structure):
    """`struct int_copy_step`."""

    _fields_ = (
        ("source", POINTER(IntWorth)),
        ("other", POINTER(IntWorth)),
        ("target", POINTER(IntWorth)),
        ("channel", c_int32),
        ("accumulate", c_int32),
    )


class IntStep(Structure):
    """`struct int_step`."""

    _fields_ = (
        ("what", c_void_p),
        ("kind", c_int32),
    )


class IntUpdate(Structure):
    """`struct int_update`."""

    _fields_ = (
        ("weight", c_void_p),
        ("velocity", c_void_p),
        ("gradient", c_void_p),
        ("unit", c_void_p),
        ("ends", c_void_p),
        ("point", c_void_p),
        ("count", c_int64),
        ("rows", c_int32),
        ("number", c_int32),
    )


class IntSgd(Structure):
    """`struct int_sgd`."""

    _fields_ = (
        ("seed", c_uint64),
        ("step", c_uint64),
        ("rate", c_double),
        ("momentum", c_double),
        ("decay", c_double),
        ("multiplier", c_void_p),
        ("shift", c_void_p),
        ("failed", c_void_p),
        ("momentum_bits", c_int32),
        ("extra", c_int32),
    )


class StepKind(enum.IntEnum):
    """Which step an `IntStep` is; int_steps.h has the same list."""

    REQUANTISE = 0
    FINISH = enum.auto()
    SHARE = enum.auto()
    CONV_FORWARD = enum.auto()
    CONV_BACKWARD = enum.auto()
    ADD_FORWARD = enum.auto()
    COPY_FORWARD = enum.auto()
    COPY_BACKWARD = enum.auto()
    POOL_FORWARD = enum.auto()
    POOL_BACKWARD = enum.auto()
