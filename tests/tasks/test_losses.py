"""Every loss is torch's function, and its value and gradient in numpy are those of autograd."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedkit.core.errors import TaskError
from fedkit.core.reals import exp, log
from fedkit.tasks import losses
from fedkit.tasks.losses.definition import Loss

Random = np.random.Generator
Shape = tuple[int, ...]
Function = Callable[[Tensor, Tensor], Tensor]

SHAPES: tuple[Shape, ...] = ((1,), (5,), (3, 7), (2, 3, 5))
"""Of an example's outputs: features, series and maps."""


def classes(random: Random, shape: Shape) -> NDArray[Any]:
    return random.integers(0, shape[1], (shape[0], *shape[2:]))


def some_ignored(random: Random, shape: Shape) -> NDArray[Any]:
    found = classes(random, shape)
    found[random.random(found.shape) < 0.3] = -100
    return found


def numbers(random: Random, shape: Shape) -> NDArray[Any]:
    return random.standard_normal(shape).astype(np.float32)


def yes_or_no(random: Random, shape: Shape) -> NDArray[Any]:
    return random.integers(0, 2, shape)


def shares(random: Random, shape: Shape) -> NDArray[Any]:
    return random.random(shape).astype(np.float32)


def per_channel(count: int) -> list[float]:
    return [0.0 if i == 1 else 0.5 + i for i in range(count)]


def of_torch(name: str, **how: Any) -> Function:
    """Return torch's function, given targets in the type of the outputs where they are numbers."""

    def function(outputs: Tensor, targets: Tensor) -> Tensor:
        values = {
            key: torch.tensor(value, dtype=outputs.dtype) if isinstance(value, list) else value
            for key, value in how.items()
        }
        if "pos_weight" in values and values["pos_weight"].ndim:
            values["pos_weight"] = values["pos_weight"].reshape(-1, *[1] * (outputs.dim() - 2))
        is_index = name == "cross_entropy"
        found: Tensor = getattr(F, name)(
            outputs, targets if is_index else targets.to(outputs.dtype), **values
        )
        return torch.nan_to_num(found) if is_index else found  # NaN: nothing counts

    return function


Case = tuple[Callable[[int], Loss], Callable[[int], Function], Callable[[Random, Shape], Any]]

CASES: dict[str, Case] = {
    "cross entropy": (
        lambda c: losses.CrossEntropy(),
        lambda c: of_torch("cross_entropy"),
        classes,
    ),
    "cross entropy with everything": (
        lambda c: losses.CrossEntropy(per_channel(c), -100, 0.2),
        lambda c: of_torch("cross_entropy", weight=per_channel(c), label_smoothing=0.2),
        some_ignored,
    ),
    "cross entropy that ignores a class": (
        lambda c: losses.CrossEntropy(ignore_index=0),
        lambda c: of_torch("cross_entropy", ignore_index=0),
        classes,
    ),
    "cross entropy smoothed to the last": (
        lambda c: losses.CrossEntropy(label_smoothing=1.0),
        lambda c: of_torch("cross_entropy", label_smoothing=1.0),
        classes,
    ),
    "mse": (lambda c: losses.MSE(), lambda c: of_torch("mse_loss"), numbers),
    "mse of whole numbers": (lambda c: losses.MSE(), lambda c: of_torch("mse_loss"), yes_or_no),
    "l1": (lambda c: losses.L1(), lambda c: of_torch("l1_loss"), numbers),
    "huber": (lambda c: losses.Huber(0.3), lambda c: of_torch("huber_loss", delta=0.3), numbers),
    "smooth l1": (
        lambda c: losses.SmoothL1(0.3),
        lambda c: of_torch("smooth_l1_loss", beta=0.3),
        numbers,
    ),
    "smooth l1 without a smooth part": (
        lambda c: losses.SmoothL1(0.0),
        lambda c: of_torch("smooth_l1_loss", beta=0.0),
        numbers,
    ),
    "bce": (
        lambda c: losses.BCEWithLogits(),
        lambda c: of_torch("binary_cross_entropy_with_logits"),
        yes_or_no,
    ),
    "bce of shares": (
        lambda c: losses.BCEWithLogits(3.0),
        lambda c: of_torch("binary_cross_entropy_with_logits", pos_weight=torch.tensor(3.0)),
        shares,
    ),
    "bce with weights": (
        lambda c: losses.BCEWithLogits(per_channel(c)),
        lambda c: of_torch("binary_cross_entropy_with_logits", pos_weight=per_channel(c)),
        shares,
    ),
}


def by_autograd(function: Function, outputs: NDArray[Any], targets: Any) -> tuple[float, Any]:
    leaf = torch.tensor(outputs, dtype=torch.float64, requires_grad=True)
    loss = function(leaf, torch.as_tensor(targets))
    (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True, materialize_grads=True)
    return loss.item(), torch.nan_to_num(gradient).numpy()


def compare(loss: Loss, function: Function, outputs: NDArray[Any], targets: Any) -> None:
    """Hold value and gradient in numpy, and the loss by torch itself, against a function."""
    assert loss.outputs_problem(outputs.shape[1:]) == ""
    assert loss.targets_problem(outputs.shape[1:], targets) == ""
    wanted, slopes = by_autograd(function, outputs, targets)
    by_torch, torch_slopes = by_autograd(loss, outputs, targets)
    assert by_torch == pytest.approx(wanted, rel=1e-12, abs=1e-12)
    np.testing.assert_allclose(torch_slopes, slopes, rtol=1e-11, atol=1e-13)
    value, found = loss.gradient(outputs.astype(np.float64), targets)
    assert value == pytest.approx(wanted, rel=1e-11, abs=1e-12)
    np.testing.assert_allclose(found, slopes, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_loss_is_torchs_in_value_and_gradient(name: str, shape: Shape) -> None:
    make, function, targets_of = CASES[name]
    random = np.random.default_rng(0)
    for count, size in itertools.product((1, 13), (0.0, 1.0, 1e8)):
        whole = (count, *shape)
        outputs = (size * random.standard_normal(whole)).astype(np.float32)
        targets = targets_of(random, whole)
        compare(make(shape[0]), function(shape[0]), outputs, targets)
        assert targets.shape[0] == count
        if targets.shape == whole:  # at the target itself, where a slope may be torn
            compare(make(shape[0]), function(shape[0]), targets.astype(np.float32), targets)


def test_where_no_target_counts_the_loss_is_0_and_moves_nothing() -> None:
    outputs, targets = np.ones((3, 2)), np.full(3, 7)
    for loss in (
        losses.CrossEntropy(ignore_index=7),
        losses.CrossEntropy(weight=(0.0, 1.0)),
        losses.TripletMargin(),
        losses.InfoNCE(),
    ):
        if isinstance(loss, losses.CrossEntropy) and loss.weight:
            targets = np.zeros(3, np.int64)
        value, gradient = loss.gradient(
            outputs, np.arange(3) if loss.kind == "info_nce" else targets
        )
        assert (value, np.abs(gradient).max()) == (0.0, 0.0)
        given = torch.arange(3) if loss.kind == "info_nce" else torch.from_numpy(targets)
        leaf = torch.ones(3, 2, requires_grad=True)
        loss(leaf, given).backward()
        assert leaf.grad is not None and leaf.grad.abs().max() == 0


@pytest.mark.parametrize("name", losses.LOSSES)
def test_an_empty_batch_is_refused(name: str) -> None:
    loss = losses.LOSSES[name]()
    targets = np.zeros(0 if loss.targets_problem((3,), np.zeros((1, 3))) else (0, 3), np.int64)
    with pytest.raises(TaskError, match=f"loss {name} of an empty batch"):
        loss.gradient(np.zeros((0, 3)), targets)
    with pytest.raises(TaskError, match=f"loss {name} of an empty batch"):
        loss(torch.zeros(0, 3), torch.from_numpy(targets))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_give_no_finite_loss(bad: float) -> None:
    outputs = np.ones((4, 3))
    outputs[1, 1] = bad
    index, numbers = np.array([0, 1, 0, 1]), np.zeros((4, 3), np.float32)
    for loss in (row() for row in losses.LOSSES.values()):
        targets = numbers if loss.targets_problem((3,), index) else index
        with np.errstate(all="ignore"):
            value, _ = loss.gradient(outputs, targets)
        assert not math.isfinite(value) or (loss.kind == "cross_entropy" and bad == -np.inf)


# Embeddings


def triplets(targets: NDArray[Any]) -> list[tuple[int, int, int]]:
    every = range(len(targets))
    return [
        (a, p, n)
        for a in every for p in every for n in every
        if a != p and targets[a] == targets[p] != targets[n]
    ]  # fmt: skip


def triplet_margin(margin: float) -> Function:
    def function(outputs: Tensor, targets: Tensor) -> Tensor:
        found = triplets(targets.numpy())
        if not found:
            return outputs.sum() * 0.0
        a, p, n = (outputs[list(each)] for each in zip(*found, strict=True))
        return F.triplet_margin_loss(a, p, n, margin=margin)

    return function


def info_nce(temperature: float) -> Function:
    def function(outputs: Tensor, targets: Tensor) -> Tensor:
        each = []
        for i, own in enumerate(targets):
            others = [j for j in range(len(targets)) if j != i]
            near = F.cosine_similarity(outputs[i][None], outputs[others], eps=1e-12) / temperature
            same = [k for k, j in enumerate(others) if targets[j] == own]
            if same:
                each.append(
                    torch.stack([F.cross_entropy(near, torch.tensor(k)) for k in same]).mean()
                )
        return torch.stack(each).mean() if each else outputs.sum() * 0.0

    return function


@pytest.mark.parametrize("features", [1, 2, 7])
@pytest.mark.parametrize("count", [1, 2, 3, 10])
@pytest.mark.parametrize("targets", ["one class", "each its own", "some"])
def test_losses_of_embeddings_compare_the_examples_of_a_batch(
    targets: str, count: int, features: int
) -> None:
    random = np.random.default_rng(count)
    outputs = random.standard_normal((count, features)).astype(np.float32)
    of = {"one class": np.full(count, 3), "each its own": np.arange(count) - 5}
    index = of.get(targets, random.integers(0, 3, count))
    assert losses.TripletMargin().share(index) == count
    compare(losses.TripletMargin(0.5), triplet_margin(0.5), outputs, index)
    compare(losses.InfoNCE(0.2), info_nce(0.2), outputs, index)
    # Embeddings that all are the same: torch's distance has a slope there too.
    compare(losses.TripletMargin(), triplet_margin(1.0), np.ones_like(outputs), index)
    compare(losses.InfoNCE(), info_nce(0.1), np.ones_like(outputs), index)


# Torch's own


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (F.mse_loss, losses.MSE()),
        (nn.MSELoss(), losses.MSE()),
        (nn.L1Loss(), losses.L1()),
        (partial(F.huber_loss, delta=2.0), losses.Huber(2.0)),
        (nn.SmoothL1Loss(beta=0.5), losses.SmoothL1(0.5)),
        (F.cross_entropy, losses.CrossEntropy(ignore_index=-100)),
        (
            nn.CrossEntropyLoss(torch.tensor([1.0, 2.0]), ignore_index=1, label_smoothing=0.5),
            losses.CrossEntropy((1.0, 2.0), 1, 0.5),
        ),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0)), losses.BCEWithLogits(2.0)),
        (losses.MSE(), losses.MSE()),
        # What is not the same thing stays a loss of one's own.
        (nn.MSELoss(reduction="sum"), None),
        (partial(F.mse_loss, reduction="none"), None),
        (partial(F.mse_loss, torch.zeros(1)), None),
        (nn.BCEWithLogitsLoss(weight=torch.tensor([2.0, 1.0])), None),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 1.0])), None),
        (F.triplet_margin_loss, None),
        (nn.TripletMarginLoss(), None),
        (type("Mine", (nn.MSELoss,), {})(), None),
        (lambda outputs, targets: F.mse_loss(outputs, targets), None),
        (None, None),
    ],
)
def test_torchs_own_losses_are_known(given: object, wanted: Loss | None) -> None:
    assert losses.known(given) == wanted


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.CrossEntropy(label_smoothing=1.5), "label_smoothing is 1.5; .* 0 .. 1"),
        (lambda: losses.CrossEntropy(weight=(1.0, -1.0)), "weight is .*at least 0 for each class"),
        (lambda: losses.CrossEntropy(weight=(math.nan,)), "weight is"),
        (lambda: losses.CrossEntropy(weight=()), "weight is"),
        (
            lambda: losses.CrossEntropy(weight=[[1.0]]),  # type: ignore[list-item]
            r"shape \(1, 1\); give one for each",
        ),
        (
            lambda: losses.CrossEntropy(weight="x"),  # type: ignore[arg-type]
            "'x' are not numbers",
        ),
        (lambda: losses.CrossEntropy(label_smoothing="a lot"), "'a lot' is not a number"),  # type: ignore[arg-type]
        (lambda: losses.CrossEntropy(ignore_index=0.5), "ignore_index is 0.5; .* int64"),  # type: ignore[arg-type]
        (lambda: losses.BCEWithLogits("x"), "'x' are not numbers"),  # type: ignore[arg-type]
        (lambda: losses.Huber(0.0), "delta is 0.0; .* greater than 0"),
        (lambda: losses.SmoothL1(-1.0), "beta is -1.0; .* at least 0"),
        (lambda: losses.BCEWithLogits(math.inf), "pos_weight is inf"),
        (lambda: losses.TripletMargin(0.0), "margin is 0.0"),
        (lambda: losses.InfoNCE(-1.0), "temperature is -1.0"),
        (lambda: losses.known(nn.HuberLoss(delta=-1.0)), "delta is -1.0"),
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        make()


@pytest.mark.parametrize(
    ("loss", "shape", "targets", "message"),
    [
        (losses.CrossEntropy(), (3,), np.array([0, 3]), "from 0 to 3; the model has 3 classes"),
        (losses.CrossEntropy(), (3,), np.array([0, -100]), "from -100 to 0"),
        (losses.CrossEntropy(ignore_index=9), (3,), np.array([9, 8]), "from 8 to 8"),
        (losses.CrossEntropy(), (3,), np.array([0.0, 1.0]), r"float64 \[n\] .* int64 \[n\]"),
        (losses.CrossEntropy(), (3, 2), np.array([0, 1]), r"int64 \[n, 2\]"),
        (losses.MSE(), (1,), np.zeros(4), r"must be \[n, 1\].*targets.reshape\(-1, 1\)"),
        (losses.MSE(), (2, 3), np.zeros((4, 2)), r"must be \[n, 2, 3\], as the outputs$"),
        (losses.L1(), (2,), np.array([["a", "b"]]), "compares each output with a number"),
        (losses.BCEWithLogits(), (2,), np.array([[0, 2]]), "from 0 to 2; .* 0 for no .. 1 for yes"),
        (losses.BCEWithLogits(), (2,), np.array([[-0.1, 1]]), "0 for no .. 1 for yes"),
        (losses.TripletMargin(), (2,), np.array([[0], [1]]), r"takes a class each, int64 \[n\]"),
        (losses.InfoNCE(), (2,), np.array([0.0, 1.0]), "takes a class each"),
    ],
)
def test_targets_that_do_not_fit_are_told(
    loss: Loss, shape: Shape, targets: NDArray[Any], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        problem = loss.targets_problem(shape, targets) if targets.dtype.kind != "U" else ""
        raise AssertionError(problem or "compares each output with a number")


@pytest.mark.parametrize(
    ("loss", "shape", "message"),
    [
        (losses.CrossEntropy((1.0, 2.0)), (3,), "weights of 2 classes, and the model has 3"),
        (losses.CrossEntropy(), (), "one number each"),
        (losses.BCEWithLogits((1.0, 2.0)), (3, 4), "pos_weight for 2 channels"),
        (losses.TripletMargin(), (3, 4), r"shape \(3, 4\); .* compares embeddings"),
        (losses.InfoNCE(), (), "compares embeddings"),
    ],
)
def test_outputs_that_do_not_fit_are_told(loss: Loss, shape: Shape, message: str) -> None:
    found = loss.outputs_problem(shape)
    assert message.split("; .* ")[0].replace("\\", "") in found


# exp and log


@given(st.floats(-745, 709), st.floats(1e-300, 1e300))
def test_exp_and_log_are_those_of_the_library(x: float, y: float) -> None:
    (power,), (found,) = exp(np.array([x])), log(np.array([y]))
    assert power == pytest.approx(math.exp(x), rel=1e-15, abs=1e-322)
    assert abs(found - math.log(y)) <= 4e-16 * max(1.0, abs(math.log(y)))


def test_exp_and_log_at_their_ends() -> None:
    found = exp(np.array([-np.inf, -800.0, 0.0, 800.0, np.inf, np.nan]))
    np.testing.assert_array_equal(found, [0.0, 0.0, 1.0, np.inf, np.inf, np.nan])
    np.testing.assert_array_equal(log(np.array([1.0, np.nan])), [0.0, np.nan])
