"""What `fedkit support` says, compared with what each part does when it is tried."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor, nn

from edge import passes
from edge.define.interpret_int8 import evaluate_int8
from edge.export import float_graph
from edge.ops.registry import SPECS as INTEGERS
from edge.quantize.to_int8 import quantize
from edge.targets.c99.calls import compile_graph as c_calls
from edge.targets.fpga.microcode import compile_graph as fpga_steps
from edge.targets.onnx import emitter as onnx_file
from edge.targets.registry import NAMES, find_row
from edge.targets.tflite import emitter as tflite
from fedkit.cli import main, support
from fedkit.core.errors import FedkitError, PlanError
from fedkit.engine.base import LocalTraining
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.ops.registry import FAMILIES
from fedkit.engine.plan.capture import capture
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.graph import from_onnx, from_torch, ir
from fedkit.graph.ops.registry import SPECS
from fedkit.nn.norm import L1BatchNorm2d, L1LayerNorm
from fedkit.nn.zoo import MODELS, ZooModel, build_model, smallest_shape
from fedkit.tasks.losses import LOSSES
from fedkit.tasks.metrics import METRICS
from fedkit.tasks.task import Examples, cross_entropy
from tests.calls import Calls
from tests.edge.inputs import floats_for, integers_for
from tests.graph.exported import exported
from tests.sets import slow_but

SHAPE = (4, 6, 6)
HOW = LocalTraining(epochs=1, batch_size=4, lr=0.01, momentum=0.9, weight_decay=0.0)
ROWS: Mapping[str, Mapping[str, str]] = {row["op"]: row for row in support.op_rows()}


def call(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Calls(function)


LAYERS: Mapping[ir.Kind, Callable[[], nn.Module]] = {
    "conv2d": lambda: nn.Conv2d(4, 4, 3),
    "depthwise_conv2d": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "grouped_conv2d": lambda: nn.Conv2d(4, 4, 3, groups=2),
    "conv_transpose2d": lambda: nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1),
    "linear": nn.Identity,  # one is at the end
    "affine": call(lambda x: 2 * x - 1),
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "add": call(lambda x: x + F.relu(x)),
    "sub": call(lambda x: x - F.relu(x)),
    "mul": call(lambda x: x * F.relu(x)),
    "div": call(lambda x: x / (F.relu(x) + 1)),
    "concat": call(lambda x: torch.cat([x, F.relu(x)], 1)),
    "concat_along": call(lambda x: torch.cat([x, F.relu(x)], 2)),
    "transpose": call(lambda x: x.transpose(2, 3)),
    "pad": lambda: nn.ZeroPad2d(1),
    "take": call(lambda x: x[:, 1:, ::2]),
    "depth_to_space": lambda: nn.PixelShuffle(2),
    "resize_linear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "reshape": lambda: nn.AdaptiveAvgPool2d(1),
    "flatten_nchw": nn.Identity,  # one is before the end
    "sum_pool2d": call(lambda x: x.sum(2, keepdim=True)),
    "avg_pool2d": lambda: nn.AvgPool2d(2),
    "max_pool2d": lambda: nn.MaxPool2d(2),
    "mean": call(lambda x: x.mean((2, 3), keepdim=True)),
    "attention": call(lambda x: F.scaled_dot_product_attention(x, x, x)),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "hard_sigmoid": nn.Hardsigmoid,
    "hard_swish": nn.Hardswish,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
    "exp": call(torch.exp),
    "log_sigmoid": nn.LogSigmoid,
    "mish": nn.Mish,
    "erf": call(torch.erf),
    "abs": call(torch.abs),
    "clip": nn.Hardtanh,
    "batch_norm": lambda: nn.BatchNorm2d(4),
    "l1_batch_norm": lambda: L1BatchNorm2d(4),
    "layer_norm": lambda: nn.LayerNorm(SHAPE),
    "l1_layer_norm": lambda: L1LayerNorm(SHAPE),
    "group_norm": lambda: nn.GroupNorm(2, 4),
    "channel_norm": lambda: nn.LayerNorm(SHAPE[-1]),
    "matmul": call(lambda x: x @ x.transpose(2, 3)),
    "softmax": lambda: nn.Softmax(1),
    "log_softmax": lambda: nn.LogSoftmax(1),
}
"""Kind of op -> a layer of torch that becomes it."""


OF_TOKENS = {"embedding"}
"""Kinds that read whole numbers; tests/engine/test_transformers.py has models with them."""


def model_of(kind: ir.Kind) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), LAYERS[kind]())
    features = layer.eval()(torch.zeros(2, *SHAPE)).flatten(1).shape[1]
    return nn.Sequential(*layer, nn.Flatten(), nn.Linear(features, 3)).train()


def data() -> Examples:
    random = np.random.default_rng(0)
    return Examples(random.standard_normal((4, *SHAPE), np.float32), random.integers(0, 3, 4))


# Readers


def test_every_kind_that_is_read_has_a_layer_here() -> None:
    read = [kind for kind, row in ROWS.items() if row["torch_reader"] != "no"]
    read += [kind for kind, row in ROWS.items() if row["onnx_reader"] != "no"]
    assert list(ROWS) == list(SPECS)
    assert LAYERS.keys() == {*read} - OF_TOKENS, "give the kind a layer in LAYERS"


@pytest.mark.parametrize("kind", LAYERS)
def test_torch_models_are_read_as_is_said(kind: ir.Kind) -> None:
    model = model_of(kind)
    if SPECS[kind].only_trains:
        graph = from_torch.read(model, torch.from_numpy(data().inputs), drops=False).graph
        assert graph is not None
        found = {op.kind for op in graph.ops}
    else:
        found = kinds_of(lambda: from_torch.lower(model, SHAPE))
    assert (kind in found) == (ROWS[kind]["torch_reader"] == "yes")


@pytest.mark.parametrize("kind", LAYERS)
def test_onnx_files_are_read_as_is_said(kind: ir.Kind) -> None:
    if kind in SPELLED_OUT:
        content = one_node(SPELLED_OUT[kind])
    else:
        content = exported(model_of(kind).eval(), SHAPE, 20)
    found = kinds_of(lambda: from_onnx.lower(content))
    assert (kind in found) == (ROWS[kind]["onnx_reader"] == "yes")
    assert found or ROWS[kind]["onnx_reader"] == "no"


def kinds_of(read: Callable[[], ir.Graph]) -> set[str]:
    """Return the kinds of ops of a graph, of none if it is refused."""
    try:
        return {op.kind for op in read().ops}
    except FedkitError:
        return set()


SPELLED_OUT = {"mish": "Mish"}
"""Operators that torch's exporter does not use."""


def one_node(operator: str) -> bytes:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"])], "one", ports[:1], ports[1:]
    )
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()


# Training


@pytest.mark.parametrize("kind", LAYERS)
def test_the_torch_engine_trains_as_is_said(kind: ir.Kind) -> None:
    engine = TorchEngine(model_of(kind), cross_entropy)
    _, loss = engine.train(engine.initial_state(), data(), HOW, seed=0)
    assert ROWS[kind]["torch_engine"] == "yes" and np.isfinite(loss)


@pytest.mark.parametrize("kind", slow_but(("linear", "pad", "sub", "affine"), LAYERS))
def test_the_other_engines_train_as_is_said(kind: ir.Kind) -> None:
    model, said = model_of(kind), ROWS[kind]
    state = TorchEngine(model, cross_entropy).initial_state()
    for key, engine in (("sparse_engine", SparseEngine), ("integer_engine", IntegerEngine)):
        if said[key] == "yes":
            _, loss = engine(capture(model, SHAPE), state).train(state, data(), HOW, seed=0)
            assert np.isfinite(loss)
            continue
        with pytest.raises(FedkitError) as refused:
            engine(capture(model, SHAPE), state)
        assert said[key] == "no" or said[key].removesuffix(" not computed") in str(refused.value)


# Exports

EMIT: Mapping[str, Callable[[ir.Graph], object]] = {
    "interpreter": lambda graph: evaluate_int8(
        graph, integers_for(graph, np.random.default_rng(0), 1)
    ),
    "tflite": tflite.emit,
    "onnx": onnx_file.emit,
    "c99": c_calls,
    "fpga": lambda graph: fpga_steps(graph, 4),
}


def integers_of(graph: ir.Graph) -> ir.Graph:
    return quantize(graph, floats_for(graph, np.random.default_rng(0), 16, 2))


def test_every_target_is_tried() -> None:
    assert EMIT.keys() == {"interpreter", *NAMES}


@pytest.mark.parametrize("part", EMIT)
@pytest.mark.parametrize("kind", SPECS)
def test_exports_take_what_is_said(kind: ir.Kind, part: str) -> None:
    said = ROWS[kind][part]
    for seed in range(2):
        graph = support.an_example(kind, seed)
        if said == "yes":
            assert EMIT[part](integers_of(graph)) is not None
        else:
            with pytest.raises(FedkitError, match=rf"\b{kind}\b"):
                EMIT[part](integers_of(graph))
        if said.startswith("as "):
            other = passes.optimise(graph)
            assert {op.kind for op in other.ops} == {*said.removeprefix("as ").split(", ")}
            assert EMIT[part](integers_of(other)) is not None


# Models


ONLY_TORCH = ("char-lstm", "har-gru", "slab-vit-tiny")
"""Models that only torch trains."""

NOT_FPGA = (
    *("vit-tiny", "kwt-1", "char-gpt", *ONLY_TORCH),
    *("resnet18-gn", "resnet18-gn-w16", "mobilenetv3-small", "mobilenetv3-small-w0.5"),
)


@pytest.mark.parametrize("name", slow_but(["resnet8", "unet-w8", "ad-autoencoder"], MODELS))
def test_models_do_what_is_said(name: str) -> None:
    said, shape = support.model_row(name), smallest_shape(name, 3)
    tokens = MODELS[name].takes == "tokens"
    assert said == {
        "name": name,
        "trains_sparse": name not in ONLY_TORCH,
        "trains_int8": name not in ONLY_TORCH,
        "exports": [target for target in NAMES if target != "fpga" or name not in NOT_FPGA],
    }
    model = build_model(name, shape, 10)
    if name in ONLY_TORCH:
        with pytest.raises(PlanError, match=r"a plan has none|which a plan does not hold"):
            capture(model, shape, tokens=tokens)
    else:
        plan = capture(model, shape, tokens=tokens)
        assert SparseEngine(plan).plan is plan
        assert IntegerEngine(plan).plan is plan
    floats = float_graph(model, shape, tokens)
    inputs = floats_for(floats, np.random.default_rng(0), 8)
    graph = quantize(floats, inputs)
    for target in said["exports"]:
        given = ir.from_graph_layout(inputs[:1])
        assert find_row(target).make(graph, given, Path(f"model-{target}")).content


# What is registered otherwise is said otherwise


def test_cells_follow_the_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INTEGERS, "add", replace(INTEGERS["add"], fpga=None))
    monkeypatch.setitem(FAMILIES, "add", replace(FAMILIES["add"], integer=None))
    monkeypatch.setitem(SPECS, "add", replace(SPECS["add"], onnx={}))
    row = next(row for row in support.op_rows() if row["op"] == "add")
    assert row == {
        **ROWS["add"],
        "onnx_reader": "no",
        "integer_engine": "add not computed",
        "fpga": "no",
    }
    assert support.model_row("resnet8") == {
        "name": "resnet8",
        "trains_sparse": True,
        "trains_int8": False,
        "exports": ["tflite", "onnx", "c99"],
    }


def test_a_model_that_nothing_takes_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(channels: int, classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, 2, 1),
            nn.Upsample(size=5, mode="bicubic"),
            nn.Flatten(),
            nn.Linear(50, classes),
        )

    monkeypatch.setitem(MODELS, "odd", ZooModel(odd, 4))
    nothing = {"trains_sparse": False, "trains_int8": False, "exports": []}
    assert support.model_row("odd") == {"name": "odd", **nothing}


# The command


def printed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["fedkit", "support", *arguments])
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return out.getvalue()


def test_the_command_prints_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "MODELS", {"ds-cnn": MODELS["ds-cnn"]})
    found: dict[str, Any] = json.loads(printed(monkeypatch, "--json").splitlines()[-1])
    keys = ["op", "torch_reader", "onnx_reader", "torch_engine", "sparse_engine", "integer_engine"]
    assert [list(row) for row in found["rows"]] == [[*keys, "interpreter", *NAMES]] * len(SPECS)
    assert found["rows"] == list(ROWS.values())
    assert [row["name"] for row in found["models"]] == ["ds-cnn"]


def test_the_command_prints_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"name": "some", "trains_sparse": True, "trains_int8": False, "exports": ["c99", "x"]}
    tasks = {
        "losses": list(support.task_rows(LOSSES, "losses")),
        "metrics": list(support.task_rows(METRICS, "metrics")),
    }
    found = {"rows": list(ROWS.values()), "models": [model], **tasks}
    monkeypatch.setattr(support, "support", lambda: found)
    text = printed(monkeypatch)
    assert all(f"\n{kind} " in text for kind in SPECS) and "…" not in text
    for reason in {cell for row in ROWS.values() for cell in list(row.values())[1:]} - {
        "yes",
        "no",
    }:
        number = re.search(rf"^  (\d+)  {re.escape(reason)}$", text, re.MULTILINE)
        assert number and re.search(rf"^\w+ .* {number[1]} ", text, re.MULTILINE)
    assert "integer engine" in text and "c99, x" in text
    assert all(name in text for name in (*LOSSES, *METRICS))
