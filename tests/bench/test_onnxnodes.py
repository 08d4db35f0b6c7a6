"""The node tests of the onnx package: none is read wrongly, and the published counts say so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedkit.bench import onnxnodes
from fedkit.bench.onnxnodes import bench_onnxnodes, cases, judge
from fedkit.graph import from_onnx

RESULT = Path(__file__).parents[2] / "results" / "onnxnodes.json"


@pytest.fixture(scope="module")
def few() -> dict[str, onnxnodes.Case]:
    return {case.name: case for case in cases(("conv", "maxpool", "relu"))}


def test_a_few_cases_are_right_or_refused(few: dict[str, onnxnodes.Case]) -> None:
    found = {name: judge(case) for name, case in few.items() if case.operators}
    assert {outcome.verdict for outcome in found.values()} == {"right", "refused"}
    assert found["test_conv_with_strides_padding"].verdict == "right"
    assert found["test_maxpool_3d_default"].reason == "input 'x' has 5 dimensions"


def test_a_wrong_output_and_a_crash_are_wrong(
    few: dict[str, onnxnodes.Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = few["test_conv_with_strides_padding"]
    off = replace(case, outputs=[each + np.float32(0.1) for each in case.outputs])
    assert judge(off).verdict == "wrong"
    monkeypatch.setitem(from_onnx._HANDLERS, "Conv", lambda reader, node: 1 / 0)
    assert judge(case).verdict == "wrong"


def test_the_published_counts_have_no_wrong_case() -> None:
    result = json.loads(RESULT.read_text())
    assert result["wrong"] == 0 == len(result["wrong_cases"])
    assert result["cases"] == result["right"] + result["refused"] > 500
    assert {row["op"] for row in result["rows"]} <= from_onnx.OPERATORS


@pytest.mark.slow
def test_all_cases_are_right_or_refused() -> None:
    result = bench_onnxnodes(quick=False)
    assert result["wrong_cases"] == []
    published = json.loads(RESULT.read_text())
    assert result["right"] >= published["right"]
