"""The interpreter on its own: what it takes, and what it shows a visitor."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edge.quantize.to_int8 import quantize
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.interpret import evaluate

Build = Callable[..., ir.Graph]


def test_any_batch_is_evaluated_and_every_activation_shown(linear_graph: Build) -> None:
    graph = linear_graph(np.array([[1.0, 2.0]]), np.array([3.0]))
    seen: dict[str, list[float]] = {}
    inputs = np.array([[1, 1], [2, 0], [0, 0]], np.float32)
    result = evaluate(
        graph, inputs, lambda name, value: seen.update({name: value.ravel().tolist()})
    )
    assert result.tolist() == [[6.0], [5.0], [3.0]]
    assert seen == {"x": [1, 1, 2, 0, 0, 0], "y": [6, 5, 3]}


@pytest.mark.parametrize("inputs", [np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float64)])
def test_inputs_that_do_not_fit_are_refused(linear_graph: Build, inputs: ir.Array) -> None:
    graph = linear_graph(np.ones((1, 2)), np.zeros(1))
    with pytest.raises(ExportError, match=r"the graph takes float32 \[n, 2\]"):
        evaluate(graph, inputs)


def test_an_int8_graph_is_refused(linear_graph: Build) -> None:
    inputs = np.ones((1, 2), np.float32)
    graph = quantize(linear_graph(np.ones((1, 2)), np.zeros(1)), inputs)
    with pytest.raises(ExportError, match="float graphs only"):
        evaluate(graph, inputs)
