"""What a step costs, counted on the sparse structure: the same on every machine and engine.

A multiply-accumulate is 2 FLOPs. Counted is what prunable weights do, each kept weight once per
place where its layer applies it, padding included; norms, activations, pooling, biases, the loss
and the optimiser are not, as in torch's own counter. It is the work a method asks for; an engine
may do more: torch's computes every layer dense, the sparse one those kept by more than half.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import TaskError
from fedkit.engine.base import Engine, GradientSums, LocalTraining
from fedkit.engine.wrapped import WrappedEngine
from fedkit.sparse.layout import Layout
from fedkit.sparse.packed import packed
from fedkit.sparse.state import Masks, ModelState, Weights, count_kept
from fedkit.sparse.topk import Entries
from fedkit.stats.moments import NormMoments
from fedkit.tasks.task import Examples

if TYPE_CHECKING:
    from torch import Tensor, nn

_BYTES = 4  # of a float32 value, and of an int32 index


@dataclass(frozen=True)
class WeightUses:
    """How often one example uses each entry of the prunable weights; FLOPs are per example.

    Attributes:
        positions: Per prunable weight, the outputs of one channel, or the inputs of one of a
            transposed convolution, summed over the layer's calls.
        inner: The same over calls whose input needs a gradient, as that of first layers does not.
    """

    positions: Mapping[str, int]
    inner: Mapping[str, int]

    def forward(self, masks: Masks) -> int:
        """Return the FLOPs of the forward pass."""
        return _flops(self.positions, count_kept(masks))

    def backward_inputs(self, masks: Masks) -> int:
        """Return the FLOPs of the gradients that layers pass on to their inputs."""
        return _flops(self.inner, count_kept(masks))

    def backward_weights(self, masks: Masks, full: Iterable[str] = ()) -> int:
        """Return the FLOPs of the gradients of kept weights, and of ALL weights of `full`."""
        bits = packed(masks)
        return _flops(self.positions, bits.counts | {name: bits.size(name) for name in full})

    def train_step(self, masks: Masks) -> int:
        """Return the FLOPs of a step of training."""
        return self.gradients(masks, ())

    def gradients(self, masks: Masks, layers: Iterable[str]) -> int:
        """Return the FLOPs of a training pass that gives the gradients of ALL weights of `layers`.

        It goes all the way down, past the first of the layers, as the sparse engine's does. That
        engine sums the kept entries of `layers` twice, which the method does not ask for.
        """
        backward = self.backward_inputs(masks) + self.backward_weights(masks, layers)
        return self.forward(masks) + backward


def _flops(uses: Mapping[str, int], entries: Mapping[str, int]) -> int:
    return sum(2 * uses[name] * count for name, count in entries.items())


def positions(model: nn.Module, example_shape: tuple[int, ...], tokens: bool = False) -> WeightUses:
    """Run one example of zeros through a model in evaluation mode, and see where weights are used.

    Args:
        model: Any torch model; it is left as it was.
        example_shape: Shape of one example, without the batch.
        tokens: Whether it is int64, of tokens.

    Raises:
        TaskError: A prunable weight is not used by a call of its layer.
    """
    import torch
    from torch import nn

    from fedkit.nn.layers import (
        GATES,
        PROJECTIONS,
        PRUNABLE,
        RECURRENT,
        modes_restored,
        prunable_weights,
    )

    weights = dict(model.named_parameters())
    prunable = {id(weights[name]): name for name in prunable_weights(model)}
    uses, inner = Counter[str](), Counter[str]()

    def count(layer: nn.Module, args: tuple[Any, ...], given: dict[str, Any], out: Tensor) -> None:
        name, (x,) = prunable.get(id(layer.weight)), (*args, *given.values())
        if name is not None:
            # A weight meets each output of its channel, that of a transposed one each input.
            met = x if getattr(layer, "transposed", False) else out
            calls = met.numel() // len(weights[name])
            uses[name] += calls
            inner[name] += calls if x.requires_grad else 0

    def count_attention(
        layer: nn.MultiheadAttention, args: tuple[Any, ...], given: dict[str, Any], out: Any
    ) -> None:
        """Count the weights of torch's attention, which uses them without a call of a layer."""
        of_three = [*args, *(given[each] for each in ("query", "key", "value")[len(args) :])][:3]
        tokens = [x.numel() // x.shape[-1] for x in of_three]
        # One weight for all three meets each kind of token with a third of its outputs.
        met = dict(zip(PROJECTIONS, (sum(tokens) // 3, *tokens), strict=True))
        met |= {"out_proj.weight": tokens[0]}
        for weight, calls in met.items():
            found = layer.out_proj.weight if "." in weight else getattr(layer, weight)
            if (name := prunable.get(id(found))) is not None:
                uses[name] += calls
                inner[name] += calls if of_three[0].requires_grad else 0

    def count_steps(
        layer: nn.LSTM | nn.GRU, args: tuple[Any, ...], given: dict[str, Any], out: Any
    ) -> None:
        """Count the weights of a recurrent layer, each of which meets every step."""
        x = (*args, *given.values())[0]
        calls = x.numel() // x.shape[-1]
        for weight, value in layer.named_parameters():
            name = prunable.get(id(value)) if weight.startswith(GATES) else None
            if name is not None:
                uses[name] += calls
                # What reads the input alone passes nothing on where that needs no gradient.
                is_first = weight.startswith("weight_ih_l0") and not x.requires_grad
                inner[name] += 0 if is_first else calls

    with modes_restored(model), torch.enable_grad(), ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, RECURRENT):
                hooks.enter_context(module.register_forward_hook(count_steps, with_kwargs=True))
            elif isinstance(module, nn.MultiheadAttention):
                hooks.enter_context(module.register_forward_hook(count_attention, with_kwargs=True))
            elif isinstance(module, PRUNABLE):
                hooks.enter_context(module.register_forward_hook(count, with_kwargs=True))
        like = next(iter(weights.values()), torch.zeros(()))
        nothing = torch.zeros(1, *example_shape)
        model.eval()(nothing.long() if tokens else nothing.to(like))
    if unused := [name for name in prunable.values() if not uses[name]]:
        raise TaskError(
            f"{', '.join(unused)} of {type(model).__name__}: no call of its layer uses it, so its "
            "cost cannot be counted; call every convolution and linear layer in forward, as a "
            "module, or remove it"
        )
    return WeightUses(dict(uses), dict(inner))


class CountingEngine(WrappedEngine):
    """Implements `fedkit.engine.base.Engine`: passes every call on, and adds up what it costs.

    Attributes:
        flops: FLOPs of all calls that returned; a user may set it back.
    """

    def __init__(self, inner: Engine, geometry: WeightUses) -> None:
        super().__init__(inner)
        self.flops, self._geometry = 0, geometry

    def train(
        self,
        state: ModelState,
        examples: Examples,
        how: LocalTraining,
        seed: int,
        gradient_sums: GradientSums | None = None,
    ) -> tuple[ModelState, float]:
        """See `Engine.train`."""
        trained = self._inner.train(state, examples, how, seed, gradient_sums)
        full = () if gradient_sums is None else state.masks
        self.flops += how.epochs * len(examples) * self._geometry.gradients(state.masks, full)
        return trained

    def norm_moments(
        self, state: ModelState, examples: Examples, frozen: bool = False
    ) -> NormMoments:
        """See `Engine.norm_moments`."""
        moments = self._inner.norm_moments(state, examples, frozen)
        self.flops += len(examples) * self._geometry.forward(state.masks)
        return moments

    def loss(self, state: ModelState, examples: Examples) -> float:
        """See `Engine.loss`."""
        loss = self._inner.loss(state, examples)
        self.flops += len(examples) * self._geometry.forward(state.masks)
        return loss

    def top_gradients(
        self, state: ModelState, examples: Examples, amounts: Mapping[str, int]
    ) -> dict[str, Entries]:
        """See `Engine.top_gradients`."""
        found = self._inner.top_gradients(state, examples, amounts)
        self.flops += len(examples) * self._geometry.gradients(state.masks, amounts)
        return found

    def gradients(self, state: ModelState, examples: Examples) -> Weights:
        """See `Engine.gradients`."""
        found = self._inner.gradients(state, examples)
        self.flops += len(examples) * self._geometry.gradients(state.masks, state.masks)
        return found

    def outputs(self, state: ModelState, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Engine.outputs`."""
        return np.concatenate([*self.output_batches(state, inputs)])

    def output_batches(
        self, state: ModelState, inputs: NDArray[np.float32]
    ) -> Iterator[NDArray[np.float32]]:
        """See `Engine.output_batches`."""
        for outputs in self._inner.output_batches(state, inputs):
            self.flops += len(outputs) * self._geometry.forward(state.masks)
            yield outputs


def unpruned_values(layout: Layout) -> int:
    """Return how many values no mask covers: biases, norm parameters and running statistics."""
    shapes = [s for n, s in layout.weights.items() if n not in layout.prunable]
    return sum(math.prod(shape) for shape in (*shapes, *layout.stats.values()))


def memory_model(masks: Masks, dense_values: int, score_bytes: int) -> int:
    """Return the bytes a device holds by the usual MODEL, to stand beside a measured peak.

    Each kept weight is a float32 and an int32 index; a layer that keeps all needs no index.
    Activations, gradients, momentum and the program itself are not in it.

    Args:
        masks: Which weights are kept.
        dense_values: Values outside the masks, 4 bytes each; see `unpruned_values`.
        score_bytes: What the method holds beside, such as a top-k buffer or dense scores.
    """
    bits = packed(masks)
    kept = bits.counts
    indices = sum(count for name, count in kept.items() if not bits.all_kept(name))
    return _BYTES * (sum(kept.values()) + dense_values + indices) + score_bytes
