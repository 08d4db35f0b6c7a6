"""Maps that are enlarged, in exports: what each layer becomes, and models in every runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge import passes
from edge.define.interpret_int8 import evaluate_int8
from edge.export import float_graph
from edge.passes.slim import slim
from edge.targets.fpga.microcode import compile_graph as fpga_steps
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_torch import lower
from fedkit.graph.interpret import evaluate
from tests.edge.in_runtimes import (
    assert_same_in,
    assert_same_in_c,
    assert_same_in_litert_alone,
    codes_of,
    integers_of,
)
from tests.edge.policy_places import PolicyRun
from tests.enlarging import KINDS, built


@pytest.mark.parametrize("kind", KINDS)
def test_models_in_runtimes(kind: str, place: PolicyRun) -> None:
    assert_same_in(place, integers_of(*built(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_models_in_litert_without_xnnpack(kind: str) -> None:
    assert_same_in_litert_alone(integers_of(*built(kind)))


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["speed", "size"])
@pytest.mark.parametrize("kind", KINDS)
def test_models_in_c(kind: str, goal: str, tmp_path: Path) -> None:
    assert_same_in_c(integers_of(*built(kind)), goal, tmp_path)


def test_the_fpga_refuses_it_by_name() -> None:
    with pytest.raises(ExportError, match=r"\bdepth_to_space\b"):
        fpga_steps(integers_of(*built("decoder")), 4)


# What a layer becomes


def kinds(graph: ir.Graph) -> list[str]:
    return [op.kind for op in graph.ops]


def test_norms_and_activations_join_the_convolution_before_the_blocks() -> None:
    graph = float_graph(*built("decoder"))
    assert kinds(graph)[1:-2] == [
        *("conv2d", "depth_to_space", "take"),
        *("conv2d", "depth_to_space", "take"),
        *("conv2d", "depth_to_space"),
    ]
    found = [op.activation for op in graph.ops if op.kind == "conv2d"]
    assert found == ["relu", "relu", "relu6", "none"]


@pytest.mark.parametrize("kind", KINDS)
def test_passes_change_no_number(kind: str) -> None:
    model, shape = built(kind)
    x = torch.randn(3, *shape)
    found = evaluate(float_graph(model, shape), ir.to_graph_layout(x.numpy()))
    with torch.no_grad():
        np.testing.assert_allclose(found, model(x).numpy(), rtol=0, atol=2e-6)


def test_what_others_read_too_stays_before_the_relu() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 3, 2, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.up(x)
            return (torch.relu(x) * x).mean((2, 3))

    graph = passes.optimise(lower(Both(), (2, 3, 3)))
    assert kinds(graph) == ["conv2d", "depth_to_space", "relu", "mul", "mean"]


# Slimming


@pytest.mark.parametrize("kind", ["decoder", "separable", "shuffles", "series"])
def test_empty_channels_go_with_all_their_pixels(kind: str) -> None:
    model, shape = built(kind)
    layers = [m for m in model.modules() if isinstance(m, nn.ConvTranspose1d | nn.ConvTranspose2d)]
    with torch.no_grad():
        if layers:
            layers[0].weight[:, ::2] = 0
            if layers[0].groups > 1:
                layers[0].weight[::2] = 0
            if layers[0].bias is not None:
                layers[0].bias[::2] = 0
        else:
            conv, norm = list(model.modules())[1:3]
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            conv.weight[:4], norm.weight[:4], norm.bias[:4] = 0, 0, 0
    graph = integers_of(model, shape)
    less = slim(graph)
    codes = codes_of(graph)
    np.testing.assert_array_equal(evaluate_int8(less, codes), evaluate_int8(graph, codes))
    before, after = (
        [g.tensors[op.output].shape[3] for op in g.ops if op.kind == "depth_to_space"]
        for g in (graph, less)
    )
    assert after[0] < before[0]
