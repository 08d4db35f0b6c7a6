"""Every op rounds as its runtime does at any scale, not only at those of trained models.

Single ops with given scales and zero points, and small graphs of several, in every runtime that is
installed. The full grid is slow; a sample of it is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from edge.define.interpret_int8 import evaluate_int8
from edge.define.rounding import POLICIES
from edge.export import save_c99
from edge.targets.c99.runner import CompiledRunner
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from tests.edge.litert_alone import evaluate_alone
from tests.edge.policy_places import (
    PolicyRun,
    in_litert_alone,
    in_torchs_layout,
)
from tests.edge.random_graphs import a_graph
from tests.edge.single_ops import (
    ENDS_AND_MIDDLE,
    EVERY,
    KEEPING,
    RESCALING,
    Case,
    Make,
    a_ratio,
    activation,
    constants,
    graph_of,
    pixels,
    sum_of_pairs,
)
from tests.edge.targets.c99.library import need_gcc

KINDS: Mapping[str, Make] = {**RESCALING, **KEEPING}
POWERS = [2.0**power for power in range(-8, 5)]


def assert_same(place: PolicyRun, cases: Iterator[Case]) -> None:
    for graph, codes in cases:
        expected = evaluate_int8(graph, codes, place.policy)
        found = place.run(graph, codes).reshape(expected.shape)
        differ = np.count_nonzero(found != expected)
        scales = {name: tensor.quantization for name, tensor in graph.tensors.items()}
        assert not differ, f"{differ} of {found.size} differ in {graph.ops[-1]} of {scales}"


def cases(kind: str, ratios: list[float], seed: int) -> Iterator[Case]:
    random = np.random.default_rng(seed)
    for number, ratio in enumerate(ratios):
        points = ENDS_AND_MIDDLE[number % len(ENDS_AND_MIDDLE)]
        if number % 2:
            points = int(random.integers(-128, 128)), int(random.integers(-128, 128))
        yield KINDS[kind](random, float(np.float32(ratio)), points)


@pytest.mark.parametrize("kind", KINDS)
def test_an_op_is_the_runtimes_at_any_scale(kind: str, place: PolicyRun) -> None:
    random = np.random.default_rng(1)
    ratios = [*POWERS[::4], *(a_ratio(random) for _ in range(4))]
    assert_same(place, cases(kind, ratios[:3] if kind == "add" else ratios, seed=2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", RESCALING)
def test_an_op_is_the_runtimes_at_a_thousand_scales(kind: str, place: PolicyRun) -> None:
    random = np.random.default_rng(3)
    others = [a_ratio(random) for _ in range(1000)]
    assert_same(place, cases(kind, [*POWERS, *others], seed=4))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KEEPING)
def test_an_op_that_keeps_its_scale_is_the_runtimes(kind: str, place: PolicyRun) -> None:
    assert_same(place, cases(kind, [1.0] * 100, seed=4))


def sums_at_small_quotients(count: int) -> Iterator[Case]:
    """There many sums fall on halves, and what the zero points come to decides."""
    random = np.random.default_rng(6)
    for _ in range(count):
        p, q, r, s = (int(number) for number in random.integers(1, 40, 4))
        zero_points = [int(number) for number in random.integers(-128, 128, 3)]
        yield sum_of_pairs((p / q / 8, r / s / 8, 1 / 8), zero_points)


def test_sums_at_small_quotients(place: PolicyRun) -> None:
    assert_same(place, sums_at_small_quotients(20))


def means(counts: Iterable[int], ratios: tuple[float, ...]) -> Iterator[Case]:
    random = np.random.default_rng(5)
    for count in counts:
        values = pixels(random, count)
        points = [(107, 127), (-100, -99), (-128, int(random.integers(-128, 128)))]
        for ratio, (before, after) in itertools.product(ratios, points):
            x = activation("x", (1, 1, *values.shape), 0.125 * ratio, before)
            y = activation("y", (1, values.shape[1]), 0.125, after)
            yield graph_of([x, y], ir.Op("mean", ("x",), ("y",))), values.reshape(x.shape)


def test_means_at_powers_of_two(place: PolicyRun) -> None:
    assert_same(place, means((28, 56), (0.25, 2.0)))


@pytest.mark.slow
def test_means_of_every_number_of_pixels(place: PolicyRun) -> None:
    counts = *range(1, 101), 196, 256, 1024, 4096
    assert_same(place, means(counts, (0.25, 1.0, 4.0, float(np.float32(0.3)))))


def test_graphs_of_several_ops(place: PolicyRun) -> None:
    assert_same(place, (a_graph(np.random.default_rng(seed)) for seed in range(6)))


@pytest.mark.slow
def test_many_graphs_of_several_ops(place: PolicyRun) -> None:
    assert_same(place, (a_graph(np.random.default_rng(seed)) for seed in range(300)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_plain_c_is_the_interpreters_at_any_scale(kind: str, tmp_path: Path) -> None:
    need_gcc()
    for number, (graph, codes) in enumerate(cases(kind, [0.004, 0.3, 0.9], seed=8)):
        inputs = in_torchs_layout(codes[:3])
        zeros = np.zeros(inputs.shape, np.float32)
        saved = save_c99(graph, zeros, tmp_path / str(number), {}, ("speed", "size")[number % 2])
        found = ir.to_graph_layout(CompiledRunner(saved.path).predict_int8(inputs))
        expected = evaluate_int8(graph, codes[:3])
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)


# LiteRT without XNNPACK


def assert_same_alone(cases: Iterator[Case]) -> None:
    for graph, codes in cases:
        expected = evaluate_alone(graph, codes)
        found = in_litert_alone(graph, codes).reshape(expected.shape)
        assert np.count_nonzero(found != expected) == 0, graph.ops[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_litert_without_xnnpack(kind: str) -> None:
    assert_same_alone(cases(kind, POWERS[:: 6 if kind == "add" else 2], seed=6))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in RESCALING if kind != "add"])
def test_litert_without_xnnpack_at_many_scales(kind: str) -> None:
    random = np.random.default_rng(3)
    assert_same_alone(cases(kind, [a_ratio(random) for _ in range(300)], seed=4))


def means_of_few_channels(count: int) -> Iterator[Case]:
    """Whole blocks of 16 channels, and what is behind them."""
    random = np.random.default_rng(9)
    for _ in range(count):
        high, wide, channels = (int(size) for size in random.integers(1, (8, 8, 70)))
        ratio, (before, after) = a_ratio(random), (int(z) for z in random.integers(-128, 128, 2))
        x = activation("x", (1, high, wide, channels), ratio / 8, before)
        y = activation("y", (1, channels), 1 / 8, after)
        codes = random.integers(-128, 128, (20, high, wide, channels)).astype(np.int8)
        yield graph_of([x, y], ir.Op("mean", ("x",), ("y",))), codes


def test_means_of_few_channels_in_litert_without_xnnpack() -> None:
    assert_same_alone(means_of_few_channels(60))


# What policies have in common


def test_every_policy_is_within_one_step_of_the_others() -> None:
    for kind in KINDS:
        for graph, codes in cases(kind, POWERS[:5], seed=7):
            found = [evaluate_int8(graph, codes, policy).astype(int) for policy in POLICIES]
            assert np.ptp(found, axis=0).max() <= 1


# What no runtime could compute


def one_product(factor: float, bias: int) -> ir.Graph:
    """Return a linear layer whose sums are x + bias, times a factor."""
    x, y = activation("x", (1, 1), 1.0, 0), activation("y", (1, 1), 1.0, 0)
    made = constants("op", "linear", np.ones((1, 1)), np.array([bias]), np.array([factor]), x)
    return graph_of([x, y, *made], ir.Op("linear", ("x", "op.w", "op.b"), ("y",)))


@pytest.mark.parametrize("bias", [0, 2**22, -(2**22)])
@pytest.mark.parametrize("factor", [255.9, 3.0, 1.0, 2.0**-20])
def test_large_factors_and_sums_do_not_wrap(factor: float, bias: int, place: PolicyRun) -> None:
    assert_same(place, iter([(one_product(factor, bias), EVERY[:, None])]))


@pytest.mark.parametrize(
    ("factor", "bias", "reason"),
    [
        (256.0, 0, "at least 2\\^-31 and below 256"),
        (2.0, 2**30, "rescales sums to 4.29e\\+09, which 32 bits do not hold"),
        (255.0, -(2**23), "which 32 bits do not hold"),
    ],
)
def test_factors_and_sums_that_would_wrap_are_refused(
    factor: float, bias: int, reason: str
) -> None:
    with pytest.raises(ExportError, match=reason):
        one_product(factor, bias)


@pytest.mark.parametrize("kind", ["relu", "mean", "add"])
def test_scales_too_far_apart_are_refused(kind: str) -> None:
    with pytest.raises(ExportError, match="above 1/256 of its inputs' scales"):
        RESCALING[kind](np.random.default_rng(0), 256.0, (0, 0))
