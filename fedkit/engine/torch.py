"""The reference engine: dense torch kernels under masks. Readable first; saves nothing by itself.

Everything runs on one thread, so that results do not depend on the machine's core count and a
simulated device costs one core.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedkit.core.errors import EngineError, PlanError, TaskError
from fedkit.core.numerics import K
from fedkit.engine.accelerator import CPU, repeatable
from fedkit.engine.base import (
    STATISTICS_BATCH,
    GradientSums,
    LocalTraining,
    MeanLoss,
    NormLevels,
    TrainingBatches,
    check_loss,
    even_batches,
    merge_batches,
)
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.checks import one_value_error
from fedkit.engine.plan.structure import norm_levels
from fedkit.nn.layers import (
    STATISTICS,
    held_by_norms,
    modes_restored,
    norm_parameters,
    prunable_weights,
    tracking_norms,
    trainable_parameters,
    untrainable_parts,
)
from fedkit.nn.norms.registry import NormRow, row_of, rows_in
from fedkit.sparse.layout import Layout
from fedkit.sparse.state import ModelState, Weights
from fedkit.sparse.topk import Entries, StreamingTopK
from fedkit.stats.moments import Moments, NormMoments
from fedkit.tasks import losses
from fedkit.tasks.task import Examples, Task

_EVAL_BATCH = 256
_TILE = 1 << 16


class TorchEngine:
    """Implements `fedkit.engine.base.Engine` over an `nn.Module`.

    Args:
        model: The model; the engine owns it from now on.
        loss: (outputs, targets) -> scalar tensor, the mean over the batch.
        device: Where batches are computed; what the engine takes and returns is on the processor.

    Raises:
        TaskError: The model has no convolution or linear layer, or parts that cannot be trained
            and pruned; all are named.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        device: torch.device = CPU,
    ) -> None:
        if parts := list(untrainable_parts(model)):
            listed = "\n  ".join(parts)
            raise TaskError(f"model {type(model).__name__} cannot be trained:\n  {listed}")
        self._model, self._loss, self._row = model, loss, losses.known(loss)
        self._weights = trainable_parameters(model)
        self._norms = tracking_norms(model)
        self.layout = Layout(
            {name: tuple(weight.shape) for name, weight in self._weights.items()},
            {name: tuple(value.shape) for name, value in self._stats().items()},
            _prunable(model),
        )
        shapes = self.layout.prunable_shapes
        self._initial = self._read({n: np.ones(shape, np.bool_) for n, shape in shapes.items()})
        self.device = device
        model.to(device)

    @classmethod
    def for_task(cls, task: Task, model: str, seed: int, device: torch.device = CPU) -> TorchEngine:
        """Build the task's model (or the zoo model `model`) with weights drawn from `seed`."""
        return cls(task.build_model(seed, model), task.guarded_loss, device)

    def check_forward(self, inputs: NDArray[np.float32]) -> None:
        """Refuse a model whose passes depend on each other, on a few examples and before training.

        A buffer that no row of `fedkit.nn.norms.registry` gives a role is a constant here: it is
        not in a `ModelState`, so what a pass wrote to it would be lost or, worse, kept.

        Args:
            inputs: float32 [n, ...], two examples or more.

        Raises:
            TaskError: The buffers are named; or the output is not a tensor with a row per example.
        """
        own = {**held_by_norms(self._model, "moment"), **held_by_norms(self._model, "local")}
        before = {n: b.clone() for n, b in self._model.named_buffers() if n not in own}
        try:
            with self._computing(0), torch.no_grad():
                self._model.train()
                outputs = self._model(torch.from_numpy(inputs).to(self.device))
        except Exception:  # whatever the model's own code raises, the next run of it will tell
            return
        finally:
            self._load(self._initial)
        after = dict(self._model.named_buffers())
        changed = [n for n, value in before.items() if not value.equal(after[n])]
        name = type(self._model).__name__
        if changed:
            raise TaskError(
                f"a forward pass of {name} changes {', '.join(changed)}, which a fleet neither "
                "sends nor stores; use batch norms, keep such values out of training, or say what "
                "they are to a fleet with fedkit.nn.norms.registry.add_norm"
            )
        if not isinstance(outputs, Tensor) or outputs.dim() == 0 or len(outputs) != len(inputs):
            found = type(outputs).__name__
            if isinstance(outputs, Tensor):
                found = f"tensor of shape {tuple(outputs.shape)} for {len(inputs)} examples"
            raise TaskError(
                f"{name} returns a {found}; it must return one tensor with a row per example, in "
                "training and in evaluation: choose one of the outputs in its forward"
            )

    def _stats(self) -> dict[str, Tensor]:
        return {
            f"{name}.{kind}": getattr(norm, kind)
            for name, norm in self._norms.items()
            for kind in STATISTICS
        }

    @contextmanager
    def _computing(self, seed: int) -> Iterator[None]:
        """Let torch compute in a block so that nothing but its inputs and `seed` counts."""
        with one_thread(), drawn_from(seed), repeatable(self.device):
            yield

    @contextmanager
    def _on_processor(self) -> Iterator[nn.Module]:
        """Have the model on the processor in a block, for what looks at its code."""
        self._model.to(CPU)
        try:
            yield self._model
        finally:
            self._model.to(self.device)

    def module(self, state: ModelState) -> nn.Module:
        """Return the torch module loaded with `state`, in evaluation mode, where it computes."""
        self._load(state)
        return self._model.eval()

    def _load(self, state: ModelState) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(torch.from_numpy(np.asarray(state.weights[name], order="C")))
            for name, value in self._stats().items():
                value.copy_(torch.from_numpy(np.asarray(state.stats[name], order="C")))
            for _, norm, row in rows_in(self._model):
                row.forgets(norm)

    def _read(self, masks: Mapping[str, NDArray[np.bool_]]) -> ModelState:
        weights = {name: _array(weight) for name, weight in self._weights.items()}
        return ModelState(weights, {n: _array(s) for n, s in self._stats().items()}, masks)

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
        """See `Engine.train`. SGD with masked gradients; momentum starts at zero.

        What the model itself draws at random, as dropout does, is drawn from `seed`.
        """
        computed = how.trained if gradient_sums is None else None
        with self._computing(seed), self.only(computed), self._at(how.progress):
            self._load(state)
            self._model.train()
            optimiser = torch.optim.SGD(
                self._moving(how.trained).values(),
                lr=how.lr,
                momentum=how.momentum,
                weight_decay=how.weight_decay,
            )
            moving = self._moving(computed)
            masks = {
                name: torch.from_numpy(mask).to(self.device)
                for name, mask in state.masks.items()
                if name in moving
            }
            batches, loss = TrainingBatches(examples, how, seed), 0.0
            for _ in range(how.epochs):
                self._restart_statistics()
                found = [
                    self._step(
                        torch.from_numpy(batch.inputs[batch.order]),
                        torch.from_numpy(batch.targets),
                        *(masks, optimiser, gradient_sums),
                    )
                    for batch in batches.epoch()
                ]
                loss = sum(found) / len(found)
            return self._read(state.masks), loss

    def _moving(self, trained: frozenset[str] | None) -> dict[str, nn.Parameter]:
        """Return the weights that are trained, in the model's order."""
        return {n: w for n, w in self._weights.items() if trained is None or n in trained}

    @contextmanager
    def only(self, trained: frozenset[str] | None) -> Iterator[None]:
        """Let torch compute no gradients of weights but these in a block."""
        still = [w for n, w in self._weights.items() if trained is not None and n not in trained]
        for weight in still:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in still:
                weight.requires_grad_(True)

    @contextmanager
    def _at(self, progress: float) -> Iterator[None]:
        """Let schedules of norms be where the run is in a block, and at its end after it."""
        self._follow(progress)
        try:
            yield
        finally:
            self._follow(1.0)

    def _follow(self, progress: float) -> None:
        for _, norm, row in rows_in(self._model):
            row.follows(norm, progress)

    def _restart_statistics(self) -> None:
        """Make the running statistics the plain mean over the batches from here on."""
        for norm in self._norms.values():
            _row(norm).restarts(norm)

    def _step(
        self,
        inputs: Tensor,
        targets: Tensor,
        masks: Mapping[str, Tensor],
        sgd: torch.optim.SGD,
        sums: GradientSums | None,
    ) -> float:
        self._model.zero_grad()
        loss = self._loss_of(inputs, targets)
        value = check_loss(loss.item())
        if loss.requires_grad:  # else nothing that is trained was used
            loss.backward()  # type: ignore[no-untyped-call]
        for name, mask in masks.items():
            gradient = self._weights[name].grad
            if gradient is None:  # no op used it in this step, and SGD leaves it as it is
                gradient = torch.zeros_like(self._weights[name])
            if sums is not None:
                sums[name] = sums.get(name, np.float32(0)) + gradient.cpu().numpy()
            gradient.mul_(mask)
        sgd.step()
        return value

    def _forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of a batch in the model's mode.

        Raises:
            EngineError: A norm sees one value per channel.
        """
        try:
            outputs: Tensor = self._model(inputs)
        except ValueError as error:
            if len(inputs) == 1 and (norm := self._norm_that_fails(inputs)):
                raise one_value_error(norm) from error
            raise
        return outputs

    def _loss_of(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch in the model's mode.

        Raises:
            EngineError: A norm sees one value per channel, or targets do not fit the loss.
        """
        outputs = self._forward(inputs.to(self.device))
        if self._row is not None:
            # torch leaves out the target -100, wherever it came from, and spreads others.
            problem = self._row.targets_problem(tuple(outputs.shape[1:]), targets.numpy())
            if problem:
                raise EngineError(problem)
        return self._loss(outputs, targets.to(self.device))

    def _norm_that_fails(self, inputs: Tensor) -> str:
        """Return the name of the norm that a forward pass of these inputs ends in, or ""."""
        entered = [""]

        def enter(name: str) -> None:
            entered.append(name)

        def leave() -> None:
            entered.pop()

        hooks = [
            hook
            for name, norm in self._norms.items()
            for hook in (
                norm.register_forward_pre_hook(lambda *_, name=name: enter(name)),
                norm.register_forward_hook(lambda *_: leave()),
            )
        ]
        try:
            self._model(inputs)
        except ValueError:
            return entered[-1]
        finally:
            for hook in hooks:
                hook.remove()
        return ""

    @property
    def absolute_norms(self) -> frozenset[str]:
        """See `Engine.absolute_norms`."""
        norms = self._norms.items()
        return frozenset(name for name, norm in norms if _row(norm).spread == "absolute")

    @property
    def norm_parameters(self) -> frozenset[str]:
        """See `Engine.norm_parameters`."""
        return norm_parameters(self._model) & self._weights.keys()

    def norm_levels(self, input_shape: tuple[int, ...]) -> NormLevels:
        """See `Engine.norm_levels`. A model that cannot be captured has a level per norm."""
        try:
            with self._on_processor() as model, modes_restored(model):
                return norm_levels(capture(model.eval(), input_shape))
        except PlanError:
            return self._in_order(input_shape)

    def _in_order(self, input_shape: tuple[int, ...]) -> NormLevels:
        """Return the norms as a forward pass meets them."""
        met: dict[str, None] = {}
        hooks = [
            norm.register_forward_pre_hook(lambda *_, name=name: met.setdefault(name))
            for name, norm in self._norms.items()
        ]
        try:
            with one_thread(), torch.no_grad(), modes_restored(self._model):
                self._model.eval()(torch.zeros(1, *input_shape, device=self.device))
        finally:
            for hook in hooks:
                hook.remove()
        return tuple((name,) for name in met)

    def norm_moments(
        self, state: ModelState, examples: Examples, frozen: bool = False
    ) -> NormMoments:
        """See `Engine.norm_moments`."""
        collected: dict[str, list[Moments]] = {name: [] for name in self._norms}

        def collect(name: str, *args: Any, **named: Any) -> None:
            norm = self._norms[name]
            row = _row(norm)
            samples = row.samples(norm, *args, **named).detach().cpu().numpy()
            part = Moments.around_zero(samples) if row.spread == "second" else Moments.of(samples)
            if row.spread == "absolute":
                center = state.stats[f"{name}.running_mean"] if frozen else part.mean
                part = _l1_moments(part, samples, center)
            collected[name].append(part)

        hooks = [
            norm.register_forward_pre_hook(
                lambda _, args, named, name=name: collect(name, *args, **named), with_kwargs=True
            )
            for name, norm in self._norms.items()
        ]
        try:
            with self._computing(0), torch.no_grad():
                self._load(state)
                self._model.train(not frozen)
                order = np.arange(len(examples))
                for inputs, _ in _batches(examples, order, STATISTICS_BATCH):
                    self._forward(inputs.to(self.device))
        finally:
            for hook in hooks:
                hook.remove()
        return merge_batches(collected, self.absolute_norms, frozen)

    def loss(self, state: ModelState, examples: Examples) -> float:
        """See `Engine.loss`."""
        with one_thread(), repeatable(self.device), torch.no_grad():
            self.module(state)
            mean = MeanLoss(self._row)
            for inputs, targets in _batches(examples, np.arange(len(examples)), _EVAL_BATCH):
                mean.add(self._loss_of(inputs, targets).item(), targets.numpy())
        return mean.value

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
        with self._computing(0):
            self._load(state)
            self._model.train()
            inputs, targets = _tensors(examples, np.arange(len(examples)))
            loss = self._loss_of(inputs, targets)
            check_loss(loss.item())
            gradients = torch.autograd.grad(
                loss, list(weights.values()), allow_unused=True, materialize_grads=True
            )
        return {
            name: np.ascontiguousarray(gradient.cpu().numpy())
            for name, gradient in zip(weights, gradients, strict=True)
        }

    def outputs(self, state: ModelState, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Engine.outputs`."""
        return np.concatenate([*self.output_batches(state, inputs)])

    def output_batches(
        self, state: ModelState, inputs: NDArray[np.float32]
    ) -> Iterator[NDArray[np.float32]]:
        """See `Engine.output_batches`."""
        model = self.module(state)
        for start in range(0, len(inputs), _EVAL_BATCH):
            batch = torch.tensor(inputs[start : start + _EVAL_BATCH], device=self.device)
            with one_thread(), repeatable(self.device), torch.no_grad():
                outputs = model(batch).cpu().numpy()
            yield outputs


def _array(tensor: Tensor) -> NDArray[np.float32]:
    """Return a copy on the processor."""
    found: NDArray[np.float32] = tensor.detach().cpu().numpy().copy()
    return found


def _row(norm: nn.Module) -> NormRow:
    row = row_of(norm)
    assert row is not None  # `tracking_norms` finds no others
    return row


def _l1_moments(
    moments: Moments, samples: NDArray[np.float32], center: NDArray[np.floating[Any]]
) -> Moments:
    """Put the squared deviation of an L1 norm, which divides by its root, in a variance's place."""
    spread = K * np.abs(samples - center.astype(np.float64)).mean(axis=0)
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
def drawn_from(seed: int) -> Iterator[None]:
    """Let what torch, numpy and Python draw in a block depend on a seed alone, and nothing else."""
    before = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before[0])
            random.setstate(before[1])


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread in a block, and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
