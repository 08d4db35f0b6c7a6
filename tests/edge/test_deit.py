"""A Transformer of a published size, DeiT-tiny: as many integers as people's models have."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge.define.interpret_int8 import evaluate_int8
from edge.export import save_c99
from edge.targets.c99.runner import CompiledRunner
from fedkit.graph import ir
from fedkit.nn.transformers import Sizes, TokenClassifier
from tests.edge.in_runtimes import integers_of
from tests.edge.inputs import integers_for
from tests.edge.policy_places import PolicyRun, in_torchs_layout
from tests.edge.single_ops import Codes
from tests.edge.targets.c99.library import need_gcc

SHAPE, PATCH, CLASSES = (3, 224, 224), 16, 1000
SIZES = Sizes(192, 3, 768, 12, norm_first=True, biases=True)
PARAMETERS = 5_717_416
"""Of the published model (Touvron et al., 2021), without its distillation."""


@functools.cache
def deit_tiny() -> ir.Graph:
    """Return its int8 graph, of random weights."""
    torch.manual_seed(0)
    patches = nn.Conv2d(SHAPE[0], SIZES.width, PATCH, PATCH)
    model = TokenClassifier(patches, (SHAPE[1] // PATCH) ** 2, SIZES, CLASSES)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS
    return integers_of(model, SHAPE)


IMAGES, AT_ONCE = 100, 4


@functools.cache
def codes() -> Codes:
    return integers_for(deit_tiny(), np.random.default_rng(1), IMAGES)


@functools.cache
def expected(policy: str) -> Codes:
    graph, starts = deit_tiny(), range(0, IMAGES, AT_ONCE)
    return np.concatenate([evaluate_int8(graph, codes()[i : i + AT_ONCE], policy) for i in starts])


def assert_same(found: Codes, policy: str) -> None:
    outputs = expected(policy)
    assert np.count_nonzero(found.reshape(outputs.shape) != outputs) == 0
    assert len(np.unique(outputs)) > 4, "the outputs say nothing"


@pytest.mark.slow
def test_it_is_the_same_in_runtimes(place: PolicyRun) -> None:
    assert_same(place.run(deit_tiny(), codes()), place.policy)


@pytest.mark.slow
def test_it_is_the_same_in_c(tmp_path: Path) -> None:
    need_gcc()
    inputs = in_torchs_layout(codes())
    saved = save_c99(deit_tiny(), np.zeros(inputs[:2].shape, np.float32), tmp_path / "c", {})
    runner = CompiledRunner(saved.path, ("-O3", "-march=native"))
    assert_same(runner.predict_int8(inputs), "half_up")
