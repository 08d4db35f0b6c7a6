"""The benchmark of single ops: rows hold what they promise; no time is judged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fedkit.bench import ops
from fedkit.bench.infer import pruned_model, random_model
from fedkit.core.errors import BenchError
from fedkit.graph.ops.registry import SPECS
from fedkit.graph.verify import verify
from tests.edge.targets.c99.library import need_gcc


def test_every_case_is_a_graph_whose_last_op_is_measured_alone() -> None:
    found = list(ops.cases())
    assert len({case.name for case in found}) == len(found)
    for case in found:
        verify(case.floats)
        assert [op.source for op in case.floats.ops][-1] == "measured"
        assert len([op for op in case.floats.ops if op.source]) == 1
        assert len(ops._without(case.floats).ops) in (1, len(case.floats.ops) - 1)
    kinds = {case.floats.ops[-1].kind for case in found}
    assert kinds <= SPECS.keys() and {"sigmoid", "mul", "softmax", "take", "group_norm"} <= kinds


@pytest.mark.parametrize("name", ["mul by channel", pytest.param("tanh", marks=pytest.mark.slow)])
def test_an_op_has_a_row_per_target_with_its_ratios(name: str) -> None:
    need_gcc()
    case = next(case for case in ops.cases() if case.name == name)
    rows = ops.op_rows(case, turns=1)
    assert [row["target"] for row in rows] == ["c99", "litert", "ort"]
    for row in rows:
        assert (row["op"], row["shape"]) == (name, [14, 14, 192])
        assert math.isfinite(row["microseconds"])
    ours, litert, _ = rows
    expected = litert["microseconds"] / ours["microseconds"]
    assert ours["ratio_litert"] == pytest.approx(expected, rel=0.1, abs=0.1)
    assert litert["ratio_litert"] is None


@pytest.mark.slow
def test_a_model_is_measured_whole() -> None:
    need_gcc()
    shape = (9, 32)
    rows = ops.model_rows("har-cnn", random_model("har-cnn", 0.1, shape), shape, 0.1, turns=1)
    assert {row["op"] for row in rows} == {"har-cnn, 10%"}
    assert min(row["microseconds"] for row in rows) > 0
    block = pruned_model(ops.SeriesBlock, 0.1)
    assert len(ops.model_rows("block", block, ops.TOKENS, 0.1, turns=1)) == 3


def test_the_calls_of_the_measured_op_alone_are_repeated(tmp_path: Path) -> None:
    text = (
        "    ek_load(a); /* input */\n    ek_add(b); /* measured */\n    ek_add(c); /* other */\n"
    )
    (tmp_path / "model.c").write_text(text)
    ops._repeat(tmp_path)
    lines = (tmp_path / "model.c").read_text().splitlines()
    assert [lines.count(line) for line in text.splitlines()] == [1, 33, 1]
    (tmp_path / "model.c").write_text("    ek_load(a); /* input */\n")
    with pytest.raises(BenchError, match="no call that is marked as measured"):
        ops._repeat(tmp_path)
