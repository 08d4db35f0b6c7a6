"""What every row of the registry promises of its integers, in all that computes them.

A new kind of op is tested here without a word about it, on the random graphs that its row brings
along, at random scales.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge import graph_file
from edge.define.interpret_int8 import evaluate_int8
from edge.define.rounding import POLICIES
from edge.export import save_c99
from edge.ops.registry import SPECS
from edge.passes.channels import MIXING
from edge.quantize.to_int8 import quantize
from edge.targets.c99.calls import Goal
from edge.targets.c99.calls import compile_graph as c_calls
from edge.targets.c99.runner import CompiledRunner
from edge.targets.fpga import emitter as fpga
from edge.targets.fpga.microcode import compile_graph as fpga_steps
from edge.targets.onnx import emitter as onnx
from edge.targets.tflite import emitter as tflite
from fedkit.core.errors import ExportError
from fedkit.graph import integers, ir
from fedkit.graph.interpret import compute, evaluate
from fedkit.graph.ops.functions import BY_KIND as FUNCTIONS
from fedkit.graph.ops.registry import SPECS as GRAPH_SPECS
from fedkit.graph.ops.registry import tokens_of
from fedkit.graph.verify import verify
from tests.edge.inputs import floats_for, integers_for
from tests.edge.litert_alone import evaluate_alone
from tests.edge.policy_places import PolicyRun, in_litert_alone, in_torchs_layout
from tests.edge.single_ops import Case, Codes, Random
from tests.edge.targets.c99.library import need_gcc
from tests.edge.targets.compiled import PLAIN, QUICK
from tests.naive.engine import FpgaEngine
from tests.sets import slow, slow_but

EXAMPLES = 6


def cases(kind: ir.Kind, count: int = EXAMPLES) -> Iterator[Case]:
    """Yield int8 graphs whose last op is of a kind, and inputs [8, ...] of every size."""
    for seed in range(count):
        random = np.random.default_rng((seed, zlib.crc32(kind.encode())))
        floats = GRAPH_SPECS[kind].example(random)
        reach = np.exp2(random.uniform(-6, 6))
        graph = rescaled(quantize(floats, floats_for(floats, random, 16, reach)), random)
        yield graph, integers_for(graph, random, 8)


def rescaled(graph: ir.Graph, random: Random) -> ir.Graph:
    """Return a graph whose output, if its scale is free, has a coarser one and any zero point."""
    out = graph.tensors["y"]
    if GRAPH_SPECS[graph.ops[-1].kind].scale != "rescaled" or random.random() < 0.3:
        return graph
    scale = float(np.float32(out.scale * random.uniform(1, 4)))
    changed = ir.Quantization((scale,), (int(random.integers(-128, 128)),))
    made = replace(graph, tensors={**graph.tensors, "y": replace(out, quantization=changed)})
    verify(made)
    return made


def real_of(graph: ir.Graph, name: str, codes: ir.Array) -> ir.FloatArray:
    """Return what the integers of a tensor stand for."""
    q = graph.tensors[name].quantization
    assert q is not None
    scale, zero = np.asarray(q.scale), np.asarray(q.zero_point)
    if q.axis is not None:
        scale, zero = (ir.along(q.axis, each, codes.ndim) for each in (scale, zero))
    return ((codes.astype(np.float64) - zero) * scale).astype(np.float32)


@pytest.mark.parametrize("kind", SPECS)
def test_our_integers_are_within_a_step_of_the_floats(kind: ir.Kind) -> None:
    for graph, codes in cases(kind):
        seen: dict[str, Codes] = {}
        evaluate_int8(graph, codes, visit=seen.__setitem__)
        op, out = graph.ops[-1], graph.tensors["y"]
        values = [seen[name] if name in seen else graph.constant(name) for name in op.inputs]
        operands = [real_of(graph, *each) for each in zip(op.inputs, values, strict=True)]
        wanted = compute(op, graph, operands).astype(np.float64) / out.scale + out.zero_point
        assert seen["y"].shape == wanted.shape
        gap = np.abs(seen["y"] - np.clip(wanted, *integers.limits(graph, op)))
        assert gap.max() <= 1


@pytest.mark.parametrize("kind", SPECS)
def test_policies_are_within_a_step_of_each_other(kind: ir.Kind) -> None:
    for graph, codes in cases(kind):
        found = [evaluate_int8(graph, codes, policy).astype(int) for policy in POLICIES]
        assert np.ptp(found, axis=0).max() <= 1


@pytest.mark.parametrize("kind", SPECS)
def test_a_graph_is_the_same_after_its_file(kind: ir.Kind) -> None:
    for graph, codes in cases(kind):
        content = graph_file.to_bytes(graph)
        again = graph_file.from_bytes(content)
        assert graph_file.to_bytes(again) == content and again.ops == graph.ops
        np.testing.assert_array_equal(evaluate_int8(again, codes), evaluate_int8(graph, codes))


@pytest.mark.parametrize("kind", [kind for kind in SPECS if kind not in MIXING])
def test_a_channel_changes_no_others_than_it_is_linked_with(kind: ir.Kind) -> None:
    """`slim` removes channels by these links."""
    for graph, _ in cases(kind):
        op = graph.ops[-1]
        first = next(name for name in op.inputs if graph.tensors[name].data is None)
        x = graph.tensors[first].shape
        linked = np.zeros((x[-1], graph.tensors["y"].shape[-1]), np.bool_)
        for link in SPECS[kind].links(graph, op):
            assert link.name in op.inputs
            linked[link.inputs, link.outputs] |= link.name == first
        values = np.random.default_rng(0).uniform(1, 2, (1, *x[1:])).astype(np.float32)
        step = 0.5
        if tokens_of(graph):
            values, step = np.zeros_like(values), min(1, tokens_of(graph) - 1)
        operands = [
            np.resize(values, graph.tensors[name].shape)
            if data is None
            else real_of(graph, name, data)
            for name, data in ((name, graph.tensors[name].data) for name in op.inputs)
        ]
        for channel in range(x[-1]):
            other = values.copy()
            other[..., channel] += step
            changed = [other if n == first else v for n, v in zip(op.inputs, operands, strict=True)]
            before, after = (
                GRAPH_SPECS[kind].real(op, graph, *each) for each in (operands, changed)
            )
            differs = (before != after).reshape(-1, before.shape[-1]).any(axis=0)
            assert not (differs & ~linked[channel]).any()


# Targets


def says(written: object, kind: ir.Kind, emit: Callable[[ir.Graph], object]) -> bool:
    """Return whether a target has a form of a kind; if not, it must refuse it by name."""
    if written is not None:
        return True
    for graph, _ in cases(kind, 2):
        with pytest.raises(ExportError, match=rf"\b{kind}\b"):
            emit(graph)
    return False


SAME_CODE = FUNCTIONS.keys() - {"silu"} | {"sub", "log_softmax"}
ONE_KERNEL = [kind for kind in SPECS if kind not in SAME_CODE]
"""All functions of one value have the same code in C, with another table."""


SAME_FORM = FUNCTIONS.keys() - {"silu", "elu", "leaky_relu", "clip"}
FORMS = [kind for kind in SPECS if kind not in SAME_FORM]
"""A form of each sort; `test_functions` has more of them."""


@pytest.mark.parametrize("kind", slow_but(FORMS, SPECS))
def test_runtimes_compute_our_integers(kind: ir.Kind, place: PolicyRun) -> None:
    is_tflite = place.policy in ("half_even", "gemmlowp")
    spec, emit = SPECS[kind], tflite.emit if is_tflite else onnx.emit
    if says(spec.tflite if is_tflite else spec.onnx, kind, emit):
        for graph, codes in cases(kind):
            expected = evaluate_int8(graph, codes, place.policy)
            found = place.run(graph, codes).reshape(expected.shape)
            assert np.count_nonzero(found != expected) == 0


OFF = {"matmul": (-1, 0)}
"""By how much LiteRT without XNNPACK is off: halves go away from zero, as `test_matrices` tells."""


@pytest.mark.parametrize("kind", slow_but(FORMS, SPECS))
def test_litert_without_xnnpack_computes_our_integers(kind: ir.Kind) -> None:
    if says(SPECS[kind].tflite, kind, tflite.emit):
        for graph, codes in cases(kind):
            expected = evaluate_alone(graph, codes).astype(int)
            gap = in_litert_alone(graph, codes).reshape(expected.shape) - expected
            assert np.isin(gap, OFF.get(kind, 0)).all()


@pytest.mark.parametrize(("count", "flags"), [(1, PLAIN), slow((4, PLAIN)), slow((4, QUICK))])
@pytest.mark.parametrize("kind", slow_but(ONE_KERNEL, SPECS))
def test_compiled_c_computes_our_integers(
    kind: ir.Kind, count: int, flags: tuple[str, ...], tmp_path: Path
) -> None:
    """`test_kernels` has the kernels for every processor by default."""
    need_gcc()
    if not says(SPECS[kind].c99, kind, c_calls):
        return
    first = list(SPECS).index(kind)  # half of the kinds for each goal
    for number, (graph, codes) in enumerate(cases(kind, count), first):
        goal: Goal = "size" if number % 2 else "speed"
        inputs = in_torchs_layout(codes)
        examples = np.zeros(inputs.shape, np.float32)
        saved = save_c99(graph, examples, tmp_path / str(number), {}, goal)
        found = ir.to_graph_layout(CompiledRunner(saved.path, flags).predict_int8(inputs))
        expected = evaluate_int8(graph, codes)
        assert np.count_nonzero(found.reshape(expected.shape) != expected) == 0


@pytest.mark.parametrize("kind", SPECS)
def test_the_words_of_the_fpga_compute_our_integers(kind: ir.Kind) -> None:
    if says(SPECS[kind].fpga, kind, lambda graph: fpga_steps(graph, 4)):
        for lanes, (graph, codes) in enumerate(cases(kind, 4), start=1):
            expected = evaluate_int8(graph, codes)
            engine = FpgaEngine(fpga.emit(graph, codes[:2], expected[:2], lanes).files)
            for one, wanted in zip(codes[:2], expected, strict=False):
                assert np.count_nonzero(engine.run(one) != wanted.ravel()) == 0


def test_every_integer_kind_is_a_kind_of_the_graph() -> None:
    becomes_others = {kind for kind, spec in GRAPH_SPECS.items() if spec.only_trains}
    becomes_others |= {"affine", "sum_pool2d"}
    assert GRAPH_SPECS.keys() - SPECS.keys() == becomes_others
    assert SPECS.keys() <= GRAPH_SPECS.keys()


def test_a_kind_without_integers_is_refused_by_name() -> None:
    graph = GRAPH_SPECS["affine"].example(np.random.default_rng(0))
    x = np.ones((4, *graph.tensors["x"].shape[1:]), np.float32)
    with pytest.raises(ExportError, match="op affine of module '' has no integer form; optimise"):
        quantize(graph, x)


def test_float_graphs_of_tflite_give_the_floats() -> None:
    without = set()
    for kind, spec in SPECS.items():
        if spec.tflite is None:
            continue
        for seed in range(3):
            graph = GRAPH_SPECS[kind].example(np.random.default_rng(seed))
            x = floats_for(graph, np.random.default_rng(seed), 1)
            try:
                found = in_litert_alone(graph, x)
            except ExportError as error:
                assert f"op {kind} of module '' has no TFLite form of floats" in str(error)
                without.add(kind)
                continue
            np.testing.assert_allclose(found, evaluate(graph, x), rtol=1e-4, atol=1e-4)
    functions = {"hard_sigmoid", "elu", "softplus", "log_sigmoid", "mish", "erf", "clip"}
    assert without == functions | {"group_norm", "channel_norm"}
