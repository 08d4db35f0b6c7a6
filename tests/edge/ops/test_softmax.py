"""Softmax and its logarithm: random, flat and steep rows of any length, in every runtime."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn

from edge.define.interpret_int8 import evaluate_int8
from edge.define.rounding import fixed_log
from edge.export import float_graph, int8_graph, save_c99
from edge.quantize.powers import surely_rounded
from edge.quantize.to_int8 import quantize
from edge.targets.c99.runner import CompiledRunner
from edge.targets.fpga.microcode import compile_graph as fpga_steps
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.interpret import evaluate
from tests.edge.in_runtimes import integers_of
from tests.edge.policy_places import PLACES, in_litert_alone, in_torchs_layout
from tests.edge.single_ops import Case, activation, graph_of
from tests.edge.targets.c99.library import need_gcc
from tests.edge.targets.compiled import PLAIN, QUICK
from tests.sets import slow_but
from tests.tokens import made

KINDS = {"softmax": (1 / 256, -128), "log_softmax": (1 / 16, 127)}
REAL = {"softmax": softmax, "log_softmax": log_softmax}


def case(kind: str, seed: int) -> Case:
    """Return rows of any length at any scale; some all the same, some with one far above."""
    random = np.random.default_rng((seed, 3))
    channels = int(random.choice([1, 2, 3, 10, 16, 100, 1000]))
    shape = (1, channels) if random.random() < 0.4 else (1, 3, 2, channels)
    scale = random.choice([2.0 ** random.integers(-9, 2), np.exp(random.uniform(-7, 1))])
    tensors = [
        activation("x", shape, float(scale), int(random.integers(-128, 128))),
        activation("y", shape, *KINDS[kind]),
    ]
    spread = random.choice([0, 3, 60, 255])
    middle = random.integers(-128, 128, (6, *[1] * (len(shape) - 1)))
    codes = middle + random.integers(-spread, spread + 1, (6, *shape[1:]))
    graph = graph_of(tensors, ir.Op(kind, ("x",), ("y",)))
    return graph, np.clip(codes, -128, 127).astype(np.int8)


@pytest.mark.parametrize("seed", slow_but(range(12), range(300)))
@pytest.mark.parametrize("kind", KINDS)
def test_runtimes_and_we_give_the_nearest_of_the_real(kind: str, seed: int) -> None:
    graph, codes = case(kind, seed)
    scale, zero = KINDS[kind]
    x = graph.tensors["x"]
    real = REAL[kind]((codes - np.float64(x.zero_point)) * x.scale, axis=-1)
    steps = np.clip(np.rint(real / scale) + zero, -128, 127)
    near = np.abs(real / scale - np.floor(real / scale) - 0.5) < 1e-3
    ours = evaluate_int8(graph, codes)
    assert np.count_nonzero((ours != steps) & ~near) == 0
    assert np.abs(ours - steps).max() <= 1
    for name, place in PLACES.items():
        expected = evaluate_int8(graph, codes, place.policy)
        found = place.run(graph, codes).reshape(expected.shape)
        # Its logarithm is of floats, as it has none of integers: it may take the other side.
        may_differ = near if kind == "log_softmax" and "onnx" in name else False
        assert np.count_nonzero((found != expected) & ~np.asarray(may_differ)) == 0, (name, x)
    alone = evaluate_int8(graph, codes, "gemmlowp")
    assert np.count_nonzero(in_litert_alone(graph, codes) != alone) == 0


SEEN_IN_A_MODEL = (
    0.01203063502907753,
    (
        *(-24, -13, -10, -17, -14, -12, -13, -12, -15, -12, -12, -7, -19, -8, -16, -14, -16, -12),
        *(-27, -26, -21, -30, -16, -13, -30, -23, -30, -30, -31, -14, -26, -27, -29, -28, -25, -20),
        *(-15, -10, -14, -11, -14, -15, -22, -15, -15, -8, -13, -12, -9, -13),
    ),
)
"""Scale and a row of scores."""


@pytest.mark.parametrize("count", [512, 170, 24])
def test_what_lies_in_the_middle_is_rounded_as_the_runtime_does(count: int) -> None:
    """TFLite rounds halves up here, not to even: of 512 equal values each is half a step."""
    graph = graph_of(
        [activation("x", (1, count), 1 / 16, 0), activation("y", (1, count), *KINDS["softmax"])],
        ir.Op("softmax", ("x",), ("y",)),
    )
    codes = np.full((2, count), 7, np.int8)
    codes[1, : count // 3] = -128
    for name, place in PLACES.items():
        expected = evaluate_int8(graph, codes, place.policy)
        found = place.run(graph, codes).reshape(expected.shape)
        assert np.count_nonzero(found != expected) == 0, name
    if count == 512:
        assert (evaluate_int8(graph, codes, "half_even")[0] == -127).all()


def test_a_row_of_a_model_that_has_a_half_in_float32() -> None:
    """4.49999991 in real numbers, 4.5 in float32; onnxruntime's own softmax of features takes 5."""
    scale, row = SEEN_IN_A_MODEL
    graph = graph_of(
        [activation("x", (1, 50), scale, 0), activation("y", (1, 50), *KINDS["softmax"])],
        ir.Op("softmax", ("x",), ("y",)),
    )
    codes = np.array([row], np.int8)
    for name, place in PLACES.items():
        if "onnx" not in name:
            expected = evaluate_int8(graph, codes, place.policy)
            found = place.run(graph, codes).reshape(expected.shape)
            assert np.count_nonzero(found != expected) == 0, name
    assert evaluate_int8(graph, codes, "gemmlowp")[0, 33] == -123


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_c_gives_our_integers(kind: str, tmp_path: Path) -> None:
    need_gcc()
    for seed in (2, 4):
        graph, codes = case(kind, seed)
        inputs = in_torchs_layout(codes)
        saved = save_c99(graph, np.zeros(inputs.shape, np.float32), tmp_path / str(seed), {})
        found = ir.to_graph_layout(
            CompiledRunner(saved.path, PLAIN if seed == 2 else QUICK).predict_int8(inputs)
        )
        expected = evaluate_int8(graph, codes)
        assert np.count_nonzero(found.reshape(expected.shape) != expected) == 0


def test_our_logarithm_is_near_the_real_one() -> None:
    x = np.unique(np.exp2(np.random.default_rng(0).uniform(0, 32, 5000)).astype(np.int64))
    gap = fixed_log(x) / 2**24 - 16 * np.log(x)
    assert gap.min() > -1e-5 and gap.max() <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_real_function_is_torchs(kind: str) -> None:
    x = np.random.default_rng(0).uniform(-90, 90, (50, 7)).astype(np.float32)
    tensors = {name: ir.Tensor(name, (1, 7)) for name in "xy"}
    graph = ir.Graph(tensors, (ir.Op(kind, ("x",), ("y",)),), ("x",), ("y",))
    wanted = getattr(torch, kind)(torch.from_numpy(x), 1).numpy()
    np.testing.assert_allclose(evaluate(graph, x), wanted, rtol=1e-5, atol=1e-7)


def test_a_classifier_may_end_in_probabilities() -> None:
    torch.manual_seed(0)
    inputs = np.random.default_rng(0).standard_normal((32, 6)).astype(np.float32)
    for last in (nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid()):
        graph = int8_graph(nn.Sequential(nn.Linear(6, 4), last).eval(), inputs)
        assert graph.ops[-1].kind in (*KINDS, "sigmoid")


REFUSED: list[tuple[Callable[[torch.Tensor], torch.Tensor], str]] = [
    (lambda x: x.softmax(2), "a softmax over dimension 2; dimension 1"),
    (lambda x: x.log_softmax(-2), "a log_softmax over dimension -2; dimension 1"),
]


class Calls(nn.Module):
    """A function between a convolution and features."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.function = nn.Conv2d(2, 3, 1), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.first(x)).flatten(1)


@pytest.mark.parametrize(("function", "message"), REFUSED)
def test_other_axes_are_refused(
    function: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        float_graph(Calls(function).eval(), (2, 4, 4))


def test_what_a_concat_joins_cannot_keep_its_scale() -> None:
    floats = float_graph(Calls(lambda x: torch.cat([x.softmax(1), x], 1)).eval(), (2, 4, 4))
    inputs = np.random.default_rng(0).standard_normal((4, 4, 4, 2)).astype(np.float32)
    with pytest.raises(ExportError, match=r"softmax gives always has the scale 0\.0039.*a concat"):
        quantize(floats, inputs)


def test_the_fpga_refuses_it_by_name() -> None:
    with pytest.raises(ExportError, match=r"softmax .*no step for this kind of op"):
        fpga_steps(case("softmax", 0)[0], 4)


# Scales


@pytest.mark.parametrize("scale", [1e-5, 1 / 256, 0.01203063502907753, 0.1, 1.0, 3.0])
def test_a_scale_that_is_taken_has_powers_that_no_library_rounds_otherwise(scale: float) -> None:
    """They are 0.003 steps or more from the middle of two neighbours, and it grows by little."""
    taken = surely_rounded(scale)
    assert scale <= taken <= scale * (1 + 1e-3)
    exponents = np.float32(taken) * np.arange(256, dtype=np.float32)
    powers = [(-Decimal(float(each))).exp() for each in exponents]
    for power in powers:
        if power > 1e-30:
            near = np.float32(float(power))
            off = abs(power - Decimal(float(near))) / Decimal(float(np.spacing(near)))
            assert abs(off - Decimal("0.5")) > Decimal("0.003")


def test_scores_of_a_model_have_such_scales() -> None:
    graph = integers_of(*made("own heads"))
    scores = [graph.tensors[op.inputs[0]] for op in graph.ops if op.kind == "softmax"]
    assert len(scores) > 0
    assert [surely_rounded(x.scale) for x in scores] == [x.scale for x in scores]
