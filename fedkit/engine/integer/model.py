"""A model that trains in integers, step by step, for a training loop of one's own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedkit.engine.base import check_loss
from fedkit.engine.integer.engine import IntegerEngine, batch_statistics, quantize_inputs
from fedkit.engine.integer.optimiser import Sgd
from fedkit.engine.integer.program import IntegerProgram
from fedkit.engine.plan.capture import capture
from fedkit.engine.running import RunningStatistics
from fedkit.engine.torch import TorchEngine
from fedkit.sparse.state import ModelState
from fedkit.tasks.losses import Loss
from fedkit.tasks.task import cross_entropy

Floats = NDArray[np.float32]


class IntegerModel:
    """A captured model with integer weights and momentum; `fedkit.shiftquant.convert` makes one.

    Args:
        engine: Computes.
        state: The weights to begin with; under its masks, pruned weights stay 0.
        momentum: Of SGD.
        weight_decay: Of SGD.
        seed: Of random rounding.
    """

    def __init__(
        self,
        engine: IntegerEngine,
        state: ModelState,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        seed: int = 0,
    ) -> None:
        self.engine, self._state, self._seed = engine, state, seed
        self._momentum, self._weight_decay = momentum, weight_decay
        self._program: IntegerProgram | None = None
        self._batch = 0

    @classmethod
    def of(
        cls, model: nn.Module, input_shape: tuple[int, ...], bits: int, gradient: str, loss: Loss
    ) -> IntegerModel:
        """See `fedkit.shiftquant.convert`."""
        engine = IntegerEngine(capture(model, input_shape, loss), bits=bits, gradient=gradient)
        return cls(engine, TorchEngine(model, cross_entropy).initial_state())

    def train_step(self, inputs: Floats, targets: NDArray[Any], lr: float) -> float:
        """Take one step of SGD with momentum on a batch; return its mean loss before the step.

        Args:
            inputs: float32 [n, ...]; later batches must not be larger than the first.
            targets: As the loss takes them; classes, int64 [n, ...], where none was chosen.
            lr: Learning rate, greater than 0.

        Raises:
            EngineError: The batch does not fit the model, or holds NaN or infinite values.
            FleetError: The loss is not finite.
        """
        program = self._training(len(inputs))
        codes, scale = quantize_inputs(inputs)
        program.forward(codes, scale, np.arange(len(inputs)))
        loss = check_loss(program.loss(targets))
        program.backward()
        self._sgd.step(program.gradient, program.gradient_units, lr)
        return loss

    def calibrate(self, *batches: Floats) -> None:
        """Take the running statistics of the norms from batches, under the weights as they are.

        Without it `outputs` goes by the statistics that the model came with.
        """
        program = self._training(max(len(batch) for batch in batches))
        statistics = RunningStatistics(self.engine.plan.stats)
        for batch in batches:
            program.forward(*quantize_inputs(batch), np.arange(len(batch)))
            statistics.add(batch_statistics(program, len(batch)))
        stats = {**self._state.stats, **statistics.mean()}
        self._state = ModelState(self._state.weights, stats, self._state.masks)

    def outputs(self, inputs: Floats) -> Floats:
        """Return the outputs under the running statistics, float32 [n, ...]."""
        # An engine of its own: this one's network holds the momentum.
        engine = IntegerEngine(
            self.engine.plan, bits=self.engine.bits, gradient=self.engine.gradient
        )
        return engine.outputs(self.state(), inputs)

    def state(self) -> ModelState:
        """Return weights, statistics and masks."""
        if self._program is None:
            return self._state
        weights = self._program.network.state()
        return ModelState(weights, self._state.stats, self._state.masks)

    def store(self, model: nn.Module) -> None:
        """Write weights and statistics into a torch model, such as the one that was converted."""
        TorchEngine(model, cross_entropy).module(self.state())

    def _training(self, batch: int) -> IntegerProgram:
        if self._program is None or batch > self._batch:
            state = self.state()
            self._program, self._batch = self.engine.program(state, "train", batch), batch
            self._program.restart(self._seed)
            network = self._program.network
            self._sgd = Sgd(
                network, self.engine.kernels, self._momentum, self._weight_decay, self._seed
            )
        return self._program
