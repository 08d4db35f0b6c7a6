"""Which engine runs a task, and what is said about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkit.core.errors import EngineError, PlanError
from fedkit.engine.choose import make_engine
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.kernels import native
from fedkit.engine.ops.family import Family
from fedkit.engine.ops.registry import FAMILIES
from fedkit.engine.plan.capture import capture
from fedkit.engine.precision import BITS, Precision
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.tasks import digits, load_task
from fedkit.tasks.task import Examples, Task, cross_entropy
from tests.sets import slow


def smooth_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, label_smoothing=0.1)


def with_softmax() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.LogSoftmax(1), nn.Linear(9, 10))


def without_pools() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 10))


SMALL = Task("small", without_pools, digits.train_data, digits.test_data)
SOFTMAX = Task("sharp", with_softmax, digits.train_data, digits.test_data)
OWN_LOSS = replace(load_task("digits"), loss=smooth_loss)


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    native.load_kernels.cache_clear()
    monkeypatch.setattr(native, "_library", lambda: None)


def random_images() -> Examples:
    rng = np.random.default_rng(0)
    return Examples(rng.random((30, 1, 28, 28), dtype=np.float32), np.arange(30) % 10)


@pytest.mark.parametrize("task", ["digits", "fashion-mnist"])
@pytest.mark.parametrize("model", ["", "ds-cnn", slow("resnet18-w16"), slow("mobilenetv2-w0.25")])
def test_built_in_tasks_and_models_run_sparse(task: str, model: str) -> None:
    images = replace(load_task(task), train_data=random_images, test_data=random_images)
    engine, notice = make_engine(images, model, 1, "auto")
    assert isinstance(engine, SparseEngine)
    assert notice == f"sparse ({native.available()[0]})"


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("wish", ["auto", "sparse"])
def test_an_integer_precision_runs_in_as_many_bits(
    precision: Precision, wish: Literal["auto", "sparse"]
) -> None:
    engine, notice = make_engine(load_task("digits"), "", 1, wish, precision)
    assert isinstance(engine, IntegerEngine)
    assert (engine.bits, engine.gradient) == (int(precision.removeprefix("int")), "shiftquant")
    assert notice == f"integer, {engine.bits} bits ({native.available()[0]})"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("wish", ["auto", "sparse"])
@pytest.mark.parametrize("model", ["", slow("resnet18-w16")])
def test_all_engines_start_from_the_same_weights(
    wish: Literal["auto", "sparse"], model: str, precision: Precision
) -> None:
    task = load_task("digits")
    ours, _ = make_engine(task, model, 4, wish, precision)
    theirs, notice = make_engine(task, model, 4, "torch")
    assert isinstance(theirs, TorchEngine) and notice == "torch"
    assert ours.layout == theirs.layout
    one, other = ours.initial_state(), theirs.initial_state()
    for kind in ("weights", "stats", "masks"):
        assert list(getattr(one, kind)) == list(getattr(other, kind))
        for name, value in getattr(one, kind).items():
            assert value.tobytes() == getattr(other, kind)[name].tobytes()
    different = make_engine(task, model, 5, wish, precision)[0].initial_state()
    assert any((different.weights[n] != w).any() for n, w in one.weights.items())
    images = task.test_data().inputs[:20]
    near = {"fp32": 1e-5, "int8": 0.1}[precision]
    np.testing.assert_allclose(ours.outputs(one, images), theirs.outputs(one, images), atol=near)


def test_an_unsupported_layer_runs_on_torch_and_is_named() -> None:
    engine, notice = make_engine(SOFTMAX, "", 1, "auto")
    assert isinstance(engine, TorchEngine)
    assert notice.startswith("torch; the sparse engine cannot run this: 1 part(s) of Sequential")
    assert "module '2': log_softmax: a plan has no such op" in notice


def test_a_loss_of_its_own_runs_on_torch() -> None:
    engine, notice = make_engine(OWN_LOSS, "", 1, "auto")
    assert isinstance(engine, TorchEngine)
    assert "the loss of task 'digits' is its own" in notice and "--engine torch" in notice


@pytest.mark.usefixtures("no_kernels")
def test_without_kernels_torch_runs_and_the_notice_says_how_to_get_them() -> None:
    engine, notice = make_engine(load_task("digits"), "", 1, "auto")
    assert isinstance(engine, TorchEngine)
    assert "kernels of the sparse engine are missing; install a C compiler" in notice
    assert "pip install" in notice


def test_a_wish_for_sparse_that_cannot_be_met_is_an_error() -> None:
    with pytest.raises(PlanError, match="module '2': log_softmax: a plan has no such op"):
        make_engine(SOFTMAX, "", 1, "sparse")
    with pytest.raises(EngineError, match="is its own"):
        make_engine(OWN_LOSS, "", 1, "sparse")


def test_few_stored_bits_are_the_sparse_engines() -> None:
    engine, notice = make_engine(load_task("digits"), "", 1, "auto", stored_bits=8)
    assert isinstance(engine, SparseEngine) and engine.stored_bits == 8
    assert "stores 8 bits" in notice
    with pytest.raises(EngineError, match="stored_bits is 8, and torch stores 32; torch computes"):
        make_engine(load_task("digits"), "", 1, "torch", stored_bits=8)
    with pytest.raises(EngineError, match="torch stores 32; the sparse engine cannot run this"):
        make_engine(SOFTMAX, "", 1, "auto", stored_bits=4)


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_wish_for_sparse_without_kernels_is_an_error(precision: Precision) -> None:
    with pytest.raises(EngineError, match="kernels of the sparse engine are missing"):
        make_engine(load_task("digits"), "", 1, "sparse", precision)


@pytest.mark.usefixtures("no_kernels")
def test_without_kernels_integers_run_on_numpy_and_the_notice_says_so() -> None:
    engine, notice = make_engine(load_task("digits"), "", 1, "auto", "int6")
    assert isinstance(engine, IntegerEngine) and engine.kernels is None
    assert "integer, 6 bits, on numpy" in notice and "install a C compiler" in notice
    inputs = load_task("digits").test_data().inputs[:3]
    assert engine.outputs(engine.initial_state(), inputs).shape == (3, 10)


def test_what_integers_cannot_run_is_named_with_the_way_out() -> None:
    with pytest.raises(
        PlanError, match=r"(?s)'int8', and .* module '2': log_softmax.*--precision fp32$"
    ):
        make_engine(SOFTMAX, "", 1, "auto", "int8")
    with pytest.raises(EngineError, match=r"'int4', and .* is its own.*--precision fp32$"):
        make_engine(OWN_LOSS, "", 1, "auto", "int4")


# Ops that an engine lacks


@pytest.fixture
def only_torch_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take pooling from both engines."""
    lacking = replace(FAMILIES["pool"], sparse=None, integer=None)
    monkeypatch.setitem(cast(dict[str, Family], FAMILIES), "pool", lacking)


def pooling() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 10))


POOLING = Task("pooling", pooling, digits.train_data, digits.test_data)


@pytest.mark.usefixtures("only_torch_pools")
def test_an_op_that_the_sparse_engine_lacks_sends_its_model_to_torch_by_name() -> None:
    engine, notice = make_engine(POOLING, "", 1, "auto")
    assert isinstance(engine, TorchEngine)
    assert "the model has pool, which the sparse engine does not compute" in notice
    with pytest.raises(EngineError, match=r"has pool, .* need --engine torch$"):
        make_engine(POOLING, "", 1, "sparse")
    assert isinstance(make_engine(SMALL, "", 1, "auto")[0], SparseEngine)


@pytest.mark.usefixtures("only_torch_pools")
def test_an_op_that_integers_lack_is_named_with_the_way_out() -> None:
    message = r"int8.*: the model has pool, .* need --engine torch with --precision fp32$"
    with pytest.raises(EngineError, match=message):
        make_engine(POOLING, "", 1, "auto", "int8")
    with pytest.raises(EngineError, match="pool, which the integer engine does not compute"):
        IntegerEngine(capture(pooling(), (1, 8, 8)))


def test_both_engines_have_every_op_so_far() -> None:
    assert isinstance(make_engine(POOLING, "", 1, "auto")[0], SparseEngine)
    assert isinstance(make_engine(POOLING, "", 1, "auto", "int8")[0], IntegerEngine)


def test_torch_and_integers_contradict_each_other() -> None:
    with pytest.raises(EngineError, match=r"'int8', but engine 'torch' .*--precision fp32"):
        make_engine(load_task("digits"), "", 1, "torch", "int8")


def test_choosing_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    make_engine(load_task("digits"), "", 1, "auto")
    assert torch.equal(torch.rand(3), expected)
    assert load_task("digits").loss is cross_entropy
