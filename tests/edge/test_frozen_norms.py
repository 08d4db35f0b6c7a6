"""Norms that divide by a constant: what they become, and what their guards see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edge
from edge import graph_file
from edge.check import check
from edge.export import int8_graph
from edge.passes import rewritten
from edge.passes.rewrite import Hints
from edge.quantize import guard, truth
from edge.quantize.truth import ExportWarning
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_torch import lower
from fedkit.graph.interpret import FloatArray, evaluate
from fedkit.graph.verify import verify
from fedkit.nn.norms.frozen import freeze, layer_norms

SHAPE = (7, 5)


def block(norm: type[nn.Module] = nn.LayerNorm, width: int = 8) -> nn.Sequential:
    """A norm whose inputs have deviations near each other."""
    torch.manual_seed(0)
    first, last, made = nn.Linear(5, width), nn.Linear(width, 3), norm(width)
    nn.init.normal_(first.bias, std=3.0)
    nn.init.uniform_(made.get_parameter("weight"), 0.7, 1.3)
    model = nn.Sequential(first, made, last)
    model.eval()
    return model


def tokens(count: int = 64, scale: float = 1.0, seed: int = 0) -> FloatArray:
    return scale * np.random.default_rng(seed).standard_normal((count, *SHAPE), np.float32)


def rewrite(model: nn.Module, *names: str, examples: FloatArray | None = None) -> ir.Graph:
    given = None if examples is None else ir.to_graph_layout(examples)
    return rewritten(lower(model, SHAPE), names, Hints(given)).graph


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_is_frozen_near_what_it_gave(norm: type[nn.Module]) -> None:
    model, x = block(norm), tokens()
    graph = rewrite(model, "ln_freeze", examples=x)
    assert "channel_norm" not in {op.kind for op in graph.ops}
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    found = ir.from_graph_layout(evaluate(graph, ir.to_graph_layout(x)))[:, :, 0]
    found = found.reshape(wanted.shape) if found.shape != wanted.shape else found
    assert 1e-4 < np.abs(found - wanted).std() / wanted.std() < 0.2
    (name,) = graph.guards
    assert graph.guards[name].centred == (norm is nn.LayerNorm)


@pytest.mark.parametrize(
    ("norm", "names"),
    [(nn.LayerNorm, ("lowrank_merge",)), (nn.RMSNorm, ("affine_forward",))],
)
def test_a_frozen_norm_costs_nothing_in_the_layer_behind_it(
    norm: type[nn.Module], names: tuple[str, ...]
) -> None:
    graph = rewrite(block(norm), "ln_freeze", *names, examples=tokens())
    assert [op.kind for op in graph.ops].count("conv2d") == 2
    assert len(graph.guards) == 1
    verify(graph)


def test_without_examples_nothing_is_frozen() -> None:
    found = rewritten(lower(block(), SHAPE), ["ln_freeze"])
    assert found.done[-1].refused == (("1", "it needs examples, to see by what the norm divides"),)


def test_what_divides_by_very_different_numbers_is_refused() -> None:
    x = tokens()
    x[0] *= 100
    found = rewritten(lower(block(), SHAPE), ["ln_freeze"], Hints(ir.to_graph_layout(x)))
    ((where, why),) = found.done[-1].refused
    assert where == "1"
    assert "at most 4.0 may be" in why
    assert "fedkit.nn.norms.removal" in why


def frozen() -> nn.Sequential:
    model = block()
    freeze(model, "1", 10.0)
    return model


def test_a_frozen_module_is_a_layer_with_a_guard() -> None:
    graph = edge.float_graph(frozen(), SHAPE)
    assert [op.kind for op in graph.ops].count("conv2d") == 3
    (name,) = graph.guards
    op = graph.producer(name)
    assert op is not None
    assert op.source == "0"
    merged = rewrite(frozen(), "lowrank_merge")
    assert [op.kind for op in merged.ops].count("conv2d") == 2
    assert {*merged.guards} == {name}


def test_no_other_layer_gets_a_guard() -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(2, 2))
    assert edge.float_graph(nn.Sequential(*layers).eval(), (4,)).guards == {}
    zero = nn.Linear(4, 4)
    nn.init.zeros_(zero.weight)
    assert edge.float_graph(nn.Sequential(nn.Linear(4, 4), zero).eval(), (4,)).guards == {}


# Guards


def test_a_guard_knows_the_range_of_the_calibration_set() -> None:
    model, x = frozen(), tokens()
    floats = guard.measured(edge.float_graph(model, SHAPE), ir.to_graph_layout(x))
    with torch.no_grad():
        deviations = model[0](torch.from_numpy(x)).numpy().std(-1)
    (found,) = floats.guards.values()
    assert found.low == pytest.approx(deviations.min(), rel=1e-5)
    assert found.high == pytest.approx(deviations.max(), rel=1e-5)


def test_a_guard_is_silent_within_its_range_and_tells_one_outlier_outside() -> None:
    floats = guard.measured(edge.float_graph(frozen(), SHAPE), ir.to_graph_layout(tokens()))
    others = tokens(100, seed=1)
    (found,) = guard.look(floats, ir.to_graph_layout(others))
    assert (found.outside, found.places, found.examples) == (0, 700, ())
    assert guard.told((found,)) == ""
    others[42, 3] *= 1000
    (found,) = guard.look(floats, ir.to_graph_layout(others))
    assert (found.outside, found.examples) == (1, (42,))
    assert found.worst > 100 * found.high
    assert "first in example 42" in guard.told((found,))
    assert "behind module '0', where 1 of 700 places" in guard.told((found,))


def test_a_guard_tells_what_is_far_too_small() -> None:
    model = frozen()
    with torch.no_grad():
        model.get_parameter("0.bias").zero_()
    floats = guard.measured(edge.float_graph(model, SHAPE), ir.to_graph_layout(tokens()))
    (found,) = guard.look(floats, ir.to_graph_layout(tokens(10, 1e-3)))
    assert found.outside == found.places == 70
    assert found.worst < found.low


def test_inputs_that_are_not_finite_are_out_of_range() -> None:
    floats = guard.measured(edge.float_graph(frozen(), SHAPE), ir.to_graph_layout(tokens()))
    others = tokens(4)
    others[2] = np.inf
    with np.errstate(invalid="ignore"):
        (found,) = guard.look(floats, ir.to_graph_layout(others))
    assert found.examples == (2,)


def test_a_graph_file_keeps_guards(tmp_path: Path) -> None:
    graph = int8_graph(frozen(), tokens())
    assert graph.origin is not None
    assert graph.guards == {}
    data = graph_file.to_bytes(graph)
    again = graph_file.from_bytes(data)
    assert again.origin is not None
    assert again.origin.floats.guards == graph.origin.floats.guards
    assert b'"version": 5' in data or b'\\"version\\": 5' in data
    plain = graph_file.to_bytes(int8_graph(block(), tokens()))
    assert b"guards" not in plain


def test_a_graph_file_whose_guard_watches_nothing_is_refused() -> None:
    graph = int8_graph(frozen(), tokens())
    assert graph.origin is not None
    floats = replace(graph.origin.floats, guards={"nothing": ir.Guard(0.0, 1.0)})
    bad = replace(graph, origin=replace(graph.origin, floats=floats))
    with pytest.raises(ExportError, match="guard watches 'nothing'"):
        graph_file.from_bytes(graph_file.to_bytes(bad))


def test_a_check_of_shifted_inputs_trips(tmp_path: Path) -> None:
    names = ("ln_freeze", "lowrank_merge")
    saved = edge.export_model(block(), tokens(), tmp_path / "m.tflite", rewrites=names)
    assert saved.provenance["rewrites"] == list(names)
    same = check(saved.path, tokens(seed=2))
    assert same.mismatches == 0
    assert guard.told(same.guards) == ""
    shifted = check(saved.path, tokens(seed=2, scale=50.0))
    assert shifted.mismatches == 0
    assert shifted.guards[0].outside > 0
    assert "outputs of such inputs mean nothing" in guard.told(shifted.guards)


def test_freezing_that_changes_a_model_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "WARNED", 0.005)
    monkeypatch.setattr(truth, "REFUSED", 0.01)
    with pytest.raises(ExportError, match="ln_freeze changes the float model's output by"):
        int8_graph(block(), tokens(), rewrites=("ln_freeze",))
    with pytest.warns(ExportWarning, match="a, b changes the float model's output by 20%"):
        truth.judge_rewrites(0.2, ("a", "b"), accept_error=True)


def test_layer_norms_are_found_by_name() -> None:
    assert list(layer_norms(block())) == ["1"]
    assert list(layer_norms(frozen())) == []
