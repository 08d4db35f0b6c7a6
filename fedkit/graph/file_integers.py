"""What a quantised file says of its integers."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedkit.graph import ir

_LEAST = -128  # of int8


@dataclass(frozen=True)
class Steps:
    """What the integers of an activation are worth: scale * (integer - zero).

    Attributes:
        least: The least of them: 0 of uint8, -128 of int8.
    """

    scale: float
    zero: int
    least: int

    @property
    def quantization(self) -> ir.Quantization:
        """The same of int8."""
        return ir.Quantization((self.scale,), (self.zero + _LEAST - self.least,))

    @property
    def begins_at_zero(self) -> bool:
        """Whether they hold nothing below 0."""
        return self.zero == self.least


@dataclass
class FileIntegers:
    """What a file says of all of them.

    Attributes:
        activations: Name in the graph -> what its integers are worth; None where the file quantises
            it in two ways.
        constants: Name in the file of what is dequantised from integers -> its scales.
        are_told: Whether the file quantises or dequantises anything.
        weights: Source of an op -> the scales of its weights, one or one per output channel; None
            where two nodes have one name.
    """

    activations: dict[str, Steps | None] = field(default_factory=dict)
    constants: dict[str, ir.Array] = field(default_factory=dict)
    weights: dict[str, ir.Array | None] = field(default_factory=dict)
    are_told: bool = False

    def __bool__(self) -> bool:
        """Whether the file is quantised."""
        return self.are_told
