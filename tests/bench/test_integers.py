"""The benchmarks of integers: rows hold what they promise; no time is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkit.bench import intaccuracy, inttrain, inttransformer
from fedkit.bench.intaccuracy import TrainingCell, cells
from fedkit.bench.intgemm import shape_rows
from fedkit.bench.kept import path_of, run_kept
from fedkit.bench.l1norm import shape_row
from fedkit.bench.sparsetrain import random_batch
from fedkit.core.errors import EngineError
from fedkit.core.numerics import random_bits
from fedkit.engine.integer.gemm import Gemm
from fedkit.engine.kernels import native


def test_rows_of_products_have_all_figures() -> None:
    rows = shape_rows(12, 30, 20, repeats=2)
    assert [row["bits"] for row in rows] == [8, 6, 4, 4]
    for row in rows:
        assert row["shape"] == "12x30x20"
        assert row["ratio_bf16"] == pytest.approx(row["seconds_bf16"] / row["seconds_ours"], 0.1)
        assert row["seconds_ours_packed"] > 0 and row["seconds_fp32"] > 0


def test_a_row_of_norms_has_all_figures() -> None:
    row = shape_row((4, 3, 5, 5), repeats=2)
    assert row["shape"] == "4x3x5x5"
    assert min(value for key, value in row.items() if key.startswith("seconds")) > 0


@pytest.mark.slow
def test_rows_of_training_have_all_figures() -> None:
    kinds = ((8, "per-tensor"), (4, "shiftquant"))
    rows = inttrain.density_rows(0.1, kinds, random_batch(10, (3, 8, 8)), repeats=1)
    assert [row["bits"] for row in rows] == [8, 4]
    for row in rows:
        assert abs(row["loss_ours"] - row["loss_fp32"]) < 0.5
        assert 0 < row["peak_bytes_ours"] < row["peak_bytes_bf16"]


def test_the_grid_has_every_kind_and_shiftquant_at_8_bits_as_copies() -> None:
    grid = list(cells((1, 2, 3), examples=10, epochs=1))
    assert len(grid) == len(set(grid)) == 3 * 2 * 9
    rows = [{"bits": cell.bits, "gradient": cell.gradient} for cell in grid]
    listed = [(row["bits"], row["gradient"]) for row in intaccuracy.with_shiftquant(rows)]
    assert listed.count((8, "shiftquant")) == listed.count((8, "per-tensor")) == 6


def test_the_grid_of_the_transformer_has_its_keys_and_its_gaps() -> None:
    grid = inttransformer.transformer_cells((1, 2, 3), examples=10, epochs=1)
    assert len(grid) == len(set(grid)) == 3 * 4
    rows = [
        {"bits": cell.bits, "gradient": cell.gradient, "accuracy": 0.9 - 0.001 * (cell.bits < 32)}
        for cell in grid
    ]
    lines = inttransformer.table({"rows": intaccuracy.with_shiftquant(rows)})
    assert len(lines) == 2 + 5
    assert "| 6 | shiftquant | 89.90 ± 0.00 % | -0.10 |" in lines


@pytest.mark.slow
def test_a_transformer_trains_in_integers_by_the_benchmark() -> None:
    result = inttransformer.bench_inttransformer(quick=True)
    assert [row["bits"] for row in result["rows"]] == [32, 8]
    for row in result["rows"]:
        assert row["model"] == "vit-tiny"
        assert row["accuracy"] > 0.3


@pytest.mark.slow
def test_a_finished_cell_is_not_run_again(tmp_path: Path) -> None:
    done, new = (TrainingCell(bits, "shiftquant", "l1", 1, 10, 1) for bits in (4, 8))
    path_of(done, tmp_path).write_text('{"kept": true}')
    expected = [{"kept": True}, {"bits": 8}]
    assert run_kept([done, new], bits_of_cell, tmp_path, workers=1) == expected
    assert run_kept([done, new], refuse, tmp_path) == expected


def bits_of_cell(cell: TrainingCell) -> dict[str, Any]:
    return {"bits": cell.bits}


def refuse(cell: TrainingCell) -> dict[str, Any]:
    raise AssertionError(f"{cell} was run")


SIZES = st.integers(1, 40)


@settings(max_examples=50, deadline=None)
@given(SIZES, SIZES, SIZES, st.integers(2, 8), st.integers(0, 2**64 - 1))
def test_a_product_is_that_of_integers_rounded_as_numerics_says(
    rows: int, depth: int, columns: int, bits: int, key: int
) -> None:
    rng = np.random.default_rng(rows)
    x = (rng.standard_normal((rows, depth)) * np.exp2(-rng.uniform(0, 9, depth))).astype(np.float32)
    w = rng.integers(-128, 128, (depth, columns)).astype(np.int8)
    for gemm in every_gemm():
        left = gemm.left(x, bits, key)
        codes = left.values[:rows, :depth].astype(np.int64)
        assert (gemm.product(left, gemm.right(w)) == codes @ w.astype(np.int64)).all()
        assert np.abs(codes).max() <= left.most <= 127
        factor, unit = gemm._rule(np.abs(x).max(0).astype(np.float64), bits)
        scaled = x * (1 / (unit * factor)).astype(np.float32)
        bits_of = random_bits(key, np.arange(x.size, dtype=np.uint32)).reshape(x.shape)
        draws = (bits_of >> 8).astype(np.float32) * np.float32(2**-24)
        most = 2 ** (bits - 1) - 1
        expected = np.clip(np.floor(scaled + draws), -most, most) * factor
        assert (codes == expected).all()


def every_gemm() -> list[Gemm]:
    """Return one of each instruction set, with tiles and without where there are any."""
    kernels = [native.load_kernels(simd) for simd in native.available()]
    return [Gemm(each, tiles=tiles) for each in kernels for tiles in (False, True)]


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (33, 64, 32), (32, 65, 33), (100, 1152, 48), (1, 5000, 1)], ids=str
)
def test_every_path_gives_the_same_integers(shape: tuple[int, int, int]) -> None:
    rows, depth, columns = shape
    rng = np.random.default_rng(depth)
    x = rng.choice(np.array([-1, 1], np.float32), (rows, depth))
    w = rng.choice(np.array([-128, 127], np.int8), (depth, columns))
    for gemm in every_gemm():
        left = gemm.left(x, 8, 0)
        codes = left.values[:rows, :depth].astype(np.int64)
        assert set(np.abs(codes).ravel()) == {127}
        assert (gemm.product(left, gemm.right(w)) == codes @ w.astype(np.int64)).all()


def test_products_refuse_what_they_cannot_compute() -> None:
    gemm = Gemm(native.load_kernels())
    good = np.ones((2, 3), np.float32)
    bad_ones: tuple[Any, ...] = (np.ones((2, 3)), good.T, good * np.nan, good * np.inf, good[0])
    for bad in bad_ones:
        with pytest.raises(EngineError, match="left matrix"):
            gemm.left(bad, 8, 0)
    with pytest.raises(EngineError, match="they must be as many"):
        gemm.product(gemm.left(good, 8, 0), gemm.right(np.ones((4, 2), np.int8)))
    with pytest.raises(EngineError, match="no columns"):
        gemm.left(np.ones((2, 0), np.float32), 8, 0)
    pairs = Gemm(native.load_kernels(), tiles=False)
    if gemm.path != pairs.path:
        with pytest.raises(EngineError, match="packed for other products"):
            pairs.product(gemm.left(good, 8, 0), gemm.right(np.ones((3, 2), np.int8)))
    deep = np.ones((1, 140_000), np.float32)
    with pytest.raises(EngineError, match="may leave int32"):
        gemm.product(gemm.left(deep, 8, 0), gemm.right(np.ones((140_000, 1), np.int8)))
