"""Products of matrices in integers, at sizes and ends that random examples do not reach."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.define.interpret_int8 import evaluate_int8
from edge.export import save_c99
from edge.ops import matrices
from edge.ops.integer_spec import rescaled
from edge.quantize.to_int8 import quantize
from edge.targets.c99.runner import CompiledRunner
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.ops.transpose import Order
from fedkit.graph.places import Places
from fedkit.graph.verify import verify
from tests.edge.in_runtimes import halves_away
from tests.edge.policy_places import PolicyRun, in_litert_alone, in_torchs_layout
from tests.edge.single_ops import Codes
from tests.edge.targets.c99.library import X86, need_avx2
from tests.edge.targets.compiled import PLAIN, QUICK


def product_of(heads: int, rows: int, terms: int, columns: int, power: int | None) -> ir.Graph:
    """Return the product of the first rows of each head and the rest, turned, as integers.

    Args:
        heads: Products at once.
        rows: Of the first matrices.
        terms: Of each sum.
        columns: Of the second ones.
        power: The result's steps are 2 to this power of those of the sums, so that many are halves.
    """
    shape = (1, heads, rows + columns, terms)
    first = ir.Op("take", ("x",), ("a",), attributes=Places(columns=tuple(range(rows))))
    rest = ir.Op(
        "take", ("x",), ("b",), attributes=Places(columns=tuple(range(rows, rows + columns)))
    )
    turn = ir.Op("transpose", ("b",), ("t",), attributes=Order((1, 3, 2)))
    product = ir.Op("matmul", ("a", "t"), ("y",))
    shapes = {
        "x": shape,
        "a": (1, heads, rows, terms),
        "b": (1, heads, columns, terms),
        "t": (1, heads, terms, columns),
        "y": (1, heads, rows, columns),
    }
    tensors = {name: ir.Tensor(name, each) for name, each in shapes.items()}
    floats = ir.Graph(tensors, (first, rest, turn, product), ("x",), ("y",))
    seen = np.random.default_rng(0).uniform(-1, 1, (8, *shape[1:])).astype(np.float32)
    graph = quantize(floats, seen)
    if power is None:
        return graph
    steps = matrices.scale_of_sums(graph, product)
    y = replace(graph.tensors["y"], quantization=ir.Quantization((steps * 2.0**power,), (3,)))
    made = replace(graph, tensors={**graph.tensors, "y": y})
    verify(made)
    return made


CASES = [(2, 5, 7, 3, None), (1, 1, 1, 1, 3), (3, 70, 2, 9, 2), (1, 4, 64, 65, 6), (2, 8, 16, 8, 2)]


def codes_of(graph: ir.Graph) -> Codes:
    shape = graph.tensors["x"].shape
    codes = np.random.default_rng(1).integers(-128, 128, (4, *shape[1:]))
    codes[1], codes[2] = -128, 127
    codes[3] //= 32  # small sums
    return codes.astype(np.int8)


@pytest.mark.parametrize("case", CASES)
def test_our_integers_are_the_sums_rounded_half_up(case: tuple[Any, ...]) -> None:
    graph = product_of(*case)
    codes, rows = codes_of(graph).astype(object), case[1]
    a, b, y = (graph.tensors[name] for name in ("a", "b", "y"))
    assert b.zero_point == 0
    left, right = codes[:, :, :rows] - a.zero_point, codes[:, :, rows:]
    sums = np.einsum("nhtc,nhsc->nhts", left.astype(np.int64), right.astype(np.int64))
    ratio = float(np.float32(a.scale) * np.float32(b.scale)) / y.scale
    wanted = np.floor(sums * ratio + 0.5) + y.zero_point
    found = evaluate_int8(graph, codes_of(graph))
    assert np.abs(found - np.clip(wanted, -128, 127)).max() <= (case[4] is None)


@pytest.mark.parametrize("case", CASES)
def test_products_in_runtimes(case: tuple[Any, ...], place: PolicyRun) -> None:
    graph = product_of(*case)
    expected = evaluate_int8(graph, codes_of(graph), place.policy)
    found = place.run(graph, codes_of(graph)).reshape(expected.shape)
    assert np.count_nonzero(found != expected) == 0


@pytest.mark.parametrize("case", CASES)
def test_litert_without_xnnpack_rounds_halves_away(
    case: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrices, "rescaled", partial(halves_away, rescaled))
    graph = product_of(*case)
    expected = evaluate_int8(graph, codes_of(graph), "gemmlowp")
    found = in_litert_alone(graph, codes_of(graph)).reshape(expected.shape)
    assert np.count_nonzero(found != expected) == 0


@pytest.mark.parametrize("flags", [QUICK, PLAIN, ("-O1", *X86["avx512"]), ("-O2", "-mavx2")])
@pytest.mark.parametrize("case", [*CASES, (2, 70, 5, 3, 2), (3, 17, 33, 6, None)])
def test_compiled_products_are_exact(
    case: tuple[Any, ...], flags: tuple[str, ...], tmp_path: Path
) -> None:
    """Of more places in a row than the kernel takes at once; some are scaled by more than 1."""
    need_avx2()
    graph = product_of(*case)
    inputs = in_torchs_layout(codes_of(graph))
    expected = evaluate_int8(graph, codes_of(graph))
    for goal in ("speed", "size"):
        saved = save_c99(graph, np.zeros(inputs.shape, np.float32), tmp_path / goal, {}, goal)
        found = ir.to_graph_layout(CompiledRunner(saved.path, flags).predict_int8(inputs))
        assert np.count_nonzero(found.reshape(expected.shape) != expected) == 0


def test_a_second_factor_whose_zero_is_fixed_is_refused_by_name() -> None:
    shape = (1, 1, 3, 3)
    tensors = {name: ir.Tensor(name, shape) for name in ("x", "s", "y")}
    soft = ir.Op("softmax", ("x",), ("s",), source="soft")
    graph = ir.Graph(tensors, (soft, ir.Op("matmul", ("x", "s"), ("y",))), ("x",), ("y",))
    with pytest.raises(ExportError, match=r"layer 'soft'.*second factor of a product of matrices"):
        quantize(graph, np.ones((2, *shape[1:]), np.float32))
