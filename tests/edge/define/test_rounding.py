"""The interpreter, under each runtime's policy, gives the runtime's integers: all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from edge.define.interpret_int8 import evaluate_int8
from edge.define.rounding import POLICIES, add_multipliers, policy
from edge.export import int8_graph
from edge.targets.tflite.runner import Runtime
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.nn.zoo import build_model
from tests.edge.define.tflite_runtimes import WHOLE, assert_equal_integers, int8_inputs
from tests.edge.models import MODELS, Flat, images
from tests.sets import slow_but


@pytest.mark.parametrize("seed", slow_but((0,), range(3)))
@pytest.mark.parametrize("name", MODELS)
def test_each_op_is_the_runtimes(
    name: str, seed: int, runtime: Runtime, randomise: Callable[[nn.Module], nn.Module]
) -> None:
    torch.manual_seed(seed)
    body = randomise(MODELS[name]())
    model = body if name in ("residual", "flatten, linear") else Flat(body)
    data = images(3, 8, 10, n=60)
    assert_equal_integers(int8_graph(model.eval(), data[:30] * (seed + 1)), data, runtime)


@pytest.mark.parametrize("side", [(7, 7), (4, 4), (8, 10), (3, 5)])
@pytest.mark.parametrize(("low", "shift"), [(-4.0, 0.3), (0.0, 0.3), (0.0, -1.7)])
def test_means_of_all_sizes_are_the_runtimes(
    side: tuple[int, int], low: float, shift: float, runtime: Runtime
) -> None:
    # Seldom active channels have small means of large values: their zero points weigh most.
    data = np.maximum(images(16, *side, n=200) + np.float32(shift), np.float32(low))
    graph = int8_graph(Flat(nn.AdaptiveAvgPool2d(1)).eval(), data[:32])
    assert_equal_integers(graph, data, runtime)


@pytest.mark.parametrize("name", slow_but(("resnet8",), WHOLE))
def test_whole_models_are_the_runtimes(
    name: str, runtime: Runtime, randomise: Callable[[nn.Module], nn.Module]
) -> None:
    model, data = randomise(build_model(name, WHOLE[name], 10)), images(*WHOLE[name], n=30)
    assert_equal_integers(int8_graph(model, data[:20]), data, runtime)


def test_ours_is_within_one_step_of_the_others() -> None:
    model, data = build_model("resnet8", (3, 16, 16), 10).eval(), images(3, 16, 16, n=20)
    graph = int8_graph(model, data)
    codes = ir.to_graph_layout(int8_inputs(graph, data))
    ours, *others = (evaluate_int8(graph, codes, name).astype(int) for name in POLICIES)
    assert all(np.abs(other - ours).max() <= 1 for other in others)
    assert any((other != ours).any() for other in others)


def test_the_multipliers_of_an_addition_fit_their_bits() -> None:
    for left, right in ((1.0, 1.0), (127.9, 0.001), (2.0**-9, 2.0**-20), (0.3, 0.99999)):
        a, b, shift = add_multipliers(left, right)
        assert min(a, b) >= 0 and 2**13 <= max(a, b) < 2**15 and 1 <= shift <= 30
        assert a == pytest.approx(left * 2**shift, abs=0.5)
        assert b == pytest.approx(right * 2**shift, abs=0.5)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ExportError, match="'half_odd' is unknown; choose one of"):
        policy("half_odd")
