"""`fedkit bench intgemm`: products of few-bit integers, next to torch's in bfloat16 and float32.

The shapes are those of ResNet-18's convolutions on 32x32 images, rows x depth x columns: pixels of
the batch, inputs times kernel area, outputs. One thread of one core, all in turns, medians.

`seconds_ours` is the product alone, of packed operands. `seconds_ours_packed` starts from a float32
left matrix and int8 weights: it finds the columns' ranges, rounds at random to `bits` by the
`gradient` rule, packs both and multiplies. torch's matrices lie there in their dtype; in
`seconds_bf16_packed` the left one comes as float32 too, and is turned into bfloat16. All write
products into memory that is there.
`seconds_int8` is torch's own int8 product, which has no rule and no quantisation either.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedkit.bench import markdown
from fedkit.bench.sparsetrain import in_turns, one_core
from fedkit.core.numerics import derive_key
from fedkit.engine.integer.gemm import Gemm
from fedkit.engine.kernels import native

SHAPES = (
    (1024, 27, 64),
    (1024, 576, 64),
    (256, 576, 128),
    (256, 64, 128),
    (256, 1152, 128),
    (64, 1152, 256),
    (64, 2304, 256),
    (16, 2304, 512),
    (16, 4608, 512),
)
"""Rows per image, depth, columns."""

KINDS = ((8, "per-tensor"), (6, "shiftquant"), (4, "shiftquant"), (4, "per-channel"))
_SEED = 0


def bench_intgemm(quick: bool) -> dict[str, Any]:
    """Measure every shape with every kind.

    Args:
        quick: Four images instead of sixteen, three shapes, fewer repeats.

    Raises:
        EngineError: The compiled kernels are missing.
    """
    shapes, images, repeats = (SHAPES[1::3], 4, 3) if quick else (SHAPES, 16, 7)
    rows = [
        row
        for per_image, depth, columns in shapes
        for row in shape_rows(images * per_image, depth, columns, repeats)
    ]
    simd = native.load_kernels().simd
    return {"benchmark": "intgemm", "seed": _SEED, "simd": simd, "threads": 1, "rows": rows}


def shape_rows(count: int, depth: int, columns: int, repeats: int) -> list[dict[str, Any]]:
    """Measure one shape, a row for each of `KINDS`.

    Args:
        count: Rows of the left matrix.
        depth: Columns of the left matrix.
        columns: Columns of the right matrix.
        repeats: Timed products of each side.
    """
    rng = np.random.default_rng(_SEED)
    # Ranges of channels spread as those of gradients do.
    scales = np.exp2(-rng.uniform(0, 6, depth))
    x = (rng.standard_normal((count, depth)) * scales).astype(np.float32)
    w = rng.integers(-127, 128, (depth, columns), np.int8)
    left, right = torch.from_numpy(x), torch.from_numpy(w)
    half = left.bfloat16(), right.bfloat16()
    single = left, right.float()
    eight = (left * (127 / left.abs().max())).round().to(torch.int8), right
    outs = [torch.empty(count, columns, dtype=d) for d in (torch.bfloat16, torch.float32)]
    sums = torch.empty(count, columns, dtype=torch.int32)
    jobs: list[Callable[[], object]] = [
        lambda: torch.mm(*half, out=outs[0]),
        lambda: torch.mm(*single, out=outs[1]),
        lambda: torch._int_mm(*eight, out=sums),
        lambda: torch.mm(left.bfloat16(), half[1], out=outs[0]),
    ]
    gemms = [Gemm(native.load_kernels(), rule) for _, rule in KINDS]
    for gemm, (bits, _) in zip(gemms, KINDS, strict=True):
        key = derive_key(_SEED, bits)
        packed = gemm.left(x, bits, key), gemm.right(w)
        room = gemm.room(*packed)
        jobs.append(partial(gemm.product, *packed, room))
        jobs.append(partial(_packed, gemm, x, w, bits, key, room))
    with one_core():
        in_turns(jobs, 1)
        turns = np.array(in_turns(jobs, repeats))
    bf16, fp32, int8, converted, *ours = (statistics.median(column) for column in turns.T.tolist())
    shape = f"{count}x{depth}x{columns}"
    return [
        {
            "shape": shape,
            "bits": bits,
            "gradient": rule,
            "path": gemm.path,
            "seconds_ours": round(alone, 7),
            "seconds_ours_packed": round(packed, 7),
            "seconds_bf16": round(bf16, 7),
            "seconds_fp32": round(fp32, 7),
            "seconds_int8": round(int8, 7),
            "seconds_bf16_packed": round(converted, 7),
            "ratio_bf16": round(bf16 / alone, 3),
            "ratio_bf16_packed": round(bf16 / packed, 3),
            "ratio_bf16_converted": round(converted / packed, 3),
            "ratio_fp32": round(fp32 / alone, 3),
            "ratio_fp32_packed": round(fp32 / packed, 3),
        }
        for gemm, (bits, rule), alone, packed in zip(
            gemms, KINDS, ours[::2], ours[1::2], strict=True
        )
    ]


def _packed(
    gemm: Gemm,
    x: NDArray[np.float32],
    w: NDArray[np.int8],
    bits: int,
    key: int,
    room: NDArray[np.int32],
) -> NDArray[np.int32]:
    return gemm.product(gemm.left(x, bits, key), gemm.right(w), room)


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of README's table."""
    head = (
        "| rows x depth x columns | bits | scales | runs on | us, ours | with packing "
        "| torch bf16 | from fp32 | fp32 | of bf16 | packed, of bf16 | packed, of bf16 from fp32 "
        "| of fp32 | packed, of fp32 |"
    )
    rows = (
        f"| {row['shape']} | {row['bits']} | {row['gradient']} | {row['path']} "
        f"| {1e6 * row['seconds_ours']:,.0f} | {1e6 * row['seconds_ours_packed']:,.0f} "
        f"| {1e6 * row['seconds_bf16']:,.0f} | {1e6 * row['seconds_bf16_packed']:,.0f} "
        f"| {1e6 * row['seconds_fp32']:,.0f} "
        f"| {row['ratio_bf16']:.2f}x | {row['ratio_bf16_packed']:.2f}x "
        f"| {row['ratio_bf16_converted']:.2f}x "
        f"| {row['ratio_fp32']:.2f}x | {row['ratio_fp32_packed']:.2f}x |"
        for row in result["rows"]
    )
    return markdown.table(head, rows)
