"""LSTM and GRU layers: torch's numbers in the graph, the same integers everywhere, weights once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edge
from edge import passes
from edge.define.interpret_int8 import evaluate_int8
from edge.export import int8_graph
from edge.targets.tflite import emitter as tflite
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_torch import lower
from fedkit.graph.interpret import evaluate
from fedkit.nn.zoo import build_model
from tests.edge.in_runtimes import assert_same_in, assert_same_in_c, assert_same_in_litert_alone
from tests.edge.policy_places import PolicyRun
from tests.edge.recurrent_models import CHANNELS, SHAPE, SIZE, STEPS, Recurrent, kinds, made
from tests.sets import slow_but

SOME = ["LSTM, state, one layer", "GRU, steps, two layers, both ways"]
"""What all of this holds for in the fast tests too."""


def examples(n: int, shape: tuple[int, ...] = SHAPE) -> ir.FloatArray:
    return np.random.default_rng(0).standard_normal((n, *shape)).astype(np.float32)


def integers_of(name: str) -> ir.Graph:
    return int8_graph(made(name), examples(32))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", slow_but(SOME, list(kinds())))
def test_graphs_give_torchs_numbers(name: str, batch_first: bool) -> None:
    model, x = made(name, batch_first), examples(3)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    graph = lower(model, SHAPE)
    for each in (graph, passes.optimise(graph)):
        found = ir.from_graph_layout(evaluate(each, ir.to_graph_layout(x)))
        np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=1e-5)


@pytest.mark.parametrize("name", slow_but(SOME, list(kinds())))
def test_runtimes_give_the_same_integers(name: str, place: PolicyRun) -> None:
    assert_same_in(place, integers_of(name))


@pytest.mark.parametrize("name", slow_but(SOME, list(kinds())))
def test_litert_without_xnnpack_gives_the_same_integers(name: str) -> None:
    assert_same_in_litert_alone(integers_of(name))


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["speed", "size"])
@pytest.mark.parametrize("name", SOME)
def test_c_gives_the_same_integers(name: str, goal: str, tmp_path: Path) -> None:
    assert_same_in_c(integers_of(name), goal, tmp_path)


def layers_of(graph: ir.Graph) -> list[ir.Op]:
    return [op for op in graph.ops if op.kind == "conv2d"]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_all_steps_read_the_same_integers_and_have_one_scale(kind: str) -> None:
    graph = integers_of(f"{kind}, state, one layer")
    of_state = [op for op in layers_of(graph) if "_h" in op.output]
    assert len(of_state) == 2 * (STEPS - 1)
    assert len({op.inputs[1:] for op in of_state}) == 2  # gates, and what is new
    for role in ("gates_sum", "state"):
        made_of = [op.output for op in graph.ops if f".{role}" in op.output]
        assert len(made_of) >= STEPS - 1
        assert len({graph.tensors[name].quantization for name in made_of}) == 1


def test_files_hold_the_weights_once() -> None:
    """Twice as many steps add ops, and next to no constants."""
    sizes = []
    for steps in (8, 16):
        torch.manual_seed(0)
        model = Recurrent(nn.LSTM, batch_first=True).eval()
        graph = int8_graph(model, examples(32, (steps, CHANNELS)))
        held = [each.data.nbytes for each in graph.tensors.values() if each.data is not None]
        weights = 4 * SIZE * (SIZE + CHANNELS) + 3 * SIZE
        sizes.append(sum(held) - weights)
        assert (
            tflite.emit(graph).count(graph.constant(layers_of(graph)[-2].inputs[1]).tobytes()) == 1
        )
    assert sizes[0] == sizes[1] > 0


def test_c_holds_the_weights_once(tmp_path: Path) -> None:
    lines = []
    for steps in (4, 8):
        torch.manual_seed(0)
        model, x = Recurrent(nn.GRU, batch_first=True).eval(), examples(16, (steps, CHANNELS))
        edge.export_model(model, x, tmp_path / f"a{steps}-c99")
        text = (tmp_path / f"a{steps}-c99" / "model.c").read_text()
        lines.append(text.count("static const int8_t"))
    assert lines[0] == lines[1] > 0


def test_a_layer_that_is_called_several_times_is_held_once(tmp_path: Path) -> None:
    """One block, applied over and over, with norms of its own each time (WideNet)."""

    class Again(nn.Module):
        def __init__(self, calls: int) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
            self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(calls))
            self.logits = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            for norm in self.norms:
                x = x + self.block(norm(x))
            logits: Tensor = self.logits(x.mean(1))
            return logits

    x = examples(32, (4, 16))
    for calls in (1, 5):
        torch.manual_seed(0)
        graph = int8_graph(Again(calls).eval(), x)
        weights = {op.inputs[1] for op in layers_of(graph)}
        assert len(weights) == 2 and len(layers_of(graph)) == 2 * calls
        for name in ("a.tflite", "a.onnx"):
            saved = edge.export_model(graph, x, tmp_path / f"{calls}{name}")
            assert edge.check_artifact(saved.path, x, layers=True).mismatches == 0
            content = saved.path.read_bytes()
            held = min(content.count(graph.constant(name).tobytes()) for name in weights)
            assert held == max(content.count(graph.constant(each).tobytes()) for each in weights)
            assert held == 1


@pytest.mark.slow
def test_a_whole_char_lstm_is_the_same_everywhere(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model("char-lstm", (24,), 97)
    x = np.random.default_rng(0).integers(97, size=(32, 24))
    graph = int8_graph(model, x)
    for name in ("a.tflite", "a.onnx", "a-c99"):
        edge.export_model(graph, x, tmp_path / name)
        assert edge.check_artifact(tmp_path / name, x[:8]).mismatches == 0


def test_integers_of_a_step_do_not_depend_on_later_ones() -> None:
    graph = integers_of("LSTM, steps, one layer")
    x = np.random.default_rng(1).integers(-128, 128, (4, 1, *SHAPE[::-1])).astype(np.int8)
    changed = x.copy()
    changed[..., 4:] = -changed[..., 4:] - 1  # channels of the graph are steps of the model
    was, now = (evaluate_int8(graph, each) for each in (x, changed))
    assert np.array_equal(was[:, :, :4], now[:, :, :4])
    assert not np.array_equal(was[:, :, 4:], now[:, :, 4:])


class StartingStates(nn.Module):
    """A layer that begins with states of its own."""

    def __init__(self, of_input: bool) -> None:
        super().__init__()
        self.steps, self.of_input = nn.GRU(CHANNELS, SIZE, batch_first=True), of_input

    def forward(self, x: Tensor) -> Tensor:
        state = x[:, 0, :SIZE][None] if self.of_input else torch.ones(1, len(x), SIZE)
        out: Tensor = self.steps(x, state)[1][-1]
        return out


class OverExamples(nn.Module):
    """A layer whose steps are the examples."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.GRU(CHANNELS, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.steps(x)[0]
        return out


REFUSED = {
    "too many steps": (
        lambda: Recurrent(nn.LSTM, batch_first=True),
        (65, CHANNELS),
        "a recurrent layer of 65 steps; 64 can be",
    ),
    "states of the input": (
        lambda: StartingStates(True),
        SHAPE,
        "first states that depend on the input",
    ),
    "other first states": (lambda: StartingStates(False), SHAPE, "first states that are not 0"),
    "a projection": (
        lambda: nn.Sequential(Recurrent(nn.LSTM, batch_first=True, proj_size=2)),
        SHAPE,
        "cannot trace|proj_size",
    ),
    "steps that are examples": (OverExamples, SHAPE, "whose steps are the examples"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_name(name: str) -> None:
    build, shape, reason = REFUSED[name]
    with pytest.raises(ExportError, match=reason):
        lower(build().eval(), shape)


def test_fpga_refuses_by_name(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"nothing for .*sigmoid \(module 'steps'\)"):
        edge.export_model(made(SOME[0]), examples(16), tmp_path / "a-fpga")
