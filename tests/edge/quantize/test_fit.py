"""Integers chosen by what a layer computes: against slow, obvious references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge.define.interpret_int8 import evaluate_int8
from edge.export import float_graph
from edge.quantize import fit
from edge.quantize.calibrate import SideBySide
from edge.quantize.to_int8 import quantize
from fedkit.graph import ir
from fedkit.nn.zoo import build_model
from tests.sets import slow

Floats = NDArray[np.float64]


def _loss(q: Floats, weight: Floats, own: Floats, cross: Floats) -> Floats:
    """Return E |w x - q x'|^2 of each output, less what no q changes."""
    return np.asarray(((q @ own) * q).sum(-1) - 2 * ((weight @ cross) * q).sum(-1))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 7, 64, 70, 130]), st.sampled_from([1, 3]))
def test_no_single_change_of_an_integer_is_better(seed: int, terms: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((groups, 4, terms)) * (rng.random((groups, 4, terms)) < 0.7)
    x = rng.standard_normal((groups, 200, terms)) @ rng.standard_normal((groups, terms, terms))
    other = x + 0.1 * rng.standard_normal(x.shape)
    own, cross = (np.swapaxes(each, 1, 2) @ x / 200 for each in (x, other))
    own += 0.01 * np.eye(terms)
    steps = np.full((groups, 4), 0.3)
    nearest = np.clip(np.rint(weight / 0.3), -7, 7)
    found = fit.descend(weight, nearest, steps, 7, own, cross)
    assert (found[weight == 0] == 0).all() and np.abs(found).max() <= 7
    assert (found == np.rint(found)).all()
    best = _loss(found * 0.3, weight, own, cross)
    assert (best <= _loss(nearest * 0.3, weight, own, cross) + 1e-9).all()
    again = fit.descend(weight, found, steps, 7, own, cross)
    for _ in range(20):
        again = fit.descend(weight, again, steps, 7, own, cross)
    fitted = _loss(again * 0.3, weight, own, cross)
    for term in range(terms):
        for change in (-1, 1):
            other_q = again.copy()
            other_q[..., term] += change * (weight[..., term] != 0)
            allowed = np.abs(other_q).max(axis=-1) <= 7
            worse = _loss(other_q * 0.3, weight, own, cross) >= fitted - 1e-9
            assert (worse | ~allowed).all()


def _layer(kind: ir.Kind) -> tuple[ir.Op, NDArray[np.float32], Floats]:
    """Return an op, its input and its weights, in the graph's layout."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 6, 7, 3)).astype(np.float32)
    window = ir.Window((3, 2), stride=(2, 1), padding=(1, 0, 1, 1))
    if kind == "linear":
        return ir.Op(kind, ("x", "w", "b"), ("y",)), x[:, 0, 0], rng.standard_normal((4, 3))
    x = rng.standard_normal((5, 6, 7, 6)).astype(np.float32) if kind == "grouped_conv2d" else x
    shape = _SHAPES[kind]
    return ir.Op(kind, ("x", "w", "b"), ("y",), window), x, rng.standard_normal(shape)


_SHAPES = {
    "conv2d": (4, 3, 2, 3),
    "grouped_conv2d": (6, 3, 2, 2),
    "depthwise_conv2d": (1, 3, 2, 6),
}
_GROUPS = {"linear": 1, "conv2d": 1, "grouped_conv2d": 3, "depthwise_conv2d": 3}


def _outputs(op: ir.Op, x: NDArray[np.float32], weight: Floats) -> Floats:
    """Return what a layer computes at every place, float64 [places, outputs], in loops."""
    if op.kind == "linear":
        return np.asarray(x @ weight.T, np.float64)
    x = np.pad(x, ((0, 0), (1, 0), (1, 1), (0, 0)))
    found = []
    for image in x:
        for top in range(0, image.shape[0] - 2, 2):
            for left in range(image.shape[1] - 1):
                part = image[top : top + 3, left : left + 2].astype(np.float64)
                if op.kind == "conv2d":
                    found.append([(part * row).sum() for row in weight])
                elif op.kind == "grouped_conv2d":
                    of = [part[..., o // 2 * 2 : o // 2 * 2 + 2] for o in range(6)]
                    found.append([(of[o] * weight[o]).sum() for o in range(6)])
                else:
                    found.append([(part[..., o // 2] * weight[0, ..., o]).sum() for o in range(6)])
    return np.asarray(found)


@pytest.mark.parametrize("kind", sorted(_GROUPS))
def test_means_and_moments_give_those_of_the_outputs(kind: ir.Kind) -> None:
    op, x, weight = _layer(kind)
    groups = _GROUPS[kind]
    rows = fit.by_group(op, weight, groups)
    assert (fit.as_weight(op, rows, weight.shape) == weight).all()
    expected = _outputs(op, x, weight)
    assert (rows @ fit.means(op, x, groups)[..., None]).ravel() == pytest.approx(expected.mean(0))
    own, cross = fit.moments(op, x, 2 * x, groups)
    damping = 0.01 * np.einsum("gtt->g", own) / own.shape[1] / 1.01
    terms = np.einsum("got,gts,gos->go", rows, own, rows)
    terms -= damping[:, None] * np.square(rows).sum(-1)
    assert terms.ravel() == pytest.approx(4 * expected.var(0), rel=1e-4)
    terms = np.einsum("got,gts,gos->go", rows, cross, rows)
    terms -= damping[:, None] * np.square(rows).sum(-1)
    assert terms.ravel() == pytest.approx(2 * expected.var(0), rel=1e-4)


@pytest.mark.parametrize("name", ["resnet8", slow("mobilenetv2-w0.25")])
def test_what_runs_beside_the_float_model_has_the_integers_of_the_int8_model(name: str) -> None:
    """But for values that lie on the border of two, where float32 rounds differently."""
    inputs = np.random.default_rng(0).standard_normal((4, 1, 16, 16)).astype(np.float32)
    graph = float_graph(build_model(name, (1, 16, 16), 10).eval(), inputs.shape[1:])
    examples = ir.to_graph_layout(inputs)
    made = quantize(graph, examples)
    x = made.tensors[made.inputs[0]]
    codes = np.clip(np.rint(examples / np.float32(x.scale)) + x.zero_point, -128, 127)
    expected: dict[str, NDArray[np.int8]] = {}
    evaluate_int8(made, codes.astype(np.int8), visit=expected.__setitem__)
    side_by_side = SideBySide(graph, examples)
    side_by_side.enter(x)
    for before, after in zip(graph.ops, made.ops, strict=True):
        side_by_side.run_real(before)
        side_by_side.run_rounded(after, made.tensors)
        output = made.tensors[after.output]
        off = side_by_side.rounded[output.name] / output.scale + output.zero_point
        gap = np.abs(np.rint(off) - expected[output.name])
        assert gap.max() <= 1 and np.count_nonzero(gap) <= 0.002 * gap.size
        # What differs is not to grow.
        side_by_side.rounded[output.name] = np.float32(output.scale) * (
            expected[output.name] - np.float32(output.zero_point)
        )
    assert len(side_by_side.real) == 1, "an activation that no op reads is still held"


@pytest.mark.parametrize(("rows", "places", "channels"), [(400, 9, 6), (7, 25, 5), (1, 4, 3)])
def test_sums_of_channels_are_those_of_numpys_matrices(
    rows: int, places: int, channels: int
) -> None:
    rng = np.random.default_rng(0)
    shape = (rows, places, channels)
    x, y = (
        fit._centred(fit._grouped(rng.standard_normal(shape).astype(np.float32), channels))
        for _ in range(2)
    )
    np.testing.assert_array_equal(fit._of_channels(x, y), fit._of_terms(x, y))
