"""Group and instance norms, as torch and ONNX files have them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from edge import passes
from fedkit.core.errors import ExportError, PlanError
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.layer_norm import GroupNorm
from fedkit.graph import from_onnx, from_torch, ir
from fedkit.graph.interpret import evaluate
from fedkit.nn.zoo import seeded
from tests.graph.exported import exported
from tests.sets import slow_but

SHAPE = (6, 4, 5)

LAYERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "group norm": (lambda: nn.GroupNorm(3, 6, eps=1e-3), 3),
    "without parameters": (lambda: nn.GroupNorm(2, 6, affine=False), 2),
    "one group": (lambda: nn.GroupNorm(1, 6), 1),
    "instance norm": (lambda: nn.InstanceNorm2d(6), 6),
    "affine instance norm": (lambda: nn.InstanceNorm2d(6, affine=True), 6),
}


def model_of(layer: Callable[[], nn.Module]) -> nn.Module:
    def make() -> nn.Module:
        norm = layer()
        for parameter in norm.parameters():
            nn.init.normal_(parameter, 1.0, 0.5)
        return nn.Sequential(
            nn.Conv2d(6, 6, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(120, 3)
        )

    return seeded(make, 0)


def inputs_of(count: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0.5, 2, (count, *SHAPE)).astype("f4"))


@pytest.mark.parametrize("name", slow_but(["group norm"], LAYERS))
def test_both_readers_read_what_torch_computes(name: str) -> None:
    layer, groups = LAYERS[name]
    model = model_of(layer).eval()
    wanted = model(inputs_of()).detach().numpy()
    read = from_torch.lower(model, SHAPE), from_onnx.lower(exported(model, SHAPE))
    for graph in map(passes.optimise, read):
        (norm,) = (op for op in graph.ops if op.kind == "group_norm")
        assert norm.activation == "relu" and norm.attributes is not None
        assert norm.attributes.groups == groups  # type: ignore[attr-defined]
        found = evaluate(graph, ir.to_graph_layout(inputs_of().numpy()))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    plan = capture(model, SHAPE)
    (op,) = (op for op in plan.ops if isinstance(op, GroupNorm))
    has_parameters = any(True for _ in model[1].parameters())  # type: ignore[index]
    assert op.groups == groups and (op.weight == "1.weight") == has_parameters


def one_node(operator: str, opset: int, scales: int, **attributes: Any) -> onnx.ModelProto:
    random = np.random.default_rng(1)
    port = helper.make_tensor_value_info
    names = "scale", "bias"
    constants = [
        numpy_helper.from_array(random.standard_normal(scales).astype(np.float32), name)
        for name in names
    ]
    node = helper.make_node(operator, ["x", *names], ["n"], **attributes)
    end = helper.make_node("Flatten", ["n"], ["y"])
    ports = (
        [port("x", TensorProto.FLOAT, ["b", *SHAPE])],
        [port("y", TensorProto.FLOAT, ["b", 120])],
    )
    graph = helper.make_graph([node, end], "one", *ports, constants)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.mark.parametrize(
    ("operator", "opset", "scales", "attributes"),
    [
        ("GroupNormalization", 18, 3, {"num_groups": 3}),
        ("GroupNormalization", 21, 6, {"num_groups": 2, "epsilon": 0.1}),
        ("InstanceNormalization", 17, 6, {"epsilon": 0.01}),
    ],
)
def test_nodes_of_onnx_are_read_as_its_reference_computes(
    operator: str, opset: int, scales: int, attributes: dict[str, Any]
) -> None:
    model = one_node(operator, opset, scales, **attributes)
    x = inputs_of().numpy()
    if opset == 18:  # whose reference takes a scale per group for one per channel
        spread = onnx.ModelProto.FromString(model.SerializeToString())
        for tensor in spread.graph.initializer:
            repeated = np.repeat(numpy_helper.to_array(tensor), 2)
            tensor.CopyFrom(numpy_helper.from_array(repeated, tensor.name))
        spread.opset_import[0].version = 21
        (wanted,) = ReferenceEvaluator(spread).run(None, {"x": x})
    else:
        (wanted,) = ReferenceEvaluator(model).run(None, {"x": x})
    expected = np.asarray(wanted, np.float32)
    graph = from_onnx.lower(model.SerializeToString())
    np.testing.assert_allclose(
        evaluate(graph, ir.to_graph_layout(x)), expected, rtol=1e-4, atol=1e-4
    )


def test_running_statistics_are_an_affine_op_in_evaluation_and_refused_in_training() -> None:
    model = model_of(lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True))
    model(inputs_of())
    model.eval()
    graph = from_torch.lower(model, SHAPE)
    assert "affine" in {op.kind for op in graph.ops}
    found = evaluate(graph, ir.to_graph_layout(inputs_of().numpy()))
    np.testing.assert_allclose(found, model(inputs_of()).detach(), rtol=1e-4, atol=1e-4)
    with pytest.raises(PlanError, match=r"'1'.*instance norm with running statistics"):
        capture(model, SHAPE)


def reshaped(shape: tuple[int, ...], *after: str) -> onnx.ModelProto:
    """Return how torch's exporter writes a norm over three groups, and what reads it then."""
    port, random = helper.make_tensor_value_info, np.random.default_rng(1)
    constants = {
        "scale": random.standard_normal(3).astype(np.float32),
        "bias": random.standard_normal(3).astype(np.float32),
        "parts": np.array([0, 3, -1]),
        "shape": np.array([0, *shape]),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "parts"], ["p"]),
        helper.make_node("InstanceNormalization", ["p", "scale", "bias"], ["n"]),
    ]
    names = ["n", *(f"m{number}" for number in range(len(after) - 1)), "y"]
    nodes += [
        helper.make_node(operator, [x, "shape"] if operator == "Reshape" else [x], [y])
        for operator, x, y in zip(after, names, names[1:], strict=False)
    ]
    graph = helper.make_graph(
        nodes,
        "norm",
        [port("x", TensorProto.FLOAT, ["b", *shape])],
        [port("y", TensorProto.FLOAT, ["b", math.prod(shape)])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 20), (6, 1, 20), (3, 8), (12,)])
def test_groups_of_a_reshape_are_no_series(shape: tuple[int, ...]) -> None:
    model = reshaped(shape, "Reshape", "Relu", "Flatten")
    x = np.random.default_rng(2).standard_normal((3, *shape)).astype(np.float32)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    graph = from_onnx.lower(model.SerializeToString())
    found = evaluate(graph, ir.to_graph_layout(x))
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-4, atol=1e-4)


def test_groups_that_something_else_reads_are_refused() -> None:
    model = reshaped((6, 4, 5), "Relu", "Flatten")
    with pytest.raises(ExportError, match=r"a norm of \(1, 3, 40\), which is not reshaped"):
        from_onnx.lower(model.SerializeToString())


@pytest.mark.parametrize("groups", [4, 0])
def test_groups_that_do_not_fit_are_refused(groups: int) -> None:
    model = one_node("GroupNormalization", 21, 6, num_groups=groups)
    with pytest.raises(ExportError, match=f"a norm over {groups} groups of 6 channels"):
        from_onnx.lower(model.SerializeToString())


def test_an_instance_norm_of_other_scales_is_refused() -> None:
    model = one_node("InstanceNormalization", 17, 3)
    with pytest.raises(ExportError, match="3 values for 6 channels"):
        from_onnx.lower(model.SerializeToString())
