"""The structs of int_kernels.h, field by field, and the integer kernels."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_int32, c_int64, c_uint32, c_void_p


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
