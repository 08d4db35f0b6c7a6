"""Models with layers over tokens in everything that runs exports."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge.define.interpret_int8 import evaluate_int8
from edge.ops import matrices
from edge.ops.integer_spec import rescaled
from edge.passes.slim import slim
from fedkit.graph import ir
from tests.edge.in_runtimes import (
    assert_same_in,
    assert_same_in_c,
    assert_same_in_litert_alone,
    codes_of,
    halves_away,
    integers_of,
)
from tests.edge.policy_places import PolicyRun
from tests.tokens import ATTENTION, KINDS, made

ALL = [*KINDS, *ATTENTION]


@pytest.mark.parametrize("kind", ALL)
def test_models_of_people_in_runtimes(kind: str, place: PolicyRun) -> None:
    assert_same_in(place, integers_of(*made(kind)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_people_in_litert_without_xnnpack(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrices, "rescaled", partial(halves_away, rescaled))
    assert_same_in_litert_alone(integers_of(*made(kind)))


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["speed", "size"])
@pytest.mark.parametrize("kind", ALL)
def test_models_of_people_in_c(kind: str, goal: str, tmp_path: Path) -> None:
    assert_same_in_c(integers_of(*made(kind)), goal, tmp_path)


@pytest.mark.parametrize("kind", ALL)
def test_empty_channels_go_where_norms_and_products_do_not_hold_them(kind: str) -> None:
    model, shape = made(kind)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
                layer.weight[:2], layer.bias[:2] = 0, 0
    graph = integers_of(model, shape)
    slimmed, codes = slim(graph), codes_of(graph)
    assert channels_of(slimmed) < channels_of(graph)
    for policy in ("half_up", "half_even", "gemmlowp", "onnxruntime"):
        was, now = (evaluate_int8(each, codes, policy) for each in (graph, slimmed))
        np.testing.assert_array_equal(was, now)


def channels_of(graph: ir.Graph) -> int:
    return sum(graph.tensors[op.output].shape[-1] for op in graph.ops)
