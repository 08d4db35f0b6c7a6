"""What every row of the registry promises, tried on the random graphs that it brings along.

A new kind of op is tested here without a word about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import pytest

from fedkit.core.errors import ExportError
from fedkit.core.gather import gather
from fedkit.graph import ir, ops
from fedkit.graph.interpret import evaluate
from fedkit.graph.ops.registry import SPECS, WEIGHTED, readers, spec_of
from fedkit.graph.spec import Spec
from fedkit.graph.verify import verify
from tests.graph.planted_ops import Times, multiplied, times

EXAMPLES = 12


def examples(kind: ir.Kind) -> Iterator[tuple[ir.Graph, ir.FloatArray]]:
    """Yield graphs whose last op is of a kind, and three inputs for each."""
    for seed in range(EXAMPLES):
        random = np.random.default_rng(seed)
        graph = SPECS[kind].example(random)
        shape = graph.tensors["x"].shape
        if kind == "embedding":
            numbers = random.integers(0, len(graph.constant("c0")), (3, *shape[1:]))
            yield graph, numbers.astype(np.float32)
            continue
        yield graph, (3 * random.standard_normal((3, *shape[1:]))).astype(np.float32)


def changed(graph: ir.Graph, name: str, **how: object) -> ir.Graph:
    tensor = replace(graph.tensors[name], **how)  # type: ignore[arg-type]
    return replace(graph, tensors={**graph.tensors, name: tensor})


@pytest.mark.parametrize("kind", SPECS)
def test_a_row_brings_graphs_of_its_kind(kind: ir.Kind) -> None:
    shapes = set()
    for graph, _ in examples(kind):
        verify(graph)
        assert graph.ops[-1].kind == kind and graph.outputs == (graph.ops[-1].output,)
        shapes.add(graph.tensors["x"].shape)
    assert len(shapes) > EXAMPLES // 2, "the examples hardly differ"


@pytest.mark.parametrize("kind", SPECS)
def test_a_result_has_the_shape_of_the_rule(kind: ir.Kind) -> None:
    for graph, inputs in examples(kind):
        found = evaluate(graph, inputs)
        assert found.shape[1:] == SPECS[kind].shape(graph, graph.ops[-1])[1:]
        assert found.dtype == np.float32 and np.isfinite(found).all()


@pytest.mark.parametrize("kind", SPECS)
def test_examples_of_a_batch_do_not_mix(kind: ir.Kind) -> None:
    for graph, inputs in examples(kind):
        one_by_one = np.concatenate([evaluate(graph, x[None]) for x in inputs])
        at_once = np.broadcast_to(evaluate(graph, inputs), one_by_one.shape)  # all may have one
        np.testing.assert_allclose(at_once, one_by_one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", SPECS)
def test_another_shape_is_refused(kind: ir.Kind) -> None:
    for graph, _ in examples(kind):
        wrong = changed(graph, "y", shape=(*graph.tensors["y"].shape[:-1], 97))
        with pytest.raises(ExportError, match=f"op {kind} -> 'y'.* is declared .*97.* but gives"):
            verify(wrong)


@pytest.mark.parametrize("kind", SPECS)
def test_operands_that_do_not_fit_are_refused(kind: ir.Kind) -> None:
    for graph, _ in examples(kind):
        op = graph.ops[-1]
        more = replace(graph, ops=(*graph.ops[:-1], replace(op, inputs=(*op.inputs, "x"))))
        spec = spec_of(op)
        if not spec.variadic:
            with pytest.raises(ExportError, match=f"must read {spec.activations} activation"):
                verify(more)
        for name in op.inputs[1:]:
            if graph.tensors[name].data is not None:
                data = np.zeros((*graph.tensors[name].shape, 2), np.float32)
                with pytest.raises(ExportError, match=f"op {kind} -> 'y'.* needs operands"):
                    verify(changed(graph, name, data=data, shape=data.shape))


@pytest.mark.parametrize("kind", sorted(WEIGHTED))
def test_weights_come_back_from_rows(kind: ir.Kind) -> None:
    weights = SPECS[kind].weights
    assert weights is not None
    for graph, _ in examples(kind):
        weight = graph.constant(graph.ops[-1].inputs[1])
        rows = weights.by_channel(weight)
        assert len(rows) == graph.tensors["y"].shape[-1]
        np.testing.assert_array_equal(weights.laid(rows, weight.shape), weight)


# The registry itself


def test_a_row_without_an_example_cannot_be_made() -> None:
    assert [field.name for field in fields(Spec)][:4] == ["kind", "layer", "real", "example"]
    with pytest.raises(TypeError, match="example"):
        Spec("softsign", "softsign", lambda op, graph, x: x)  # type: ignore[call-arg]


def test_what_is_no_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedkit.graph.ops import reduce

    monkeypatch.setattr(reduce, "SPECS", (*reduce.SPECS, "softsign"))
    with pytest.raises(ExportError, match=r"ops.reduce has a str in SPECS; make it a .*spec\.Spec"):
        gather(ops, Spec)


def test_two_rows_of_one_kind_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedkit.graph.ops import reduce

    monkeypatch.setattr(reduce, "SPECS", reduce.SPECS * 2)
    with pytest.raises(ExportError, match="two rows of kind 'mean', the later one in reduce"):
        gather(ops, Spec)


def test_an_operator_is_read_in_one_way() -> None:
    def read() -> None: ...

    def other() -> None: ...

    assert readers([("a", {"Sum": read}), ("b", {"Sum": read})]) == {"Sum": read}
    with pytest.raises(ExportError, match="the rows a and b read Sum by two functions"):
        readers([("a", {"Sum": read}), ("b", {"Sum": other})])


# What attributes an op may have


def test_an_op_has_the_attributes_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    good = times(Times(2.5))
    row = Spec("times", "product", multiplied, good, attributes=Times)
    monkeypatch.setitem(SPECS, "times", row)
    random, x = np.random.default_rng(0), np.ones((1, 3), np.float32)
    graph = good(random)
    verify(graph)
    np.testing.assert_array_equal(evaluate(graph, x), 2.5 * x)
    with pytest.raises(ExportError, match="must have attributes of the class Times"):
        verify(times(None)(random))
    relu = replace(graph.ops[0], kind="relu")
    with pytest.raises(ExportError, match="must have no attributes"):
        verify(replace(graph, ops=(relu,)))
