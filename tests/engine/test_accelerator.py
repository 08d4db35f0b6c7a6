"""Where torch computes: what is found, what is refused, and that bits come back the same."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fedkit.core.errors import ConfigError, EngineError
from fedkit.engine.accelerator import CPU, Accelerator, describe, found_device, repeatable
from fedkit.engine.base import LocalTraining
from fedkit.engine.choose import make_engine
from fedkit.engine.torch import TorchEngine
from fedkit.flower.workers import resolved
from fedkit.tasks import load_task

ACCELERATORS = [
    pytest.param(name, marks=[pytest.mark.slow, pytest.mark.skipif(not there, reason=f"no {name}")])
    for name, there in (
        ("cuda", torch.cuda.is_available()),
        ("mps", torch.backends.mps.is_available()),
    )
]


@pytest.fixture(params=[(), ("cuda",), ("mps",), ("cuda", "mps")], ids=str)
def there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Accelerators that torch says it has."""
    found: tuple[str, ...] = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in found)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in found)
    return found


@pytest.mark.parametrize("wish", ["auto", "cpu", "cuda", "mps"])
def test_what_is_there_is_taken_and_what_is_not_is_told(
    there: tuple[str, ...], wish: Accelerator
) -> None:
    if wish == "auto":
        assert found_device(wish).type == ([*there, "cpu"][0])
    elif wish in ("cpu", *there):
        assert found_device(wish) == torch.device(wish)
    else:
        have = ", ".join(("cpu", *there))
        with pytest.raises(EngineError, match=f"accelerator is '{wish}'.*there is: {have}\\. Give"):
            found_device(wish)


FLAGS: list[tuple[Any, str]] = [
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_tf32"),
]


@pytest.fixture
def loose() -> Iterator[None]:
    """Flags as somebody who wants speed sets them."""
    before = [getattr(owner, name) for owner, name in FLAGS]
    for owner, name in FLAGS:
        setattr(owner, name, True)
    yield
    for (owner, name), value in zip(FLAGS, before, strict=True):
        setattr(owner, name, value)


@pytest.mark.usefixtures("loose")
@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_an_accelerator_is_asked_for_the_same_bits_and_flags_come_back(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(KeyError), repeatable(torch.device(name)):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not any(getattr(owner, flag) for owner, flag in FLAGS)
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()
    assert all(getattr(owner, flag) for owner, flag in FLAGS)


@pytest.mark.usefixtures("loose")
def test_the_processor_needs_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with repeatable(CPU):
        assert not torch.are_deterministic_algorithms_enabled()
        assert all(getattr(owner, flag) for owner, flag in FLAGS)
    assert describe(CPU) == "torch" and describe(torch.device("mps")) == "torch on mps"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    assert describe(torch.device("cuda")) == "torch on cuda (a card)"


def test_the_c_engines_refuse_an_accelerator_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    task = load_task("digits")
    with pytest.raises(EngineError, match=r"'cuda', and the C engines \(engine sparse\) know"):
        make_engine(task, "", 1, "sparse", accelerator="cuda")
    with pytest.raises(EngineError, match=r"'cuda', and the C engines \(precision int8\) know"):
        make_engine(task, "", 1, "auto", "int8", accelerator="cuda")
    assert "sparse" in make_engine(task, "", 1, "sparse", accelerator="auto")[1]


def test_without_one_auto_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    task = load_task("digits")
    for wish in ("auto", "torch"):
        plain, asked = (
            make_engine(task, "", 1, wish, accelerator=name)[1] for name in ("cpu", "auto")
        )
        assert plain == asked
    with pytest.raises(EngineError, match="there is: cpu"):
        make_engine(task, "", 1, "torch", accelerator="cuda")


def test_devices_share_an_accelerator_in_threads() -> None:
    assert resolved("auto", "cuda") == "threads"
    assert resolved("threads", "auto") == "threads"
    assert resolved("ray", "cuda") == "ray"
    with pytest.raises(ConfigError, match="cannot be used in a fork; take backend threads"):
        resolved("processes", "mps")


@pytest.mark.parametrize("name", ACCELERATORS)
def test_an_accelerator_learns_what_the_processor_does(name: str) -> None:
    """Each of the engine's answers, close to the processor's and the same when asked again."""
    task, how = load_task("digits"), LocalTraining(2, 32, 0.05, 0.9, 5e-4)
    examples = task.examples("train").take(np.arange(200))
    device = torch.device(name)
    here, there = (TorchEngine.for_task(task, "", 1, where) for where in (CPU, device))
    state = here.initial_state()
    rng = np.random.default_rng(0)
    state = state.with_masks({n: rng.random(m.shape) < 0.5 for n, m in state.masks.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ops without a deterministic kernel
        wanted, loss = here.train(state, examples, how, seed=3)
        found, theirs = there.train(state, examples, how, seed=3)
        again, _ = there.train(state, examples, how, seed=3)
        sums = there.norm_moments(state, examples)
        top = there.top_gradients(state, examples, dict.fromkeys(state.masks, 3))
        outputs = there.outputs(found, examples.inputs[:50])
        assert there.norm_levels(examples.inputs.shape[1:])
        measured = there.loss(found, examples)
    assert theirs == pytest.approx(loss, rel=1e-3)
    for weight, value in found.weights.items():
        np.testing.assert_array_equal(value, again.weights[weight])
        np.testing.assert_allclose(value, wanted.weights[weight], atol=1e-3)
        if weight in state.masks:
            assert not value[~state.masks[weight]].any()
    for norm, moments in here.norm_moments(state, examples).items():
        np.testing.assert_allclose(sums[norm].mean, moments.mean, atol=1e-4)
    assert {len(entries.indices) for entries in top.values()} == {3}
    np.testing.assert_allclose(outputs, here.outputs(found, examples.inputs[:50]), atol=1e-3)
    assert measured == pytest.approx(here.loss(found, examples), rel=1e-3)


@pytest.mark.parametrize("name", ACCELERATORS)
def test_a_fleet_shares_an_accelerator(name: str) -> None:
    import fedkit

    keys: dict[str, Any] = {
        "devices": 4,
        "rounds": 2,
        "accelerator": name,
        "examples_per_device": 40,
    }
    first, second = (fedkit.run("digits", workers=2, accelerator=name, **keys) for _ in range(2))
    assert first.accuracy == second.accuracy > 0.2
