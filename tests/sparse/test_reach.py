"""What a density says of all weights of a model."""

from __future__ import annotations

import pytest
from torch import nn

from fedkit.engine.torch import TorchEngine
from fedkit.sparse.reach import Reach
from fedkit.tasks.task import cross_entropy


class Gates(nn.Module):
    """A recurrent layer that somebody wrote: nobody knows which of its weights could be pruned."""

    def __init__(self) -> None:
        super().__init__()
        for name, parameter in nn.GRU(6, 32).named_parameters():
            self.register_parameter(name, parameter)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = Gates(), nn.Linear(32, 10)


def reach(model: nn.Module) -> Reach:
    return Reach.of(TorchEngine(model, cross_entropy).layout)


def test_all_and_prunable_weights_are_counted() -> None:
    found = reach(Recurrent())
    assert found.weights == 3 * 32 * (6 + 32 + 2) + 32 * 10 + 10
    assert found.prunable == 320
    assert found.others[:2] == (("gru.weight_hh_l0", 3072), ("gru.weight_ih_l0", 576))


def test_a_density_is_told_as_a_share_of_all_weights() -> None:
    found = reach(Recurrent())
    kept = 0.3 * 320 + (found.weights - 320)
    assert found.kept_of_all(0.3) == pytest.approx(kept / found.weights)
    assert found.line(0.3) == (
        "4,170, of which 320 (7.7%) can be pruned; density 0.3 of them keeps 94.6% of all"
    )


def test_a_model_of_which_little_can_be_pruned_gets_a_warning_with_the_largest_parts() -> None:
    text = reach(Recurrent()).warning(0.3)
    assert "only 7.7% of the model's weights can be pruned" in text
    assert "keeps 94.6% of all, so messages shrink at most 1.06 times" in text
    assert "gru.weight_hh_l0 (3,072), gru.weight_ih_l0 (576), gru.bias_ih_l0 (96) and 2" in text


def test_no_warning_where_half_can_be_pruned_or_nothing_is() -> None:
    half = nn.Sequential(nn.Linear(4, 4, bias=False), nn.LayerNorm(8))
    assert reach(half).share == 0.5 and reach(half).warning(0.1) == ""
    less = nn.Sequential(nn.Linear(4, 4, bias=False), nn.LayerNorm(9))
    assert reach(less).warning(0.1) and reach(less).warning(1.0) == ""
