"""What the files of ops see of each target: the model under construction, and what is put there.

The targets fill these protocols. So an op says in its own file how each target makes it, and a
target knows no kinds; neither imports the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from fedkit.core.numerics import Int64s
from fedkit.graph import ir


class TfliteFile(Protocol):
    """A .tflite file: tensors and operators."""

    @property
    def graph(self) -> ir.Graph:
        """The graph that is written, int8 or float32."""

    def tensor(self, tensor: ir.Tensor) -> str:
        """Add a tensor; return its name."""

    def constant(self, name: str, values: Sequence[int] | Sequence[Sequence[int]]) -> str:
        """Add a constant of int32; return its name."""

    def operator(
        self,
        code: str,
        inputs: Sequence[str],
        output: str,
        options: str = "",
        versions: tuple[int, int] = (1, 2),
        **fields: Any,
    ) -> None:
        """Add an operator.

        Args:
            code: Its name in the schema.
            inputs: Names of tensors.
            output: Name of the one that it writes.
            options: Name of its table of options, if it has one.
            versions: For float32 and for int8: the lowest that has the type, for old runtimes.
            **fields: Of the table.
        """

    def activation(self, op: ir.Op) -> int:
        """Return the schema's number for an op's activation."""

    def window(
        self, op: ir.Op, fill: Literal["zero", "lowest"] | None
    ) -> tuple[str, dict[str, Any]]:
        """Return what a window reads, padded, and the fields padding, strides and activation.

        Args:
            op: Has a window.
            fill: What a PAD before it writes where TFLite has no word for the padding; None where
                nothing will do.

        Raises:
            ExportError: It would need such a PAD.
        """

    def pad(self, x: ir.Tensor, padding: Sequence[int], output: str) -> None:
        """Add what puts zeros around a map, at (top, bottom, left, right)."""

    def reshape(self, x: str, output: str, shape: ir.Shape) -> None:
        """Add what gives a tensor another shape."""

    def cast(self, x: ir.Tensor, output: str, to: ir.DType) -> str:
        """Add a tensor of the same numbers in another type, of no scale; return its name."""


MICROSOFT = "com.microsoft"
"""Domain of the integer operators of onnxruntime that ONNX itself lacks."""


@dataclass(frozen=True)
class Rescaled:
    """Operators of ONNX for an op whose sums become int8 again.

    Attributes:
        real: Of floats.
        integer: Of int8.
        domain: Of the latter.
        bias_first: Whether that reads the bias before the scale of its output.
    """

    real: str
    integer: str
    domain: str = MICROSOFT
    bias_first: bool = False


class OnnxFile(Protocol):
    """An .onnx file: nodes and constants by name; images are [1, c, h, w] there."""

    @property
    def graph(self) -> ir.Graph:
        """The graph that is written, int8."""

    @property
    def is_integer(self) -> bool:
        """Whether operators of integers are to be written where there are some."""

    def scales(self, name: str) -> list[str]:
        """Return the names of the scale and the zero point of a tensor."""

    def cast(self, x: str, output: str, to: type[np.generic]) -> str:
        """Add the same numbers in another type; return their name."""

    def node(
        self, operator: str, inputs: list[str], output: str, domain: str = "", **attributes: Any
    ) -> str:
        """Add a node; return the name of its output."""

    def constant(self, name: str, values: ir.Array) -> str:
        """Add a constant; return its name."""

    def rescaled(self, op: ir.Op, result: str, operators: Rescaled, **attributes: Any) -> None:
        """Add an op whose sums become int8 again, in the form of the file."""

    def dequantised(self, op: ir.Op, number: int) -> str:
        """Return the name of an operand as floats."""

    def quantised(self, op: ir.Op, value: str, result: str) -> None:
        """Add what makes floats the int8 of an op's output."""

    def reshape(self, x: str, output: str, shape: ir.Shape) -> None:
        """Add what gives a value another shape."""


class CCompiler(Protocol):
    """Calls of C kernels, under construction: activations lie as planes of channels."""

    @property
    def graph(self) -> ir.Graph:
        """The graph that is compiled, int8."""

    def call(self, function: str, *arguments: Any, source: str = "") -> None:
        """Add a call; a `struct` becomes a constant that is passed by its address."""

    def struct(self, kind: str, *fields: Any) -> Any:
        """Return a constant of a struct in `ek.h`; an array stands for a pointer to it."""

    def layout(self, name: str) -> Any:
        """Return how an activation lies, an `ek_planes`."""

    def place(self, name: str) -> Any:
        """Return where an activation lies."""

    def new(self, name: str) -> Any:
        """Return where an activation is to be written."""

    def reuse(self, name: str, by: str) -> Any:
        """Let an activation lie where another does."""

    def look_up(self, op: ir.Op, table: Int64s) -> None:
        """Call what puts an entry of a table, bytes [256], in the place of each byte."""

    def moved(self, op: ir.Op) -> bool:
        """Add what a chain of moves that ends here comes to; return whether nested loops can."""

    def multiplied(self, op: ir.Op) -> bool:
        """Add a product of two activations by packed weights; return whether that can be."""

    def to_vector(self, function: str, op: ir.Op) -> None:
        """Call what writes all values one after the other, unless they lie so already."""

    def weighted(self, op: ir.Op) -> None:
        """Add a convolution."""

    def linear(self, op: ir.Op) -> None:
        """Add a linear layer."""

    def per_channel(self, op: ir.Op, kernel: tuple[int, int], real: float) -> None:
        """Add a sum over windows of each channel, rescaled by a factor."""

    def mean(self, op: ir.Op) -> None:
        """Add a mean over height and width."""

    def sum(self, op: ir.Op) -> None:
        """Add a sum of two, with the convolution that became part of it."""

    def join(self, op: ir.Op) -> None:
        """Put inputs one behind the other."""

    def pair(self, function: str, op: ir.Op, factors: tuple[int, ...], shift: int) -> None:
        """Call what makes one of two inputs, each repeated where it has the size 1.

        Args:
            function: `ek_mul`, `ek_sum_of` or `ek_div`.
            op: The op.
            factors: By what a product, or each of two terms, is multiplied; of a quotient, what
                the divisor is at least comes second.
            shift: By what it is divided, as a power of two.
        """


class FpgaCompiler(Protocol):
    """Steps of the FPGA engine, under construction; each method yields some."""

    @property
    def graph(self) -> ir.Graph:
        """The graph that is compiled, int8."""

    def weighted(self, op: ir.Op) -> Iterator[Any]:
        """Filters over windows."""

    def mean(self, op: ir.Op) -> Iterator[Any]:
        """Filters of ones over the whole map."""

    def pool(self, op: ir.Op, maxima: bool) -> Iterator[Any]:
        """Filters of ones over windows, that add or that keep the largest."""

    def single(
        self, op: ir.Op, factors: tuple[int, ...], bias: int, scale: tuple[int, int]
    ) -> Iterator[Any]:
        """One activation at a time: a sum of products, times a multiplier, shifted right."""

    def rescale(self, op: ir.Op) -> Iterator[Any]:
        """One activation at a time, in steps of the output."""

    def join(self, op: ir.Op) -> Iterator[Any]:
        """Put the channels of all inputs behind each other."""

    def take(self, op: ir.Op) -> Iterator[Any]:
        """Copy places of each axis, a run of them at a time."""

    def put(self, op: ir.Op, starts: Iterable[tuple[str, int, int]]) -> Iterator[Any]:
        """Put maps into a larger one, each at a row and a column."""

    def transpose(self, op: ir.Op, axes: tuple[int, int, int]) -> Iterator[Any]:
        """Copy all with the axes of the result in an order, counted from 1."""

    def pad(self, op: ir.Op) -> Iterator[Any]:
        """Put a map into a larger one of zero points."""

    def reshape(self, op: ir.Op) -> Iterator[Any]:
        """Copy all in order."""

    def flatten(self, op: ir.Op) -> Iterator[Any]:
        """Copy all, channel by channel."""
