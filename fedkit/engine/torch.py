"""The reference engine: dense torch kernels under masks. Readable first; saves nothing by itself.

Everything runs on one thread, so that results do not depend on the machine's core count and a
simulated device costs one core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedkit.engine.base import (
    STATISTICS_BATCH,
    GradientSums,
    Layout,
    LocalTraining,
    check_loss,
    even_batches,
)
from fedkit.errors import TaskError
from fedkit.nn.layers import STATISTICS, prunable_weights, tracking_norms
from fedkit.nn.norm import L1BatchNorm2d
from fedkit.shiftquant.l1norm import K
from fedkit.sparse.state import ModelState, Weights
from fedkit.sparse.topk import Entries, StreamingTopK
from fedkit.stats.moments import Moments, NormMoments
from fedkit.task import Examples, Task

_EVAL_BATCH = 256
_TILE = 1 << 16


class TorchEngine:
    """Implements `fedkit.engine.base.Engine` over an `nn.Module`.

    Args:
        model: The model; the engine owns it from now on.
        loss: (outputs, targets) -> scalar tensor, the mean over the batch.

    Raises:
        TaskError: The model has no convolution or linear layer.
    """

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._model, self._loss = model, loss
        self._weights = dict(model.named_parameters())
        self._norms = tracking_norms(model)
        self.layout = Layout(
            {name: tuple(weight.shape) for name, weight in self._weights.items()},
            {name: tuple(value.shape) for name, value in self._stats().items()},
            _prunable(model),
        )
        shapes = self.layout.prunable_shapes
        self._initial = self._read({n: np.ones(shape, np.bool_) for n, shape in shapes.items()})

    @classmethod
    def for_task(cls, task: Task, model: str, seed: int) -> TorchEngine:
        """Build the task's model (or the zoo model `model`) with weights drawn from `seed`."""
        return cls(task.build_model(seed, model), task.guarded_loss)

    def _stats(self) -> dict[str, Tensor]:
        return {
            f"{name}.{kind}": getattr(norm, kind)
            for name, norm in self._norms.items()
            for kind in STATISTICS
        }

    def module(self, state: ModelState) -> nn.Module:
        """Return the torch module loaded with `state`, in evaluation mode."""
        self._load(state)
        return self._model.eval()

    def _load(self, state: ModelState) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(torch.from_numpy(np.ascontiguousarray(state.weights[name])))
            for name, value in self._stats().items():
                value.copy_(torch.from_numpy(np.ascontiguousarray(state.stats[name])))

    def _read(self, masks: Mapping[str, NDArray[np.bool_]]) -> ModelState:
        weights = {name: w.detach().numpy().copy() for name, w in self._weights.items()}
        return ModelState(weights, {n: s.numpy().copy() for n, s in self._stats().items()}, masks)

    def initial_state(self) -> ModelState:
        """Return the model as it was given to the engine, with every weight kept."""
        return self._initial

    def train(
        self,
        state: ModelState,
        examples: Examples,
        how: LocalTraining,
        seed: int,
        gradient_sums: GradientSums | None = None,
    ) -> tuple[ModelState, float]:
        """See `Engine.train`. SGD with masked gradients; momentum starts at zero."""
        with one_thread():
            self._load(state)
            self._model.train()
            optimiser = torch.optim.SGD(
                self._weights.values(),
                lr=how.lr,
                momentum=how.momentum,
                weight_decay=how.weight_decay,
            )
            masks = {name: torch.from_numpy(mask) for name, mask in state.masks.items()}
            rng, loss = np.random.default_rng(seed), 0.0
            for _ in range(how.epochs):
                self._restart_statistics()
                order = rng.permutation(len(examples))
                batches = _batches(examples, order, how.batch_size)
                losses = [self._step(x, y, masks, optimiser, gradient_sums) for x, y in batches]
                loss = sum(losses) / len(losses)
            return self._read(state.masks), loss

    def _restart_statistics(self) -> None:
        """Make the running statistics the plain mean over the batches from here on.

        torch's moving average would carry a tenth of it from each batch, so that with few local
        steps most of a device's statistics would be those of earlier rounds' weights.
        """
        for norm in self._norms.values():
            norm.reset_running_stats()
            norm.momentum = None

    def _step(
        self,
        inputs: Tensor,
        targets: Tensor,
        masks: Mapping[str, Tensor],
        sgd: torch.optim.SGD,
        sums: GradientSums | None,
    ) -> float:
        sgd.zero_grad()
        loss = self._loss(self._model(inputs), targets)
        value = check_loss(loss.item())
        loss.backward()  # type: ignore[no-untyped-call]
        for name, mask in masks.items():
            gradient = self._weights[name].grad
            assert gradient is not None
            if sums is not None:
                sums[name] = sums.get(name, np.float32(0)) + gradient.numpy()
            gradient.mul_(mask)
        sgd.step()
        return value

    def norm_moments(self, state: ModelState, examples: Examples) -> NormMoments:
        """See `Engine.norm_moments`. Batches are normalised by their own statistics."""
        collected: dict[str, Moments] = {}

        def collect(name: str, inputs: Tensor) -> None:
            samples = inputs.detach().transpose(0, 1).flatten(1).T
            part = Moments.of(samples.numpy())
            if isinstance(self._norms[name], L1BatchNorm2d):
                part = _l1_moments(part, samples.numpy())
            collected[name] = collected[name] + part if name in collected else part

        hooks = [
            norm.register_forward_pre_hook(lambda _, args, name=name: collect(name, args[0]))
            for name, norm in self._norms.items()
        ]
        try:
            with one_thread(), torch.no_grad():
                self._load(state)
                self._model.train()
                order = np.arange(len(examples))
                for inputs, _ in _batches(examples, order, STATISTICS_BATCH):
                    self._model(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return collected

    def loss(self, state: ModelState, examples: Examples) -> float:
        """See `Engine.loss`."""
        with one_thread(), torch.no_grad():
            model = self.module(state)
            total = 0.0
            for inputs, targets in _batches(examples, np.arange(len(examples)), _EVAL_BATCH):
                total += self._loss(model(inputs), targets).item() * len(targets)
        return total / len(examples)

    def top_gradients(
        self, state: ModelState, examples: Examples, amounts: Mapping[str, int]
    ) -> dict[str, Entries]:
        """See `Engine.top_gradients`. One batch of all examples; torch's gradient is dense."""
        gradients = self._gradients(state, examples, amounts)
        return {
            name: _stream(gradient.reshape(-1), state.masks[name].reshape(-1), amounts[name])
            for name, gradient in gradients.items()
        }

    def gradients(self, state: ModelState, examples: Examples) -> Weights:
        """See `Engine.gradients`."""
        return self._gradients(state, examples, self.layout.prunable)

    def _gradients(self, state: ModelState, examples: Examples, names: Iterable[str]) -> Weights:
        weights = {name: self._weights[name] for name in names}
        with one_thread():
            self._load(state)
            self._model.train()
            inputs, targets = _tensors(examples, np.arange(len(examples)))
            loss = self._loss(self._model(inputs), targets)
            check_loss(loss.item())
            gradients = torch.autograd.grad(loss, list(weights.values()))
        return {
            name: np.ascontiguousarray(gradient.numpy())
            for name, gradient in zip(weights, gradients, strict=True)
        }

    def outputs(self, state: ModelState, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Engine.outputs`."""
        with one_thread(), torch.no_grad():
            model = self.module(state)
            parts = [
                model(torch.tensor(inputs[start : start + _EVAL_BATCH])).numpy()
                for start in range(0, len(inputs), _EVAL_BATCH)
            ]
        return np.concatenate(parts)


def _l1_moments(moments: Moments, samples: NDArray[np.float32]) -> Moments:
    """Put the squared deviation of an L1 norm, which divides by its root, in a variance's place."""
    spread = K * np.abs(samples - moments.mean).mean(axis=0)
    return Moments.from_variance(moments.n, moments.mean, np.square(spread))


def _prunable(model: nn.Module) -> tuple[str, ...]:
    prunable = prunable_weights(model)
    if not prunable:
        raise TaskError(
            f"model {type(model).__name__} has no convolution or linear layer of its own, so there "
            "is nothing to prune; give a model built from nn.Conv*d and nn.Linear"
        )
    return prunable


def _batches(
    examples: Examples, order: NDArray[np.int64], batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches that `even_batches` makes."""
    for part in even_batches(order, batch_size):
        yield _tensors(examples, part)


def _tensors(examples: Examples, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    return (
        torch.from_numpy(examples.inputs[indices]),
        torch.from_numpy(examples.targets[indices]),
    )


def _stream(gradient: NDArray[np.float32], mask: NDArray[np.bool_], amount: int) -> Entries:
    top = StreamingTopK(amount)
    for start in range(0, len(gradient), _TILE):
        pruned = start + np.flatnonzero(~mask[start : start + _TILE])
        top.push(pruned, gradient[pruned])
    return top.entries()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread in a block, and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
