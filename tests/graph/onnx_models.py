"""ONNX files made by hand, what onnxruntime makes of them, and files that are spoilt."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]
SHAPE = (3, 8, 10)


def runtime(content: bytes, inputs: Floats) -> Floats:
    """Return what onnxruntime computes, one example at a time."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it refuses it raises too
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (port,) = session.get_inputs()
    return np.concatenate([session.run(None, {port.name: one[None]})[0] for one in inputs])


def assert_close(found: Floats, expected: Floats) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 2e-5 * max(1e-3, np.abs(expected).max())


Attributes = dict[str, Any]


def weights(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def file(
    *nodes: onnx.NodeProto,
    opset: int = 17,
    shape: Sequence[int | str | None] = (1, *SHAPE),
    kind: int = TensorProto.FLOAT,
    gives: int | None = None,
    **constants: NDArray[Any],
) -> onnx.ModelProto:
    """Return a model from `x` to `y`; the constants are initialisers."""
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", gives or kind, (None, None))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("my.domain", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=min(10, 3 + opset // 3))


def node(operator: str, inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    """Return a node; an input "-" is left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(operator, names, output.split(), name=f"my {operator}", **attributes)


def flat(*nodes: onnx.NodeProto, **options: Any) -> bytes:
    """Return a file in which a Flatten of `m` gives the output."""
    return file(*nodes, node("Flatten", "m"), **options).SerializeToString()


def integers(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def number(value: float) -> Floats:
    return np.array(value, np.float32)


NORM = {name: np.abs(weights(3, seed=seed)) for seed, name in enumerate("sbuv")}
KERNEL = weights(4, 3, 3, 2)
PADS = integers(0, 0, 1, 2, 0, 0, 0, 3)

FORMS: dict[str, Callable[[], bytes]] = {
    "conv, asymmetric padding": lambda: flat(
        node("Conv", "x w", "m", pads=[0, 1, 2, 0], strides=[2, 1]), w=KERNEL
    ),
    "conv, padding never reached": lambda: flat(
        node("Conv", "x w b", "m", pads=[1, 1, 1, 1], strides=[2, 2]), w=KERNEL, b=weights(4)
    ),
    "conv, same upper": lambda: flat(
        node("Conv", "x w", "m", auto_pad="SAME_UPPER", strides=[2, 3]), w=KERNEL
    ),
    "conv, same lower": lambda: flat(
        node("Conv", "x w", "m", auto_pad="SAME_LOWER", strides=[3, 2]), w=KERNEL
    ),
    "conv, valid": lambda: flat(
        node("Conv", "x w", "m", auto_pad="VALID", kernel_shape=[3, 2]), w=KERNEL
    ),
    "depthwise with multiplier": lambda: flat(
        node("Conv", "x w b", "m", group=3), w=weights(6, 1, 2, 2), b=weights(6)
    ),
    "gemm as it is": lambda: file(
        node("Gemm", "x w"), shape=(1, 6), w=weights(6, 4)
    ).SerializeToString(),
    "gemm, all attributes": lambda: file(
        node("Gemm", "x w b", transB=1, alpha=0.5, beta=2.0),
        shape=("n", 6),
        w=weights(4, 6),
        b=weights(1, 4),
    ).SerializeToString(),
    "gemm, one bias": lambda: file(
        node("Gemm", "x w b"), shape=("n", 6), w=weights(6, 4), b=number(2)
    ).SerializeToString(),
    "matmul, add": lambda: file(
        node("MatMul", "x w", "m"),
        node("Add", "b m"),
        shape=("n", 6),
        w=weights(6, 4),
        b=weights(4),
    ).SerializeToString(),
    "batch norm": lambda: flat(node("BatchNormalization", "x s b u v", "m", epsilon=0.1), **NORM),
    "batch norm, old": lambda: flat(
        node("BatchNormalization", "x s b u v", "m", spatial=1), opset=7, **NORM
    ),
    "clip, attributes": lambda: flat(node("Clip", "x", "m", min=0.0, max=6.0), opset=7),
    "clip, no upper attribute": lambda: flat(node("Clip", "x", "m", min=0.0), opset=10),
    "clip, inputs": lambda: flat(node("Clip", "x l h", "m"), l=number(0), h=number(6)),
    "clip, no upper input": lambda: flat(node("Clip", "x l -", "m"), l=number(0)),
    "clip, lists of one": lambda: flat(
        node("Clip", "x l h", "m"), l=number(0).reshape(1), h=number(6).reshape(1)
    ),
    "clip, infinite": lambda: flat(node("Clip", "x l h", "m"), l=number(0), h=number(np.inf)),
    "relu": lambda: flat(node("Relu", "x", "m")),
    "add": lambda: flat(node("Relu", "x", "r"), node("Add", "r x", "m")),
    "sum of one": lambda: flat(node("Relu", "x", "r"), node("Sum", "r", "m")),
    "sum of four": lambda: flat(
        node("Relu", "x", "r"), node("Exp", "x", "e"), node("Sum", "x r e c", "m"), c=number(2)
    ),
    "larger than a number": lambda: flat(node("Max", "c x", "m"), c=number(0)),
    "smaller than a number": lambda: flat(node("Min", "x c", "m"), c=number(0.5)),
    "global average": lambda: flat(node("GlobalAveragePool", "x", "m")),
    "mean, attribute": lambda: flat(node("ReduceMean", "x", "m", axes=[-1, 2])),
    "mean, input": lambda: file(
        node("ReduceMean", "x a", keepdims=0), opset=18, a=integers(2, 3)
    ).SerializeToString(),
    "average": lambda: flat(node("AveragePool", "x", "m", kernel_shape=[2, 3], strides=[2, 2])),
    "average, padding": lambda: flat(
        node("AveragePool", "x", "m", kernel_shape=[3, 3], pads=[1, 0, 2, 1])
    ),
    "average, padding counts": lambda: flat(
        node("AveragePool", "x", "m", kernel_shape=[3, 3], pads=[1, 0, 2, 1], count_include_pad=1)
    ),
    "average, rounded up": lambda: flat(
        node("AveragePool", "x", "m", kernel_shape=[3, 4], strides=[2, 3], ceil_mode=1)
    ),
    "average, dilated": lambda: flat(
        node("AveragePool", "x", "m", kernel_shape=[3, 2], dilations=[2, 3], pads=[1, 0, 2, 1]),
        opset=19,
    ),
    "maximum, dilated": lambda: flat(
        node("MaxPool", "x", "m", kernel_shape=[3, 2], dilations=[2, 3], strides=[1, 2])
    ),
    "maximum": lambda: flat(node("MaxPool", "x", "m", kernel_shape=[2, 2])),
    "maximum, ceil": lambda: flat(
        node("MaxPool", "x", "m", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    ),
    "maximum, same": lambda: flat(
        node("MaxPool", "x", "m", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")
    ),
    "pad, attribute": lambda: flat(node("Pad", "x", "m", pads=PADS.tolist()), opset=9),
    "pad, input": lambda: flat(node("Pad", "x p v", "m"), p=PADS, v=number(0)),
    "pad, axes": lambda: flat(
        node("Pad", "x p - a", "m"), opset=18, p=integers(1, 0, 2, 0), a=integers(-1, 2)
    ),
    "reshape": lambda: file(node("Reshape", "x s"), s=integers(0, -1)).SerializeToString(),
    "reshape by a computed shape": lambda: file(
        node("Shape", "x", "s", end=1),
        node("Constant", "", "r", value_ints=[-1]),
        node("Concat", "s r", "t", axis=0),
        node("Reshape", "x t"),
        shape=("n", *SHAPE),
    ).SerializeToString(),
    "flatten of a batch of one": lambda: file(node("Flatten", "x", axis=0)).SerializeToString(),
    "flatten behind one channel": lambda: file(
        node("Flatten", "x", axis=2), shape=("n", 1, 8, 10)
    ).SerializeToString(),
    "reshape of any batch": lambda: file(
        node("Reshape", "x s"), shape=("n", *SHAPE), s=integers(-1, 240)
    ).SerializeToString(),
    "squeeze, attribute": lambda: file(
        node("GlobalAveragePool", "x", "m"), node("Squeeze", "m", axes=[2, 3]), opset=11
    ).SerializeToString(),
    "squeeze, input": lambda: file(
        node("GlobalAveragePool", "x", "m"), node("Squeeze", "m a"), a=integers(-1, 2)
    ).SerializeToString(),
    "unsqueeze": lambda: flat(node("Unsqueeze", "x a", "m"), shape=(1, 6), a=integers(2, 3)),
    "identity, dropout": lambda: flat(
        node("Identity", "x", "i"), node("Dropout", "i", "d"), node("Relu", "d", "m")
    ),
    "weights computed": lambda: flat(
        node("Transpose", "w", "t", perm=[1, 0, 3, 2]),
        node("Mul", "t c", "k"),
        node("Conv", "x k", "m"),
        w=weights(3, 5, 2, 3),
        c=number(0.5),
    ),
    "add a constant": lambda: flat(node("Add", "x c", "m"), c=weights(3, 1, 1)),
    "subtract a constant": lambda: flat(node("Sub", "x c", "m"), c=weights(1, 3, 1, 1)),
    "subtract from a constant": lambda: flat(node("Sub", "c x", "m"), c=number(2)),
    "multiply by a constant": lambda: flat(node("Mul", "c x", "m"), c=weights(3, 1, 1)),
    "divide by a constant": lambda: flat(node("Div", "x c", "m"), c=weights(1)),
}


def damaged(content: bytes, choose: random.Random) -> bytes:
    """Return the file with some bytes changed, and perhaps without its end."""
    changed = bytearray(content)
    for _ in range(choose.randint(1, 4)):
        changed[choose.randrange(len(changed))] = choose.randrange(256)
    return bytes(changed[: choose.randrange(len(changed))] if choose.random() < 0.2 else changed)


ODD = (-(2**63), -2, -1, 0, 1, 2, 3, 5, 1000, 2**31, 2**40)


def distorted(content: bytes, choose: random.Random) -> bytes:
    """Return a well-formed file that says something else in one to three places."""
    model = onnx.load_from_string(content)
    graph = model.graph
    names = [name for node in graph.node for name in (*node.input, *node.output)]
    for _ in range(choose.randint(1, 3)):
        if choose.random() < 0.3:
            spoil(model, names, choose)
            continue
        node = choose.choice(graph.node)
        places: list[Any] = [attribute.ints for attribute in node.attribute if attribute.ints]
        places += [tensor.dims for tensor in graph.initializer]
        kind = choose.randrange(6)
        if kind == 0 and places:
            place = choose.choice(places)
            place[:] = [choose.choice((*place, choose.choice(ODD))) for _ in (*place, 0)][
                : choose.randint(1, len(place) + 1)
            ]
        elif kind == 1 and node.input:
            node.input[choose.randrange(len(node.input))] = choose.choice((*names, ""))
        elif kind == 2 and node.attribute:
            choose.choice(node.attribute).i = choose.choice(ODD)
        elif kind == 3:
            node.op_type = choose.choice(graph.node).op_type if choose.random() < 0.3 else "Clip"
        elif kind == 4:
            dims = graph.input[0].type.tensor_type.shape.dim
            choose.choice(dims).dim_value = choose.choice(ODD)
        else:
            model.opset_import[0].version = choose.randint(6, 29)
    return model.SerializeToString()


def spoil(model: onnx.ModelProto, names: list[str], choose: random.Random) -> None:
    """Do to a file what only the file as a whole tells."""
    graph, kind = model.graph, choose.randrange(7)
    nodes, constants = list(graph.node), list(graph.initializer)
    if kind == 0:
        choose.choice(nodes).output[:1] = [choose.choice(names)]
    elif kind == 1:
        graph.input[0].type.tensor_type.elem_type = choose.randrange(24)
    elif kind == 2:
        choose.shuffle(nodes)
        copies = [onnx.NodeProto.FromString(each.SerializeToString()) for each in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    elif kind == 3:
        graph.input.append(onnx.ValueInfoProto(name=choose.choice(names)))
    elif constants and kind == 4:
        del graph.initializer[choose.randrange(len(constants))]
    elif constants and kind == 5:
        tensor = choose.choice(constants)
        tensor.data_location = TensorProto.EXTERNAL
        where = choose.choice(("/etc/passwd", "../x", "", "x"))
        tensor.external_data.add(key="location", value=where)
    elif constants:
        tensor = choose.choice(constants)
        tensor.raw_data = tensor.raw_data[: choose.randrange(9)] + b"\xff" * choose.randrange(9)
