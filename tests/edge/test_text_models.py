"""Models of tokens as artifacts: the same integers everywhere, and no token that has no row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edge
from edge.define.interpret_int8 import evaluate_int8
from edge.export import float_graph, int8_graph
from edge.ops import matrices
from edge.ops.integer_spec import rescaled
from edge.passes.slim import slim
from edge.quantize.to_int8 import quantize
from edge.targets.tflite import emitter as tflite
from edge.targets.tflite.runner import TfliteRunner
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.attention_masks import FAR
from fedkit.graph.interpret import evaluate
from fedkit.nn.zoo import build_model
from tests.edge.in_runtimes import (
    assert_same_in,
    assert_same_in_c,
    assert_same_in_litert_alone,
    codes_of,
    halves_away,
)
from tests.edge.policy_places import PolicyRun
from tests.edge.targets.c99.library import need_gcc
from tests.edge.text_models import COUNT, MODELS, TOKENS, OwnScores, examples, made


def integers_of(model: nn.Module) -> ir.Graph:
    return int8_graph(model, examples(32), accept_error=True)


@pytest.mark.parametrize("kind", MODELS)
def test_graphs_give_the_models_numbers(kind: str) -> None:
    model, x = made(kind), examples(4)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    found = evaluate(float_graph(model, (COUNT,), True), x.astype(np.float32))
    np.testing.assert_allclose(ir.from_graph_layout(found).reshape(wanted.shape), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_runtimes_give_the_same_integers(kind: str, place: PolicyRun) -> None:
    assert_same_in(place, integers_of(made(kind)))


@pytest.mark.parametrize("kind", MODELS)
def test_litert_without_xnnpack_gives_the_same_integers(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrices, "rescaled", partial(halves_away, rescaled))
    assert_same_in_litert_alone(integers_of(made(kind)))


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["speed", "size"])
@pytest.mark.parametrize("kind", MODELS)
def test_c_gives_the_same_integers(kind: str, goal: str, tmp_path: Path) -> None:
    assert_same_in_c(integers_of(made(kind)), goal, tmp_path)


@pytest.mark.slow
def test_a_whole_char_gpt_is_the_same_everywhere(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = build_model("char-gpt", (64,), 97), examples(48, 64, 97)
    graph = int8_graph(model, x, accept_error=True)
    for name in ("a.tflite", "a.onnx", "a-c99"):
        edge.export_model(graph, x, tmp_path / name)
        assert edge.check_artifact(tmp_path / name, x[:16], layers=True).mismatches == 0


def test_fpga_refuses_by_name(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"nothing for embedding \(module 'tokens'\)"):
        edge.export_model(made("char-gpt"), examples(8), tmp_path / "a-fpga")


# Masks


def test_no_integer_depends_on_what_comes_later() -> None:
    """Whatever the scores are, also such as calibration never saw."""
    graph = integers_of(made("own scores"))
    x = codes_of(graph)
    changed = x.copy()
    changed[:, 5:] = (changed[:, 5:] + 3) % TOKENS
    for policy in ("half_up", "half_even", "gemmlowp", "onnxruntime"):
        was, now = (evaluate_int8(graph, each, policy) for each in (x, changed))
        assert np.count_nonzero(was[:, :, :5] != now[:, :, :5]) == 0
        assert np.count_nonzero(was[:, :, 5:] != now[:, :, 5:]) > 0


def masked_softmax(places: int, reach: float) -> ir.Graph:
    """Return softmax(x + mask) of [1, 1, places, places], quantised for scores of a reach."""
    mask = np.where(np.tri(places, dtype=np.bool_), 0, FAR).astype(np.float32)[None, None]
    names = ("x", "s", "y")
    tensors = {name: ir.Tensor(name, mask.shape) for name in names}
    tensors["c"] = ir.Tensor("c", mask.shape, "float32", mask)
    ops = ir.Op("add", ("x", "c"), ("s",)), ir.Op("softmax", ("s",), ("y",))
    seen = np.random.default_rng(0).uniform(-reach, reach, (16, *mask.shape[1:]))
    return quantize(ir.Graph(tensors, ops, ("x",), ("y",)), seen.astype(np.float32))


@pytest.mark.parametrize("reach", [1e-6, 0.01, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("places", [2, 9, 40])
def test_what_is_left_out_is_nothing_in_all_runtimes(
    places: int, reach: float, place: PolicyRun
) -> None:
    graph = masked_softmax(places, reach)
    codes = codes_of(graph)
    codes[0, :, :, 0], codes[1] = -128, -128  # the lowest scores that there can be
    expected = evaluate_int8(graph, codes, place.policy)
    assert (expected[:, 0][:, ~np.tri(places, dtype=np.bool_)] == -128).all()
    found = place.run(graph, codes).reshape(expected.shape)
    assert np.count_nonzero(found != expected) == 0


@pytest.mark.parametrize("reach", [0.01, 1.0, 20.0])
def test_what_is_kept_has_the_softmax_of_what_is_kept(reach: float) -> None:
    graph = masked_softmax(9, reach)
    codes, x = codes_of(graph), graph.tensors["x"]
    scores = x.scale * (codes.astype(np.float64) - x.zero_point)
    powers = np.where(np.tri(9), np.exp(scores - scores.max(axis=-1, keepdims=True)), 0)
    wanted = powers / powers.sum(axis=-1, keepdims=True)
    found = (evaluate_int8(graph, codes).astype(np.float64) + 128) / 256
    # A score is off by half a step of the sum, and 255 / 256 is the most that there can be.
    allowed = 1 / 256 + graph.tensors["s"].scale * wanted
    assert (np.abs(found - wanted) <= allowed).all()


def test_a_mask_of_what_no_softmax_reads_is_refused() -> None:
    class Filled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.masked_fill(torch.eye(4).bool(), float("-inf")) * torch.arange(4.0)

    x = np.random.default_rng(0).standard_normal((8, 4, 4)).astype(np.float32)
    with pytest.raises(ExportError, match="to values that something else than a softmax"):
        int8_graph(Filled(), x)


def test_fills_of_all_spellings_are_one_graph() -> None:
    graphs = []
    for fill in (-1e9, float("-inf"), torch.finfo(torch.float32).min):
        torch.manual_seed(0)
        graphs.append(integers_of(OwnScores(fill).eval()))
    codes = codes_of(graphs[0])
    first, *others = (evaluate_int8(graph, codes) for graph in graphs)
    for other in others:
        np.testing.assert_array_equal(first, other)


# Tokens


def test_a_table_counts_for_ranges_whether_examples_choose_its_rows_or_not() -> None:
    model = made("a bag")
    with torch.no_grad():
        model.get_parameter("tokens.weight")[TOKENS - 1] = 50.0
    graph = quantize(float_graph(model, (COUNT,), True), np.zeros((4, COUNT), np.float32))
    rows = next(op for op in graph.ops if op.kind == "embedding")
    out = graph.tensors[rows.output]
    assert out.scale * (127 - out.zero_point) >= 49.9
    assert graph.tensors[rows.inputs[0]].dtype == "int32"


def test_slimming_leaves_tokens_alone() -> None:
    model = made("own scores")
    with torch.no_grad():
        model.get_parameter("projected.weight")[24:26] = 0
        model.get_parameter("projected.bias")[24:26] = 0
        model.get_parameter("tokens.weight")[:, 3] = 1
    graph = quantize(float_graph(model, (COUNT,), True), examples(8).astype(np.float32))
    codes = codes_of(graph)
    np.testing.assert_array_equal(evaluate_int8(slim(graph), codes), evaluate_int8(graph, codes))


Bad = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
BAD: dict[str, tuple[Bad, str]] = {
    "one beyond the last": (lambda x: np.where(x == x[0, 0], TOKENS, x), "token 11; the model has"),
    "a negative one": (lambda x: np.where(x == x[0, 0], -1, x), "token -1"),
    "half of one": (lambda x: x + 0.5, r"token \d+\.5"),
    "none": (lambda x: np.where(x == x[0, 0], np.nan, x.astype(np.float32)), "token nan"),
    "a long text": (lambda x: np.concatenate([x, x], 1), r"int32 \(2, 16\); the model takes int32"),
    "an empty text": (lambda x: x[:, :0], r"int32 \(2, 0\); the model takes int32"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text")
    graph = integers_of(made("char-gpt"))
    for name in ("a.tflite", "a.onnx"):
        edge.export_model(graph, examples(8), path / name)
    return path


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("runtime", ["", "interpreter"])
@pytest.mark.parametrize("file", ["a.tflite", "a.onnx"])
def test_bad_tokens_are_refused(file: str, runtime: str, name: str, folder: Path) -> None:
    bad, reason = BAD[name]
    runner = edge.open_artifact(folder / file, runtime)
    assert runner.predict(examples(2)).shape == (2, TOKENS, COUNT)
    with pytest.raises(ExportError, match=reason):
        runner.predict(bad(examples(2)))


def test_a_runtime_that_was_told_nothing_refuses_what_it_has_no_row_for(folder: Path) -> None:
    runner = TfliteRunner(folder / "a.tflite")
    with pytest.raises(ExportError, match=r"does not run .* on these inputs: .*out of bounds"):
        runner.predict(np.full((1, COUNT), TOKENS))


@pytest.mark.parametrize("file", ["a.tflite", "a.onnx"])
def test_a_model_is_timed_before_it_sees_tokens(file: str, folder: Path) -> None:
    assert edge.open_artifact(folder / file).latency(2)["median_us"] > 0


def test_no_example_makes_no_outputs(folder: Path) -> None:
    assert edge.open_artifact(folder / "a.tflite").predict(examples(0)).shape == (0, TOKENS, COUNT)


def test_c_returns_2_and_writes_nothing(tmp_path: Path) -> None:
    need_gcc()
    edge.export_model(integers_of(made("a bag")), examples(8), tmp_path / "a-c99")
    runner = edge.open_artifact(tmp_path / "a-c99")
    header = (tmp_path / "a-c99" / "model.h").read_text()
    assert "_TOKENS - 1" in header and f"_INPUT_TOKENS {COUNT}\n" in header
    runner.tokens = 0  # as if nothing were known of them here
    wanted = runner.predict(examples(1))
    for token in (TOKENS, -1, 2**24 - 1):
        x = examples(1).astype(np.int32)
        x[0, -1] = token
        if token >= 0:
            with pytest.raises(ExportError, match=r"_invoke returns 2; model\.h says why"):
                runner.predict_int8(x)
        held = runner._held  # type: ignore[attr-defined]
        held[0][...] = x
        assert runner._function(*runner._addresses) == 2  # type: ignore[attr-defined]
        np.testing.assert_array_equal(runner._outputs[0].dequantize(held[1]), wanted)


def test_tokens_of_calibration_that_no_row_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="token 11; the model has tokens 0 to 10"):
        edge.export_model(made("a bag"), examples(8) + 1, tmp_path / "a.tflite")


def test_real_numbers_for_tokens_are_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((8, COUNT)).astype(np.float32)
    with pytest.raises(ExportError, match="give inputs or calibration examples of an integer type"):
        edge.export_model(made("a bag"), x, tmp_path / "a.tflite")


def test_longer_texts_than_a_model_has_places_for_are_refused(tmp_path: Path) -> None:
    for kind in ("char-gpt", "own scores"):
        with pytest.raises(ExportError, match=r"cannot trace .* for inputs of shape \(9,\)"):
            edge.export_model(made(kind), examples(8, COUNT + 1), tmp_path / "a.tflite")


def test_tokens_of_two_dimensions_are_refused() -> None:
    with pytest.raises(ExportError, match=r"input_shape is \(2, 8\); of tokens it is"):
        float_graph(made("a bag"), (2, COUNT), True)


def test_tokens_that_are_amounts_too_are_refused() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(TOKENS, COUNT)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.tokens(x).mean(1)
            return y + x

    with pytest.raises(ExportError, match="tokens are no amounts"):
        float_graph(Both(), (COUNT,), True)


@pytest.mark.parametrize("form", ["own table", "float graph"])
def test_float_files_of_tflite_give_the_floats(form: str) -> None:
    graph = float_graph(made("a bag"), (COUNT,), True)
    content = tflite.emit(graph)
    x = examples(3).astype(np.float32)
    runner = TfliteRunner(content)
    found = runner.predict(x) if form == "float graph" else runner.predict(x[:1])
    np.testing.assert_allclose(found, evaluate(graph, x)[: len(found)], atol=1e-5)
