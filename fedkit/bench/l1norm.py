"""`fedkit bench l1norm`: a batch normalisation forward and backward, in integers and in torch.

Ours is what the integer engine does for one norm. Forward: statistics of the int16 sums that a
convolution left, and int8 values of them. Backward: the sums and ranges of int16 gradients, and
what of them passes, rounded at random to 8 bits. L2 takes its statistics in one pass over the
sums, L1 in two, and backward L1 needs signs where L2 needs values: what L1 itself is worth shows
between them, not next to torch.

torch's is `BatchNorm2d` on the same shape, forward and backward, in bfloat16 and float32. One
thread of one core, all in turns, medians.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from ctypes import byref
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from fedkit.bench import markdown
from fedkit.bench.sparsetrain import in_turns, one_core
from fedkit.core.numerics import derive_key
from fedkit.engine.integer.constants import (
    CODE,
    ONE,
    Carrier,
    Requantisation,
    chain_constants,
    multiplier,
    to_int32,
)
from fedkit.engine.integer.integer_network import IntegerNetwork
from fedkit.engine.integer.native_backend import NativeBackend, chain_struct
from fedkit.engine.kernels import int_native, native
from fedkit.engine.ops.copy import Copy
from fedkit.engine.ops.pool import Pool
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.execution import training_schedule
from fedkit.engine.plan.plan import verify
from fedkit.engine.plan.structure import Norm, Plan, StoredTensor

SHAPES = ((64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8), (64, 64, 32, 32), (16, 128, 28, 28))
"""[n, channels, height, width]."""

_SEED = 0
_NORMED, _BEFORE, _COPY = 2, 1, 1
Kind = Literal["batch", "l1-batch"]


def bench_l1norm(quick: bool) -> dict[str, Any]:
    """Measure every shape.

    Args:
        quick: Two shapes, fewer repeats.

    Raises:
        EngineError: The compiled kernels are missing.
    """
    shapes, repeats = (SHAPES[:2], 7) if quick else (SHAPES, 15)
    rows = [shape_row(shape, repeats) for shape in shapes]
    simd = native.load_kernels().simd
    return {"benchmark": "l1norm", "seed": _SEED, "simd": simd, "threads": 1, "rows": rows}


def shape_row(shape: tuple[int, int, int, int], repeats: int) -> dict[str, Any]:
    """Measure one shape.

    Args:
        shape: [n, channels, height, width].
        repeats: Timed runs of each side.
    """
    jobs = [
        _integer_norm(shape, "l1-batch"),
        _integer_norm(shape, "batch"),
        _torch_norm(shape, torch.bfloat16),
        _torch_norm(shape, torch.float32),
    ]
    with one_core():
        in_turns(jobs, 2)
        turns = np.array(in_turns(jobs, repeats))
    l1, l2, bf16, fp32 = (statistics.median(column) for column in turns.T.tolist())
    return {
        "shape": "x".join(map(str, shape)),
        "seconds_l1_int8": round(l1, 7),
        "seconds_l2_int8": round(l2, 7),
        "seconds_bn_bf16": round(bf16, 7),
        "seconds_bn_fp32": round(fp32, 7),
        "ratio_bf16": round(bf16 / l1, 3),
        "ratio_fp32": round(fp32 / l1, 3),
        "ratio_l2": round(l2 / l1, 3),
    }


def _torch_norm(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(_SEED)
    x = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    gradient = torch.randn(shape, generator=generator).to(dtype)
    norm = nn.BatchNorm2d(shape[1]).to(dtype)

    def run() -> None:
        x.grad = None
        norm(x).backward(gradient)

    return run


def _integer_norm(shape: tuple[int, int, int, int], kind: Kind) -> Callable[[], object]:
    """Return one norm forward and backward, on memory that a network of one norm gave its tensor.

    What the memory holds does not matter: no kernel branches on it.
    """
    examples, channels, height, width = shape
    plan, kernels = _plan((channels, height, width), kind), native.load_kernels()
    masks = {name: np.ones(plan.weights[name], bool) for name in plan.prunable}
    network = IntegerNetwork(plan, masks, 8, int(kernels.int_lanes()))
    backend = NativeBackend(network, kernels, training_schedule(plan), examples)
    backend.ready()
    backend.begin(examples)
    return partial(_forward_backward, backend, kind, examples * height * width)


def _plan(shape: tuple[int, int, int], kind: Kind) -> Plan:
    """Return a plan with a norm between a convolution that asks for its gradient and a pooling."""
    channels, height, width = shape
    norm = Norm("norm", kind, 1e-5, None, None)
    tensors = (
        StoredTensor(shape),
        StoredTensor(shape),
        StoredTensor(shape, norm),
        StoredTensor((channels, 1, 1)),
    )
    one, plane = (1, 1), (height, width)
    ops = (
        Conv(0, _BEFORE, "conv", None, one, one, (0, 0), one, channels),
        Copy(_BEFORE, _NORMED),
        Pool(_NORMED, 3, plane, plane, (0, 0), "mean"),
    )
    stats: dict[str, tuple[int, ...]] = {name: (channels,) for name in norm.stats}
    plan = Plan({"conv": (channels, 1, 1, 1)}, stats, ("conv",), tensors, ops, 3)
    verify(plan)
    return plan


def _forward_backward(backend: NativeBackend, kind: Kind, count: int) -> None:
    if kind == "l1-batch":
        mean = backend.raw_sums(_NORMED)[0] / count
        centre = to_int32(np.rint(mean))
        deviation = backend.raw_spread(_NORMED, centre) / count + 1.0
    else:
        total, squares = backend.raw_squares(_NORMED)
        mean = total / count
        centre = to_int32(np.rint(mean))
        deviation = np.sqrt(squares / count - np.square(mean)) + 1.0
    a, shift = multiplier(1 / (ONE * deviation), 29)
    backend.requantise(_NORMED, Requantisation(centre, a, to_int32((centre - mean) * a), shift))
    sums, peak = backend.finish(_NORMED, None)
    _, _, signs, total, along = sums.T / count
    l1, one = kind == "l1-batch", np.ones(len(peak))
    carrier: Carrier = "sign" if l1 else "x"
    # As in the engine: a norm's slope, and what passes through its statistics.
    b = -along / (1 + np.abs(along)) / CODE
    c = -total - b * signs if l1 else -total
    unit = (peak + np.abs(b) * (1 if l1 else CODE) + np.abs(c) + 1) / CODE
    rounded = chain_constants(
        one / unit, b / unit, c / unit, carrier, peak * one, CODE, key=derive_key(_SEED)
    )
    backend.kernels.int_copy_backward(
        *(backend.tensor(_BEFORE), backend.tensor(_NORMED), byref(chain_struct(rounded))),
        *(byref(int_native.IntMix()), 0, 0, 0, backend.tiles),
    )


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of README's table."""
    head = "| shape | us, L1 | L2 | torch bf16 | fp32 | of bf16 | of fp32 | of L2 |"
    rows = (
        f"| {row['shape']} "
        f"| {1e6 * row['seconds_l1_int8']:,.0f} | {1e6 * row['seconds_l2_int8']:,.0f} "
        f"| {1e6 * row['seconds_bn_bf16']:,.0f} | {1e6 * row['seconds_bn_fp32']:,.0f} "
        f"| {row['ratio_bf16']:.2f}x | {row['ratio_fp32']:.2f}x | {row['ratio_l2']:.2f}x |"
        for row in result["rows"]
    )
    return markdown.table(head, rows)
