"""Count the instructions of one convolution on an emulated aarch64 processor.

    python -m tests.edge.targets.c99.count

The layer is one of ResNet-18 of widths 16 to 128 on 32x32 images: 16x16 pixels, 32 channels to 32,
3x3. Instructions say nothing of the time that a processor takes for each.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from edge.targets.c99.pack import Planes
from fedkit.graph.ir import Window
from tests.edge.targets.c99.library import (
    AARCH64,
    C99,
    Emulated,
    InferenceKernels,
    RequantArguments,
    emulate,
    in_one,
)

SIZE, CHANNELS = 16, 32
SAME = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))


def instructions(emulated: Emulated, kind: str, density: float) -> int:
    """Return how many one call of `ek_conv_*` executes; kinds are as in `InferenceKernels`."""
    rng = np.random.default_rng(0)
    planes = Planes(CHANNELS, SIZE, SIZE, 1, 1, 0)
    kernels = InferenceKernels(emulated)
    x = kernels.load(rng.integers(-128, 128, (CHANNELS, SIZE, SIZE)), planes)
    shape = CHANNELS, CHANNELS, 3, 3
    # As pruning by magnitude leaves them: none is small.
    values = rng.integers(50, 128, shape) * rng.choice([-1, 1], shape)
    weights = np.where(rng.random(shape) < density, values, 0).astype(np.int8)
    multiplier = rng.integers(2**30 + 1, 2**31, CHANNELS)
    how = RequantArguments(
        np.zeros(CHANNELS, int), multiplier, np.full(CHANNELS, 40), -128, -128, 127
    )
    return emulated.processor.count(
        lambda: kernels.conv(kind, x, weights, SAME, how, planes),
    )


def main() -> None:
    for simd in AARCH64:
        with tempfile.TemporaryDirectory() as folder:
            flags = ("-O3", f"-I{C99}")
            emulated = Emulated(emulate([in_one(Path(folder))], simd, *flags))
            for kind, density in (
                *(("dense", 1.0), ("sparse", 1.0)),
                *(("sparse", density) for density in (0.1, 0.05, 0.01)),
            ):
                count = instructions(emulated, kind, density)
                print(f"{simd} {kind} at {density}: {count / 1000:.0f} k instructions")


if __name__ == "__main__":
    main()
