"""What an artifact costs on a target: named quantities with units, in all and per layer.

Every way to measure, an emulator or a board, takes an artifact and `ReferenceVectors` and gives a
`Result`. It first compares what the target computes with what is expected: a wrong result has no
figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import BenchError

Unit = Literal["instructions", "bytes", "us", "degrees C", "uJ"]
How = Literal["emulated", "measured"]


@dataclass(frozen=True)
class Quantity:
    """A figure; seconds only where time is real."""

    value: float
    unit: Unit


@dataclass(frozen=True)
class LayerCost:
    """What one call of a kernel costs.

    Attributes:
        function: The kernel.
        source: The torch module that it comes from.
        quantities: As in `Result`.
    """

    function: str
    source: str
    quantities: Mapping[str, Quantity]


@dataclass(frozen=True)
class Result:
    """What an artifact costs on a target.

    Attributes:
        artifact: Name and sha256 of the artifact.
        target: Name of the target.
        how: Where the figures are from.
        examples: How many were compared with what is expected; no integer differed.
        quantities: Name -> figure, of one inference.
        layers: The same for each call of a kernel, where it can be told.
        environment: What the figures depend on: versions, flags, the model of a processor.
    """

    artifact: str
    target: str
    how: How
    examples: int
    quantities: Mapping[str, Quantity]
    layers: tuple[LayerCost, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.quantities[name].value

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold; quantities are {"value": ..., "unit": ...}."""
        return asdict(self)

    def table(self) -> list[tuple[str, str, str, str]]:
        """Return lines (layer, quantity, value, unit), the total first."""
        parts = [("total", self.quantities)]
        parts += [(f"{layer.source}: {layer.function}", layer.quantities) for layer in self.layers]
        return [
            (part, name, f"{each.value:,}", each.unit)
            for part, quantities in parts
            for name, each in quantities.items()
        ]


def bytes_of(inputs: NDArray[Any]) -> bytes:
    """Return inputs, int32 tokens or other numbers within int8, as C reads them."""
    return (inputs if inputs.dtype == np.int32 else inputs.astype(np.int8)).tobytes()


@dataclass(frozen=True)
class ReferenceVectors:
    """What a model is given, and what it must give.

    Attributes:
        inputs: int8 [n, ...] in the artifact's layout; int32 [n, tokens] of a model of tokens.
        expected: int8 [n, ...], by the interpreter.
    """

    inputs: NDArray[np.int8] | NDArray[np.int32]
    expected: NDArray[np.int8]

    def check(self, number: int, actual: NDArray[np.int8], target: str) -> None:
        """Compare what a target gave for an example.

        Raises:
            BenchError: An integer differs; names the first.
        """
        expected = self.expected[number]
        differs = np.argwhere(actual.reshape(expected.shape) != expected)
        if len(differs):
            at = tuple(int(axis) for axis in differs[0])
            raise BenchError(
                f"{target} gives {int(actual.reshape(expected.shape)[at])} for output {at} of "
                f"example {number}, and the interpreter {int(expected[at])} ({len(differs)} of "
                f"{expected.size} differ); no figure is given. `fedkit check --layers` on the "
                "artifact tells whether it is wrong here too"
            )
