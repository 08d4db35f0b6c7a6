"""Norms that an ONNX file spells out, as files before opset 17 have layer norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fedkit.graph.spelt_norms import Ref, Said, SpeltNorm, spelt_norms

_SAYS = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Div": "div",
    "Pow": "power",
    "Sqrt": "root",
    "Reciprocal": "inverse",
    "ReduceMean": "mean",
}


def spelt(
    model: onnx.ModelProto, reads: Mapping[str, Sequence[str]], inputs: Sequence[str]
) -> Mapping[Any, SpeltNorm]:
    """Return the last value of each norm of activations -> that norm; its dims may be below 0.

    Args:
        model: Of which nodes are in order.
        reads: Name of a value -> what is computed from it.
        inputs: Names of the model's inputs.
    """
    makers = {node.output[0]: node for node in model.graph.node if len(node.output) == 1}
    constants = _constants(model)

    def said(value: Ref) -> Said | None:
        node = makers.get(str(value))
        return None if node is None else _said(node, constants)

    found = spelt_norms(makers, said, lambda value: reads.get(str(value), ()))
    depends = set(inputs)
    for node in model.graph.node:
        if not depends.isdisjoint(node.input):
            depends.update(node.output)
    return {end: norm for end, norm in found.items() if norm.x in depends}


def _constants(model: onnx.ModelProto) -> Mapping[str, np.ndarray[Any, Any]]:
    """Return the constants that are small enough to be a number or a list of axes."""
    small = {t.name: t for t in model.graph.initializer if np.prod(t.dims, dtype=int) <= _FEW}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            small[node.output[0]] = node.attribute[0].t
    return {name: numpy_helper.to_array(tensor) for name, tensor in small.items()}


_FEW = 8


def _said(node: onnx.NodeProto, constants: Mapping[str, np.ndarray[Any, Any]]) -> Said | None:
    if node.domain or node.op_type not in _SAYS:
        return None
    said = _SAYS[node.op_type]
    if said != "mean":
        return Said(said, tuple(_operand(name, constants) for name in node.input))
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    axes = constants.get(node.input[1]) if len(node.input) > 1 else given.get("axes")
    if axes is None or not given.get("keepdims", 1):
        return None
    return Said(said, (node.input[0],), tuple(sorted(int(axis) for axis in np.ravel(axes))))


def _operand(name: str, constants: Mapping[str, np.ndarray[Any, Any]]) -> Ref:
    value = constants.get(name)
    return name if value is None or value.size != 1 else float(value.item())
