"""The structs of int_kernels.h, field by field, and the integer kernels."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_int32, c_int64, c_uint32, c_void_p

from fedkit.engine.kernels.native import CPadding, Windows


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


class IntMap(Structure):
    """`struct int_map`."""

    _fields_ = (
        ("first", c_void_p),
        ("offset", c_void_p),
        ("weight", c_void_p),
        ("slot_in", c_void_p),
        ("slot_out", c_void_p),
        ("rows", c_int32),
        ("pairs", c_int32),
        ("slots", c_int32),
    )


class IntConv(Structure):
    """`struct int_conv`."""

    _fields_ = (
        ("source", POINTER(IntTensor)),
        ("target", POINTER(IntTensor)),
        ("read", IntRead),
        ("chain", IntChain),
        ("mix", IntMix),
        ("forward", IntMap),
        ("backward", POINTER(IntMap)),
        ("bias", c_void_p),
        ("shift_out", c_void_p),
        ("shift_in", c_void_p),
        ("first", c_void_p),
        ("tap", c_void_p),
        ("full_offset", c_void_p),
        ("used_in", c_void_p),
        ("used_out", c_void_p),
        ("first_unclipped", c_void_p),
        ("last_unclipped", c_void_p),
        ("line_in", c_void_p),
        ("line_out", c_void_p),
        ("in_", CPadding),
        ("out", CPadding),
        ("in_height", c_int32),
        ("in_width", c_int32),
        ("out_height", c_int32),
        ("out_width", c_int32),
        ("lines", c_int32),
        ("line_length", c_int32),
        ("phases", c_int32),
        ("tiles", c_int32),
        ("tiles_per_part", c_int32),
        ("full_taps", c_int32),
        ("stride", c_int32),
        ("most_slots", c_int32),
        ("accumulate", c_int32),
    )


class IntLayer(Structure):
    """`struct int_layer`."""

    _fields_ = (
        ("source", POINTER(IntTensor)),
        ("target", POINTER(IntTensor)),
        ("read", IntRead),
        ("chain", IntChain),
        ("out", IntChain),
        ("mix", IntMix),
        ("scale", c_void_p),
        ("offset", c_void_p),
        ("factor", c_void_p),
        ("multiplier", c_void_p),
        ("inverse_shift", c_void_p),
        ("centre", c_void_p),
        ("a", c_void_p),
        ("b", c_void_p),
        ("shift", c_void_p),
        ("eps", c_int64),
        ("numerator", c_int32),
        ("exponent", c_int32),
        ("l1", c_int32),
        ("accumulate", c_int32),
    )


class IntPool(Structure):
    """`struct int_pool`."""

    _fields_ = (
        ("source", POINTER(IntTensor)),
        ("target", POINTER(IntTensor)),
        ("read", IntRead),
        ("chain", IntChain),
        ("mix", IntMix),
        ("windows", Windows),
        ("maximum", c_int32),
        ("shift_out", c_int32),
        ("shift_in", c_int32),
        ("accumulate", c_int32),
    )
