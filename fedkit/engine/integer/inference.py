"""The integers that a trained state computes with, for an exporter that keeps them.

A state holds float32 weights; what layers multiply are their codes, and what they read of a norm's
output are codes as well, in steps that scale and offset of the norm decide. Both follow from the
state alone. All other scales, of the input, sums and pools, follow from the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.integer.integer_network import IntegerNetwork, full_weight
from fedkit.engine.integer.program import IntegerProgram
from fedkit.sparse.state import ModelState


class Reading(NamedTuple):
    """The codes that are read of a tensor, behind its norm and activation.

    Attributes:
        step: What the code 1 is worth.
        most: The largest code.
        signed: Whether codes go down to -most, else to 0: behind an activation.
    """

    step: float
    most: int
    signed: bool


@dataclass(frozen=True)
class Integers:
    """What a state computes with.

    Attributes:
        state: The state with weights that are exactly their codes times a step per channel.
        weights: Name of a layer's weight -> its codes, int8, of its shape; 0 where pruned. Of a
            transposed convolution there are none, as several steps share a channel.
        outputs: Name of a layer's weight -> what is read of that layer's output, where no batch
            changes it and all who read it do it alike.
    """

    state: ModelState
    weights: Mapping[str, NDArray[np.int8]]
    outputs: Mapping[str, Reading]


def integers(engine: IntegerEngine, state: ModelState) -> Integers:
    """Return what `engine` computes with in evaluation.

    Raises:
        EngineError: The state does not fit the engine's plan, or holds NaN or infinity.
    """
    program = engine.program(state, "evaluate", 1)
    codes, real = dict[str, NDArray[np.int8]](), dict(state.weights)
    for number, layer in program.network.layers.items():
        name, parameters = layer.geometry.op.weight, program.network.parameters
        own, worth = _weights(program.network, number)
        real[name] = parameters.whole(name, worth)
        if parameters.order(name) is None:
            codes[name] = own.reshape(real[name].shape)
    return Integers(replace(state, weights=real), codes, dict(_outputs(program)))


def _weights(network: IntegerNetwork, number: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the codes of a layer's convolution, and what they are worth."""
    # As if no bias were so large that its channel computes it alone.
    codes = network.codes(number, np.zeros(network.layers[number].geometry.target[0]))
    values = full_weight(network, number, codes.values)
    worth = values * codes.scale[:, None, None, None]
    return values.astype(np.int8), worth.astype(np.float32)


def _outputs(program: IntegerProgram) -> Iterator[tuple[str, Reading]]:
    plan, reads = program.network.plan, program.norm_reads()
    for number, op in enumerate(plan.ops):
        readers = [n for n, other in enumerate(plan.ops) if op.target in other.sources]
        alike = len({reads.get(n) for n in readers}) == 1 and readers[0] in reads
        layer = program.network.layers.get(number)
        weight = layer.geometry.op.weight if layer is not None else ""
        is_own = weight and program.network.parameters.order(weight) is None
        if is_own and alike and op.target != plan.output:
            yield (
                weight,
                Reading(*reads[readers[0]], plan.tensors[op.target].activation == "none"),
            )
