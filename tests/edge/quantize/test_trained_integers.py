"""What integer training computes with is what the artifact computes with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from edge.define.interpret_int8 import evaluate_int8
from edge.export import float_graph, save_tflite
from edge.quantize.to_int8 import TrainedIntegers, quantize
from edge.targets.c99.calls import Goal
from edge.targets.onnx import emitter as onnx
from edge.targets.onnx.runner import OnnxRunner
from edge.targets.tflite.runner import Runtime, TfliteRunner
from fedkit.core.errors import ExportError
from fedkit.engine.base import LocalTraining
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.integer.inference import Integers, integers
from fedkit.engine.integer.integer_network import full_weight
from fedkit.engine.ops.conv_integer import NumpyConv
from fedkit.engine.plan.structure import Plan
from fedkit.engine.torch import TorchEngine
from fedkit.graph import ir
from fedkit.graph.ops.registry import WEIGHTED
from fedkit.sparse.state import ModelState
from fedkit.tasks import digits
from tests.edge.define.tflite_runtimes import assert_equal_integers, int8_inputs
from tests.edge.targets.c99.library import need_gcc
from tests.edge.targets.compiled import assert_same_integers
from tests.engine.sparse.cases import engines, pruned, zoo
from tests.sets import slow

SHAPE = (1, 8, 8)
HOW = LocalTraining(epochs=2, batch_size=32, lr=0.05, momentum=0.9, weight_decay=1e-4)
Ints = NDArray[np.int64]


def whole_graph(
    module: nn.Module, examples: NDArray[np.float32], trained: TrainedIntegers, **how: Any
) -> ir.Graph:
    """Quantise without slimming, so that all integers are there."""
    graph = float_graph(module, examples.shape[1:])
    return quantize(graph, ir.to_graph_layout(examples), trained=trained, **how)


@dataclass
class TrainedRun:
    """A model trained in integers, and the graph that keeps them."""

    bits: int
    plan: Plan
    reference: TorchEngine
    state: ModelState
    found: Integers
    graph: ir.Graph

    @property
    def trained(self) -> TrainedIntegers:
        return TrainedIntegers(self.found.weights, self.found.outputs)


def inputs(count: int = 200) -> NDArray[np.float32]:
    return digits.train_data().inputs[:count]


def run_of(name: str, bits: int, how: LocalTraining | None) -> TrainedRun:
    reference, sparse = engines(zoo(name, SHAPE, 10), SHAPE)
    made, state = IntegerEngine(sparse.plan, bits=bits), pruned(reference.initial_state(), 0.5)
    if how:
        state, _ = made.train(state, digits.train_data(), how, seed=0)
    found = integers(made, state)
    trained = TrainedIntegers(found.weights, found.outputs)
    graph = whole_graph(reference.module(found.state), inputs(), trained=trained)
    return TrainedRun(bits, sparse.plan, reference, state, found, graph)


@pytest.fixture(scope="module", params=[8, slow(4)])
def run(request: pytest.FixtureRequest) -> TrainedRun:
    return run_of("resnet8", request.param, HOW)


@pytest.fixture(scope="module")
def four_bits() -> TrainedRun:
    return run_of("resnet8", 4, None)


@dataclass
class Seen:
    """What the engine's products took, by name of the weight."""

    weights: dict[str, Ints] = field(default_factory=dict)
    reads: dict[str, Ints] = field(default_factory=dict)
    targets: dict[int, str] = field(default_factory=dict)


def products(run: TrainedRun, batch: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Evaluate a batch in numpy, whose integers are the kernels', and look at the products."""
    seen, forward = Seen(), NumpyConv.forward

    def spy(self: NumpyConv, read: Any, codes: Any, bias: Any, shift: Any) -> None:
        op, backend = self.op, self.backend
        full = full_weight(backend.network, self.number, codes.values)
        seen.weights[op.weight] = full.reshape(run.plan.weights[op.weight]).astype(np.int64)
        if op.source in seen.targets:
            seen.reads[seen.targets[op.source]] = backend.read(op.source, read)
        seen.targets[op.target] = op.weight
        forward(self, read, codes, bias, shift)

    monkeypatch.setattr(NumpyConv, "forward", spy)
    IntegerEngine(run.plan, bits=run.bits, backend="numpy").outputs(run.state, batch)
    return seen


def layers(graph: ir.Graph) -> dict[str, ir.Op]:
    return {f"{op.source}.weight": op for op in graph.ops if op.kind in WEIGHTED}


def in_torchs_layout(graph: ir.Graph, op: ir.Op) -> NDArray[np.int64]:
    order = {"conv2d": (0, 3, 1, 2), "depthwise_conv2d": (3, 0, 1, 2), "linear": (0, 1)}[op.kind]
    return graph.constant(op.inputs[1]).transpose(order).astype(np.int64)


def assert_same_up_to_a_sign_per_channel(kept: Ints, expected: Ints) -> None:
    for ours, theirs in zip(kept, expected, strict=True):
        assert np.array_equal(ours, theirs) or np.array_equal(ours, -theirs)


def test_the_weights_are_those_that_training_multiplies(
    run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_weights_are_those_of_training(run, monkeypatch)


def test_the_weights_of_four_bits_are_those_that_training_multiplies(
    four_bits: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_weights_are_those_of_training(four_bits, monkeypatch)


def assert_weights_are_those_of_training(run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = products(run, inputs(2), monkeypatch)
    assert seen.weights.keys() == run.plan.weights.keys() & layers(run.graph).keys()
    for name, op in layers(run.graph).items():
        kept = in_torchs_layout(run.graph, op)
        assert_same_up_to_a_sign_per_channel(kept, seen.weights[name])
        assert np.abs(kept).max() == (127 if run.bits == 8 or name in EDGES else 7)


EDGES = ("0.0.weight", "7.weight")
"""Layers at the input and output, which have 8 bits."""


def test_activations_are_those_that_training_reads(
    run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = products(run, inputs(32), monkeypatch)
    values: dict[str, NDArray[np.int8]] = {}
    codes = ir.to_graph_layout(int8_inputs(run.graph, inputs(32)))
    evaluate_int8(run.graph, codes, visit=lambda name, value: values.update({name: value}))
    assert len(run.found.outputs) == 3  # the first layer of each block
    for name in run.found.outputs:
        tensor = run.graph.tensors[layers(run.graph)[name].output]
        most = 2**run.bits - 1
        assert tensor.zero_point == 127 - most
        ours = np.moveaxis(values[tensor.name], 3, 1).astype(np.int64) - tensor.zero_point
        off = np.abs(ours - seen.reads[name])
        # Training rounds in between: what a norm gives has steps of 1/16 deviation.
        assert off.mean() < (2.0 if run.bits == 8 else 0.25) < ours.mean()
        assert ours.min() == 0 and ours.max() <= most


def test_no_calibration_changes_what_training_knows(run: TrainedRun) -> None:
    module = run.reference.module(run.found.state)
    other = whole_graph(module, 3 * inputs(), trained=run.trained)
    for name, op in layers(run.graph).items():
        counterpart = layers(other)[name]
        kept, again = (
            graph.constant(o.inputs[1]) for graph, o in ((run.graph, op), (other, counterpart))
        )
        assert np.array_equal(kept, again)
        same = (
            run.graph.tensors[op.output].quantization
            == other.tensors[counterpart.output].quantization
        )
        assert same == (name in run.found.outputs)


def test_the_artifact_is_as_good_as_the_engine(run: TrainedRun, tmp_path: Path) -> None:
    test, engine = digits.test_data(), IntegerEngine(run.plan, bits=run.bits)
    saved = save_tflite(run.graph, inputs(), tmp_path / "model.tflite", {})
    logits = engine.outputs(run.state, test.inputs), TfliteRunner(saved.path).predict(test.inputs)
    theirs, ours = (float((each.argmax(1) == test.targets).mean()) for each in logits)
    assert theirs > 0.9 and ours >= theirs - 0.005


def test_the_runtimes_compute_the_integers(four_bits: TrainedRun, runtime: Runtime) -> None:
    assert_equal_integers(four_bits.graph, inputs(60), runtime)


def test_onnxruntime_computes_the_integers(four_bits: TrainedRun) -> None:
    codes = int8_inputs(four_bits.graph, inputs(60))
    found = OnnxRunner(onnx.emit(four_bits.graph, "qdq")).predict_int8(codes)
    expected = evaluate_int8(four_bits.graph, ir.to_graph_layout(codes), "onnxruntime")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("goal", ["speed", "size"])
def test_c_computes_the_integers(four_bits: TrainedRun, goal: Goal, tmp_path: Path) -> None:
    need_gcc()
    assert_same_integers(four_bits.graph, inputs(20), tmp_path / "model", goal)


@pytest.mark.slow
def test_depthwise_layers_and_signed_outputs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of("mobilenetv2-w0.25", 6, None)
    seen = products(run, inputs(2), monkeypatch)
    for name, op in layers(run.graph).items():
        assert_same_up_to_a_sign_per_channel(in_torchs_layout(run.graph, op), seen.weights[name])
    signed = {name: code for name, code in run.found.outputs.items() if code.signed}
    assert 0 < len(signed) < len(run.found.outputs)
    for name, code in signed.items():
        tensor = run.graph.tensors[layers(run.graph)[name].output]
        assert tensor.zero_point == 0 and code.most == 31
        assert tensor.scale * 127 == pytest.approx(code.step * code.most, rel=1e-6)


def test_a_norm_that_ends_a_channel_is_no_error(four_bits: TrainedRun) -> None:
    name = "2.first.1.weight"
    gamma = four_bits.state.weights[name].copy()
    gamma[:3] = 0
    state = replace(four_bits.state, weights={**four_bits.state.weights, name: gamma})
    found = integers(IntegerEngine(four_bits.plan, bits=4), state)
    trained = TrainedIntegers(found.weights, found.outputs)
    graph = whole_graph(four_bits.reference.module(found.state), inputs(), trained=trained)
    op = layers(graph)["2.first.0.weight"]
    assert not graph.constant(op.inputs[1])[:3].any() and graph.constant(op.inputs[1])[3:].any()


def test_integers_of_another_state_are_refused(four_bits: TrainedRun) -> None:
    weights = {**four_bits.found.state.weights}
    weights["0.0.weight"] = weights["0.0.weight"][::-1]
    module = four_bits.reference.module(replace(four_bits.found.state, weights=weights))
    with pytest.raises(ExportError, match=r"'0\.0' has weights that are not the trained integers"):
        whole_graph(module, inputs(), trained=four_bits.trained)


def test_powers_of_two_are_refused(four_bits: TrainedRun) -> None:
    module = four_bits.reference.module(four_bits.found.state)
    with pytest.raises(ExportError, match="scales is 'pow2', but trained integers have steps"):
        whole_graph(module, inputs(), scales="pow2", trained=four_bits.trained)
