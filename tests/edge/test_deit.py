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
from tests.edge.in_runtimes import assert_same_in, codes_of, integers_of
from tests.edge.policy_places import PolicyRun, in_torchs_layout
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


@pytest.mark.slow
def test_it_is_the_same_in_runtimes(place: PolicyRun) -> None:
    assert_same_in(place, deit_tiny())


@pytest.mark.slow
def test_it_is_the_same_in_c(tmp_path: Path) -> None:
    need_gcc()
    graph = deit_tiny()
    inputs = in_torchs_layout(codes_of(graph))
    saved = save_c99(graph, np.zeros(inputs.shape, np.float32), tmp_path / "c", {})
    found = CompiledRunner(saved.path, ("-O3", "-march=native")).predict_int8(inputs)
    expected = evaluate_int8(graph, codes_of(graph))
    assert np.count_nonzero(found.reshape(expected.shape) != expected) == 0
    assert len(np.unique(expected)) > 4, "the outputs say nothing"
