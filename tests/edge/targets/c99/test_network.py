"""A network gives the same logits however its convolutions are packed and compiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.edge.targets.c99.library import InferenceKernels, build, flags_of, need_avx2, need_gcc
from tests.edge.targets.c99.network import CNetwork

Logits = np.ndarray[tuple[int, ...], np.dtype[np.int16]]


def logits_of(path: Path, kind: str, density: float) -> Logits:
    network = CNetwork(InferenceKernels(path), kind, density)
    logits = network.build(16, (8, 16, 24), 2)
    network.run(2)
    for tensor in network.tensors[:-1]:
        tensor.values()  # checks the halo
    return logits.values()


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The kernels, compiled for vectors and without."""
    need_gcc()
    need_avx2()
    variants = ("avx2-O0", "plain-O1")
    return [build(tmp_path_factory.mktemp(name), *flags_of(name)) for name in variants]


@pytest.mark.parametrize("density", [0.02, 0.3])
def test_all_kinds_and_variants_agree(density: float, libraries: list[Path]) -> None:
    found = [
        logits_of(path, kind, density)
        for path in libraries
        for kind in ("sparse", "dense", "stream8")
    ]
    assert len(np.unique(found[0])) > 3, "the logits say nothing"
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
