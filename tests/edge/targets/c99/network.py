"""A ResNet of random sparse weights made of C kernels; as a program, its time.

    python -m tests.edge.targets.c99.network [native-O3 | plain-O3 | ...] [sparse | dense | stream8]

Blocks are those of ResNet-18 for 32x32 images, with the sum in the second convolution.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from edge.targets.c99 import pack
from edge.targets.c99.pack import Phases, Planes
from fedkit.graph.ir import Window
from tests.edge.targets.c99 import library
from tests.edge.targets.c99.library import (
    InferenceKernels,
    RequantArguments,
    SumArguments,
    TensorBuffer,
)

KERNELS = ("load", "split", "sparse", "stream", "dense", "add", "mean", "linear")
SAME = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
HALF = Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))
SHORTCUT = Window((1, 1), (2, 2))
ADDED = SumArguments((20000, 18000), (-10, -128), 15, -128, -128, 127)

Array = NDArray[Any]


class NetworkStep(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("layer", "planes", "source", "other", "out")),
    )


@dataclass
class CNetwork:
    """A network's steps; every tensor keeps its own memory.

    Attributes:
        kind: How convolutions are packed, as `InferenceKernels.conv` has it.
        density: Share of the weights that are not zero, in every convolution.
        bytes: Of all packed weights.
    """

    kernels: InferenceKernels
    kind: str
    density: float
    rng: Generator = field(default_factory=lambda: np.random.default_rng(0))
    steps: list[NetworkStep] = field(default_factory=list)
    tensors: list[TensorBuffer] = field(default_factory=list)

    def build(self, size: int, widths: tuple[int, ...], blocks: int) -> TensorBuffer:
        """Add all steps; return the logits."""
        image = self.rng.integers(-128, 128, (size, size, 3)).astype(np.int8)
        x = self._tensor(Planes(3, size, size, 1, 1, 120))
        self._step("load", None, x, self.kernels.keep(image), planes=x.planes)
        x = self._conv(x, pack.distances(x.planes, SAME), self._like(x, widths[0], size))
        for number, width in enumerate(widths):
            for block in range(blocks):
                x = self._block(x, width, 2 if number and not block else 1)
        features = self._tensor(Planes(widths[-1], 1, 1))
        mean = RequantArguments(
            np.zeros(1, int), np.array([2**30]), np.array([30 + 4]), -128, -128, 127
        )
        ones = np.ones((1, x.planes.height**2), np.int8)
        struct = self.kernels.requant(mean, ones, x.planes.zero)
        self._step("mean", struct, features, x.address, planes=x.planes)
        logits = self._tensor(Planes(10, 1, 1))
        weights = self.rng.integers(-127, 128, (10, widths[-1])).astype(np.int8)
        self._step(
            "linear",
            library.CLinear(
                widths[-1], 10, self._requant(10, 0, weights, 0), self.kernels.keep(weights)
            ),
            logits,
            features.address,
        )
        return logits

    def run(self, repeats: int) -> Array:
        """Run it so many times; return the microseconds of each."""
        steps = (NetworkStep * len(self.steps))(*self.steps)
        times = np.zeros(repeats)
        scratch = np.empty(1 << 20, np.uint8)
        self.kernels.library.run_steps(
            ctypes.byref(steps),
            len(steps),
            ctypes.c_void_p(scratch.ctypes.data),
            repeats,
            ctypes.c_void_p(times.ctypes.data),
        )
        return times

    def _block(self, x: TensorBuffer, width: int, stride: int) -> TensorBuffer:
        size = x.planes.height // stride
        hidden, other = self._like(x, width, size), x
        if stride == 1:
            self._conv(x, pack.distances(x.planes, SAME), hidden)
        else:
            phases = Phases(x.planes, HALF, hidden.planes.row)
            split = self._tensor(phases.planes)
            layouts = [library.planes_struct(p) for p in (phases.source, phases.planes)]
            self._step("split", library.CPhases(2, 2, 1, 1, *layouts), split, x.address)
            self._conv(split, phases.distances(HALF), hidden)
            other = self._like(x, width, size)
            self._conv(split, phases.distances(SHORTCUT), other, zero=-10)
        return self._conv(hidden, pack.distances(hidden.planes, SAME), other, zero=-10, add=True)

    def _conv(
        self, x: TensorBuffer, at: Array, out: TensorBuffer, zero: int = -128, add: bool = False
    ) -> TensorBuffer:
        shape = out.planes.channels, *at.shape
        weights = np.where(self.rng.random(shape) < self.density, self._values(shape), 0)
        weights = weights.astype(np.int8)
        common = (
            library.planes_struct(out.planes),
            self._requant(out.planes.channels, zero, weights, x.planes.zero),
            x.planes.row,
        )
        total = self.kernels.sum_struct(ADDED) if add else None
        struct = self.kernels.conv_struct(self.kind, weights, at, common, total, 1)
        self._step(self.kind.rstrip("48"), struct, out, x.address, out.address if add else 0)
        return out

    def _values(self, shape: tuple[int, ...]) -> Array:
        """Draw weights as pruning by magnitude leaves them: none is small."""
        return self.rng.integers(50, 128, shape) * self.rng.choice([-1, 1], shape)

    def _requant(self, outputs: int, zero: int, weights: Array, source: int) -> library.CRequant:
        multiplier = self.rng.integers(2**30 + 1, 2**31, outputs)
        shift = self.rng.integers(38, 41, outputs)
        bias = self.rng.integers(-2000, 8000, outputs)
        how = RequantArguments(bias, multiplier, shift, zero, -128, 127)
        return self.kernels.requant(how, weights, source)

    def _like(self, x: TensorBuffer, channels: int, size: int) -> TensorBuffer:
        return self._tensor(Planes(channels, size, size, 1, 1, 0))

    def _tensor(self, planes: Planes) -> TensorBuffer:
        self.tensors.append(TensorBuffer(planes))
        return self.tensors[-1]

    def _step(
        self,
        kernel: str,
        struct: ctypes.Structure | None,
        out: TensorBuffer,
        source: int,
        other: int = 0,
        planes: Planes | None = None,
    ) -> None:
        layout = library.planes_struct(planes) if planes else None
        addresses = [self.kernels.keep_struct(s) if s else None for s in (struct, layout)]
        number = KERNELS.index(kernel)
        self.steps.append(NetworkStep(number, *addresses, source, other, out.address))


def main(variant: str = "native-O3", kind: str = "sparse") -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = library.build(Path(folder), *library.flags_of(variant))
        for density in (0.01, 0.05, 0.1, 0.3, 1.0):
            network = CNetwork(InferenceKernels(path), kind, density)
            network.build(32, (16, 32, 64, 128), 2)
            times = network.run(300)[100:]
            median, best = float(np.median(times)), float(times.min())
            print(f"{variant} {kind} at {density}: {median:.0f} us, at best {best:.0f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
