"""Models that are rewritten before they become integers, in everything that runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edge
from edge.export import int8_graph
from edge.passes.rewrites import EXACT, REWRITES
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.nn.norms.frozen import with_frozen_layer_norms
from fedkit.nn.norms.second_moment import PowerNorm, UnifiedNorm
from fedkit.nn.norms.slab import RepBatchNorm
from fedkit.nn.transformers import Sizes, TokenClassifier
from tests.edge.in_runtimes import assert_same_in_c
from tests.sets import slow_but

SMALL_VIT = (1, 8, 8)


class RewrittenCase(NamedTuple):
    """A model, and the rewrites that must apply to it."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rewrites: tuple[str, ...]


def vit() -> nn.Module:
    torch.manual_seed(0)
    sizes = Sizes(12, 3, 24, 1, norm_first=True, biases=True)
    model = TokenClassifier(nn.Conv2d(1, 12, 2, 2), 16, sizes, 10)
    for norm in model.modules():
        if isinstance(norm, nn.LayerNorm):
            nn.init.uniform_(norm.weight, 0.8, 1.2)
            nn.init.normal_(norm.bias, std=0.3)
    return model


class SpeltRepNorm(nn.Module):
    """BatchNorm(x) + eta x, as a model spells it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x) + 0.7 * x
        return out


class BranchOfTokens(nn.Module):
    """A residual branch that ends in a convolution, whose pixels become tokens that are scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.inner = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.factor, self.last = nn.Parameter(torch.rand(6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.start(x))
        shortcut, inner = (each.flatten(2).transpose(1, 2) for each in (x, self.inner(x)))
        out: Tensor = self.last(shortcut + self.factor * inner)
        return out


def frozen_vit() -> nn.Module:
    return with_frozen_layer_norms(vit(), torch.from_numpy(examples(SMALL_VIT)))


def convs(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        norm.running_var = torch.rand(norm.num_features) + 0.3
    ends = nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), norm, *ends)


CASES = {
    "RepBN": RewrittenCase(lambda: convs(RepBatchNorm(6)), (2, 6, 6), ("fold_bn",)),
    "RepBN, spelt": RewrittenCase(
        lambda: convs(SpeltRepNorm()), (2, 6, 6), ("merge_affines", "fold_bn")
    ),
    "UN": RewrittenCase(lambda: convs(UnifiedNorm(6)), (2, 6, 6), ("fold_bn",)),
    "PowerNorm": RewrittenCase(lambda: convs(PowerNorm(6)), (2, 6, 6), ("fold_bn",)),
    "affine_forward": RewrittenCase(
        lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten()),
        (2, 6, 6),
        ("affine_forward",),
    ),
    "residual_scale_fold": RewrittenCase(BranchOfTokens, (2, 4, 5), ("residual_scale_fold",)),
    "lowrank_merge": RewrittenCase(
        lambda: nn.Sequential(nn.Linear(6, 40), nn.Linear(40, 5)), (6,), ("lowrank_merge",)
    ),
    "ln_to_rms": RewrittenCase(vit, SMALL_VIT, ("ln_to_rms",)),
    "rms_to_crms": RewrittenCase(vit, SMALL_VIT, ("rms_to_crms",)),
    "ln_affine_fold": RewrittenCase(vit, SMALL_VIT, ("ln_to_rms", "ln_affine_fold")),
    "ln_freeze": RewrittenCase(vit, SMALL_VIT, ("ln_freeze", "ln_to_rms", "affine_forward")),
    "frozen norms": RewrittenCase(frozen_vit, SMALL_VIT, ("lowrank_merge",)),
}


def examples(shape: Sequence[int]) -> ir.FloatArray:
    return np.random.default_rng(0).standard_normal((32, *shape), np.float32)


def test_the_rewrites_of_each_case_apply() -> None:
    for name, case in CASES.items():
        found = edge.rewrite(case.make().eval(), case.rewrites, examples(case.shape))
        applied = {done.kind for done in found.done if done.applied}
        assert applied >= {*case.rewrites}, name


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ending", ["tflite", "onnx"])
def test_a_rewritten_model_has_no_other_integers(name: str, ending: str, tmp_path: Path) -> None:
    case = CASES[name]
    x = examples(case.shape)
    saved = edge.export_model(
        case.make().eval(), x, tmp_path / f"m.{ending}", accept_error=True, rewrites=case.rewrites
    )
    report = edge.check_artifact(saved.path, x)
    assert report.mismatches == 0
    assert report.truth is not None
    assert report.truth.output < 0.1


@pytest.mark.parametrize("name", slow_but(["RepBN", "rms_to_crms"], CASES))
def test_a_rewritten_model_has_no_other_integers_in_c(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    graph = int8_graph(
        case.make().eval(), examples(case.shape), accept_error=True, rewrites=case.rewrites
    )
    assert_same_in_c(graph, "speed", tmp_path)


def test_a_rewritten_graph_can_be_exported_in_place_of_its_model(tmp_path: Path) -> None:
    x = examples(SMALL_VIT)
    found = edge.rewrite(vit().eval(), ["ln_to_rms"], x)
    one = edge.export_model(found.graph, x, tmp_path / "one.tflite")
    other = edge.export_model(vit().eval(), x, tmp_path / "two.tflite", rewrites=["ln_to_rms"])
    assert one.sha256 == other.sha256
    plain = edge.export_model(vit().eval(), x, tmp_path / "plain.tflite")
    assert plain.sha256 != one.sha256
    assert "rewrites" not in plain.provenance


def test_what_is_not_to_be_rewritten_is_refused(tmp_path: Path) -> None:
    x = examples(SMALL_VIT)
    with pytest.raises(ExportError, match="rewrites names 'ln'; give some of exact, "):
        edge.rewrite(vit(), ["ln"], x)
    with pytest.raises(ExportError, match="examples and input_shape are None"):
        edge.rewrite(vit())
    integers = edge.int8_graph(vit().eval(), x)
    with pytest.raises(ExportError, match="which are of float graphs"):
        edge.export_model(integers, x, tmp_path / "m.tflite", rewrites=[EXACT])
    with pytest.raises(ExportError, match="the graph is of integers already"):
        edge.rewrite(integers)


def test_every_rewrite_has_a_case() -> None:
    tried = {name for case in CASES.values() for name in case.rewrites}
    assert tried == {*REWRITES}
