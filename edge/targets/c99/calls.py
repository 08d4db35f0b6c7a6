"""From an int8 graph to calls of the C kernels: layouts, packed constants, buffers.

What the calls compute is what `edge.define.interpret_int8` computes under `half_up`,
integer by integer. Seven things are decided here:

- activations of one height and width share one halo, the largest that a reader needs: sums then
  find equal layouts, and convolutions run over whole planes;
- windows with a stride read phases, which readers of one tensor share where they can;
- a sum that is the only reader of a convolution becomes part of it; the kernel still rounds the
  convolution to int8 first, as the graph says;
- a chain of ops that make each value of one other value is one table;
- a chain of reshapes and other orders of axes is one call, or none where nothing moves;
- attention, with the moves to heads and back, is one call that never holds all of its weights;
- what a concat joins is written where it belongs in the result, whose planes lie one after the
  other; only what has its place in another concat already is copied.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge.arena import Buffer
from edge.define.rounding import Scales, add_multipliers, multipliers
from edge.ops.elementwise import terms_of
from edge.ops.integer_spec import is_plain
from edge.ops.matrices import scale_of_sums
from edge.ops.registry import SPECS
from edge.ops.softmax import powers_struct
from edge.targets.c99 import pack
from edge.targets.c99.attention import FusedAttention, attention_scratch, attentions
from edge.targets.c99.chains import chains
from edge.targets.c99.move_chains import move_chains
from edge.targets.c99.pack import Int8s, Int32s, Phases, Planes, multiply_scratch
from edge.targets.c99.requant import LEAST_SHIFT, Requant, near, simplified
from edge.targets.c_names import output_parameters
from edge.targets.common import check_compilable, multiplier_and_shift
from fedkit.core.errors import ExportError
from fedkit.core.numerics import Int64s
from fedkit.graph import integers, ir
from fedkit.graph.ops.registry import WEIGHTED, spec_of, tokens_of, weights_of

Goal = Literal["speed", "size"]

DENSE_FROM = 0.7
"""Density of a convolution above which `ek_conv_dense` is faster; see docs/decisions/kernels."""

STREAM_BELOW = 0.5
"""Density of weights below which a stream is smaller: it takes two bytes per weight."""

_BYTE = 128  # what a byte is more than its int8


@dataclass(frozen=True)
class Struct:
    """A constant of a struct in `ek.h`.

    Attributes:
        kind: The struct's name.
        fields: Its fields in order; an array stands for a pointer to it.
    """

    kind: str
    fields: tuple[int | NDArray[Any] | Struct | ConstantAddress, ...]


@dataclass(frozen=True)
class ConstantAddress:
    """The address of a constant; 0 if there is none."""

    to: Struct | None


@dataclass(frozen=True)
class BufferOffset:
    """A number of bytes into a buffer of the arena."""

    buffer: str
    lead: int = 0


Slot = tuple[str, int]
"""A buffer, and the bytes of other tensors that come first in it."""

Argument = int | str | BufferOffset | ConstantAddress
"""Of a call; a text is a parameter of the caller."""


@dataclass(frozen=True)
class Call:
    """A call of a kernel.

    Attributes:
        source: The torch module that it comes from.
    """

    function: str
    arguments: tuple[Argument, ...]
    source: str = ""


@dataclass(frozen=True)
class CallList:
    """Calls in order, with parameters `in` and those of the outputs, and the buffers they use.

    Attributes:
        homes: Activation -> where its first pixel is and how it lies there, as long as no other is
            written over it. A convolution that a sum took in has none.
    """

    calls: tuple[Call, ...]
    buffers: Mapping[str, Buffer]
    homes: Mapping[str, tuple[BufferOffset, Planes]]


def compile_graph(graph: ir.Graph, goal: Goal = "speed", keep: bool = False) -> CallList:
    """Turn a graph into calls of kernels.

    Args:
        graph: Int8, as `edge.quantize.to_int8.quantize` leaves it, with one input.
        goal: "speed" unrolls the distances of weights; "size" packs sparse weights as streams,
            for microcontrollers. Dense layers stay dense.
        keep: Write no activation over another, so that all can be looked at in the end.

    Raises:
        ExportError: Something in the graph has no kernel; names all of it.
    """
    check_compilable(graph, "C")
    return _Compiler(graph, goal, keep).run()


@dataclass
class _Compiler:
    """Walks the graph; each op finds a place for its output and its inputs computed.

    An `edge.ops.builders.CCompiler`.
    """

    graph: ir.Graph
    goal: Goal
    keep: bool
    calls: list[Call] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    home: dict[str, str] = field(default_factory=dict)  # tensor -> buffer
    offset: dict[str, int] = field(default_factory=dict)  # bytes of other tensors before it there

    def run(self) -> CallList:
        self.chains = chains(self.graph)
        self.fused = _fusions(self.graph)
        self.attentions = {
            name: found
            for name, found in attentions(self.graph).items()
            if _attends(self.graph, found)
        }
        self.planes = _layouts(self.graph)
        several = [chain.ops for chain in self.chains.values()]
        several += [attention.ops for attention in self.attentions.values()]
        taken = {op.output for ops in several for op in ops}
        self.moves = move_chains(self.graph, self.planes, taken)
        several += [chain.ops for chain in self.moves.values()]
        within = [op for ops in several for op in ops[:-1]]
        gone = {op.output for op in (*self.fused.values(), *within)}
        self.ops = [op for op in self.graph.ops if op.output not in gone]
        self.last_read = self._last_reads()
        self.phases = _shared_phases(self.graph, self.planes)
        self.slots = _slots(self.graph, self.planes)
        self._load()
        problems = [problem for op in self.ops for problem in self._problems(op)]
        if problems:
            raise ExportError("; ".join(problems))
        self._store()
        homes = {name: (self.place(name), self.planes[name]) for name in self.home}
        return CallList(tuple(self.calls), self._buffers(), homes)

    # Buffers

    def _last_reads(self) -> dict[str, int]:
        reads: dict[str, int] = {}
        for number, op in enumerate(self.ops):
            conv = self.fused.get(op.output)
            inputs: Sequence[str] = op.inputs
            if op.output in self.chains:
                inputs = [self.chains[op.output].source]
            elif op.output in self.moves:
                inputs = [self.moves[op.output].source]
            elif op.output in self.attentions:
                inputs = self.attentions[op.output].sources
            reads |= dict.fromkeys((*inputs, *(conv.inputs if conv else ())), number)
        return reads | dict.fromkeys(self.graph.outputs, len(self.ops))

    def _is_over(self, name: str, op: ir.Op) -> bool:
        """Return whether nothing after `op` needs what is in the buffer of a tensor."""
        if self.keep:
            return False
        sharing = (other for other, buffer in self.home.items() if buffer == self.home[name])
        now = next(number for number, other in enumerate(self.ops) if other is op)
        return all(self.last_read.get(other, -1) <= now for other in sharing)

    def _own(self, name: str) -> str:
        """Return the name of a buffer that holds no tensor, whatever tensors are called."""
        return ir.unused_name(name, self.graph.tensors)

    def new(self, name: str) -> BufferOffset:
        buffer, self.offset[name] = self.slots.get(name, (name, 0))
        self.home[name] = buffer
        self.sizes[buffer] = self.planes[buffer].size
        return self.place(name)

    def reuse(self, name: str, by: str) -> BufferOffset:
        self.home[by], self.offset[by] = self._slot(name)
        return self.place(by)

    def place(self, name: str) -> BufferOffset:
        buffer, offset = self._slot(name)
        return BufferOffset(buffer, offset + self.planes[name].lead)

    def _slot(self, name: str) -> Slot:
        return self.home[name], self.offset.get(name, 0)

    def _buffers(self) -> dict[str, Buffer]:
        uses: dict[str, list[int]] = {}
        for number, call in enumerate(self.calls):
            for argument in call.arguments:
                if isinstance(argument, BufferOffset):
                    uses.setdefault(argument.buffer, []).append(number)
        end = len(self.calls)
        return {
            name: Buffer(self.sizes[name], at[0], end if self.keep else at[-1])
            for name, at in uses.items()
        }

    # Ops

    def call(self, function: str, *arguments: Argument | Struct, source: str = "") -> None:
        made = tuple(ConstantAddress(a) if isinstance(a, Struct) else a for a in arguments)
        self.calls.append(Call(function, made, source))

    def struct(self, kind: str, *fields: Any) -> Struct:
        return Struct(kind, fields)

    def layout(self, name: str) -> Struct:
        return _planes(self.planes[name])

    def _load(self) -> None:
        (name,) = self.graph.inputs
        if tokens_of(self.graph):
            return  # what looks them up reads them where they are
        self.call("ek_load", _planes(self.planes[name]), "in", self.new(name), source="input")

    def _store(self) -> None:
        outputs = self.graph.outputs
        for name, parameter in zip(outputs, output_parameters(len(outputs)), strict=True):
            self._store_one(name, parameter)

    def _store_one(self, name: str, parameter: str) -> None:
        place, planes = self.place(name), self.planes[name]
        size = math.prod(self.graph.tensors[name].shape)
        if not _is_vector(planes):
            place = BufferOffset(self._own(parameter))
            self.sizes[place.buffer] = size
            self.call("ek_interleave", _planes(planes), self.place(name), place, source="output")
        self.call("ek_store", size, place, parameter, source="output")

    def _problems(self, op: ir.Op) -> list[str]:
        """Add the calls of an op; return what hinders, if anything."""
        try:
            add_calls = SPECS[op.kind].c99 if op.kind in SPECS else None
            if add_calls is None:
                raise ExportError("there is no kernel for it")
            if chain := self.chains.get(op.output):
                self._look_up(chain.source, op, chain.table + _BYTE)
            elif attention := self.attentions.get(op.output):
                self._attend(attention)
            else:
                add_calls(self, op)
        except ExportError as error:
            self.home.setdefault(op.output, op.output)
            culprit = self.fused.get(op.output, op)
            return [f"op {culprit.kind} of module {culprit.source!r} has no C form: {error}"]
        return []

    def _attend(self, found: FusedAttention) -> None:
        out, (_, heads, _, keys) = found.ops[-1], self.graph.tensors[found.score.output].shape
        size, values = (self.planes[name].channels // heads for name in (found.query, found.value))
        products = ((found.score, size), (found.mix, keys))
        requants = [_of_products(self.graph, op) for op, _ in products]
        fields = (
            *(self.layout(name) for name in (*found.sources, out.output)),
            *(_requant(requant) for requant in requants),
            powers_struct(self, found.softmax),
            ConstantAddress(self._mask(found.mask)),
            heads,
            *(
                int(near(requant, _widest(terms))[0])
                for requant, (_, terms) in zip(requants, products, strict=True)
            ),
        )
        small = self.goal == "size"
        scratch = self._scratch(out, keys if small else attention_scratch(size, values, keys))
        places = (*map(self.place, found.sources), self.new(out.output), scratch)
        function = "ek_attend_small" if small else "ek_attend"
        self.call(function, Struct("ek_attention", fields), *places, source=found.mix.source)

    def _mask(self, add: ir.Op | None) -> Struct | None:
        if add is None:
            return None
        a, b, shift = terms_of(self.graph, add)
        return self._pair(add, (a, b), shift)

    def weighted(self, op: ir.Op, add: ir.Op | None = None) -> None:
        weights, bias = _by_channel(self.graph, op), self.graph.constant(op.inputs[2])
        x = self.graph.tensors[op.inputs[0]]
        quantization = self.graph.tensors[op.inputs[1]].quantization
        assert quantization is not None  # the verifier's rule
        real = x.scale * np.asarray(quantization.scale) / self.graph.tensors[op.output].scale
        self._convolve(op, op.window or ir.Window(), weights, bias, real, add)

    def _convolve(
        self,
        op: ir.Op,
        window: ir.Window,
        weights: Int8s,
        bias: Int32s,
        real: Scales,
        add: ir.Op | None = None,
    ) -> None:
        """Call the kernel for what is a convolution, whatever the op's kind.

        Args:
            op: Its input and output are the convolution's.
            window: What the weights slide over.
            weights: [out, in of a group, kernel height, kernel width] int8.
            bias: [out] int32.
            real: [out] float64: steps of the output per step of the sums.
            add: The sum that takes its output, if it is part of it.
        """
        if add is None and self._sums_rows(op, window, weights):
            self._sum_rows(op, weights, bias, real)
            return
        source, at, in_row = self._taps(op, window)
        weights, requant = self._requant(op, weights, bias, real)
        other: BufferOffset | int = 0
        total = None
        if add is not None:
            other, total = self._other(op, add)
        out = self._out(op, add)
        common = (_planes(self.planes[(add or op).output]), _requant(requant), in_row)
        kind, rest, scratch = self._packed(weights, at, requant)
        struct = Struct(f"ek_{kind}_conv", (*common, *rest, ConstantAddress(total)))
        places: list[Argument] = [source, other, out]
        if scratch:
            places.append(self._scratch(op, scratch))
        self.call(f"ek_conv_{kind}", struct, *places, source=op.source)

    def _sums_rows(self, op: ir.Op, window: ir.Window, weights: Int8s) -> bool:
        """Whether a convolution is a sum of each row of each channel, by one weight a channel."""
        planes = self.planes[op.inputs[0]]
        of_one = weights.shape[1] == 1 and len(weights) == planes.channels
        is_row = window.kernel == (1, planes.width) and max(window.padding) == 0
        downwards = window.stride[0] == 1
        return of_one and is_row and downwards and bool((weights == weights[..., :1]).all())

    def _sum_rows(self, op: ir.Op, weights: Int8s, bias: Int32s, real: Scales) -> None:
        weights, requant = self._requant(op, weights, bias, real)
        layouts = self.layout(op.inputs[0]), self.layout(op.output)
        struct = Struct("ek_row_sums", (*layouts, _requant(requant), weights[:, 0, 0, 0]))
        places = self.place(op.inputs[0]), self.new(op.output)
        self.call("ek_sum_rows", struct, *places, source=op.source)

    def _taps(self, op: ir.Op, window: ir.Window) -> tuple[BufferOffset, Int32s, int]:
        """Return where a convolution reads, how far its taps are, and bytes from row to row."""
        name = op.inputs[0]
        planes = self.planes[name]
        if window.stride == (1, 1):
            return self.place(name), pack.distances(planes, window), planes.row
        phases = self.phases[op.output]
        buffer = self._own(f"{name}.phases{list(self.phases.values()).index(phases)}")
        if buffer not in self.sizes:
            self.sizes[buffer] = phases.planes.size
            top, _, left, _ = phases.window.padding
            layouts = _planes(planes), _planes(phases.planes)
            struct = Struct("ek_phases", (*phases.window.stride, top, left, *layouts))
            self.call("ek_split", struct, self.place(name), BufferOffset(buffer), source=op.source)
        return BufferOffset(buffer), phases.distances(window), phases.planes.row

    def _packed(
        self, weights: Int8s, at: Int32s, requant: Requant
    ) -> tuple[str, tuple[int | NDArray[Any], ...], int]:
        """Return which kernel takes the weights, the fields of its struct, and its scratch."""
        groups = len(at) // weights.shape[1]
        density = np.count_nonzero(weights) / max(1, weights.size)
        if self.goal == "size" and (groups > 1 or density < STREAM_BELOW):
            return self._streamed(weights, at, groups)
        if self.goal == "size":
            whole = pack.full(weights, at)
            return "full", (whole.taps, whole.at, whole.weights), whole.scratch
        if groups == 1 and density >= DENSE_FROM:
            full = pack.dense(weights, at)
            return "dense", (full.taps, full.at, full.weights), full.scratch
        packed = pack.sparse(weights, at, near(requant, weights))
        return "sparse", (packed.filters, packed.quads, packed.pairs), 0

    def _streamed(
        self, weights: Int8s, at: Int32s, groups: int
    ) -> tuple[str, tuple[int | NDArray[Any], ...], int]:
        step = int(at[1, 0, 0] - at[0, 0, 0]) if len(at) > 1 else 0
        bits = 4 if np.abs(weights).max(initial=0) < 8 else 8
        channels = weights.shape[1], len(weights) // groups
        fields = step, at[0].size, at[0].ravel(), *channels, bits, pack.stream(weights, bits)
        return "stream", fields, pack.stream_scratch(weights)

    def _scratch(self, op: ir.Op, size: int) -> BufferOffset:
        name = self._own(f"{op.output}.scratch")
        self.sizes[name] = size
        return BufferOffset(name)

    def _requant(
        self, op: ir.Op, weights: Int8s, bias: Int32s, real: Scales
    ) -> tuple[Int8s, Requant]:
        """Return the weights, scaled where a multiplier needs it, and how sums become bytes."""
        multiplier, shift = multiplier_and_shift(real)
        by = np.maximum(LEAST_SHIFT - shift, 0)
        scaled = weights << by.reshape(-1, *[1] * (weights.ndim - 1))
        offsets = bias.astype(np.int64) << by
        if np.abs(scaled).max(initial=0) > 127 or np.abs(offsets).max(initial=0) >= 2**31:
            raise ExportError(
                f"it multiplies its sums by {real.max():.3g}, and the kernels by less than 1; its "
                "outputs are much smaller than its weights can express: give calibration "
                "examples of the true range, or retrain the layer"
            )
        folded = pack.folded_bias(
            offsets.astype(np.int32), scaled.astype(np.int8), self._zero(op.inputs[0])
        )
        requant = self._factors(op, folded, multiplier, shift + by)
        return scaled.astype(np.int8), simplified(requant, weights)

    def _factors(self, op: ir.Op, bias: Int32s, multiplier: Int64s, shift: Int64s) -> Requant:
        arrays = bias, multiplier.astype(np.int32), shift.astype(np.uint8)
        return Requant(*arrays, *self._limits(op))

    def _limits(self, op: ir.Op) -> tuple[int, int, int]:
        low, high = integers.limits(self.graph, op)
        return self._zero(op.output), low + _BYTE, high + _BYTE

    def _zero(self, name: str) -> int:
        return self.graph.tensors[name].zero_point + _BYTE

    def _out(self, op: ir.Op, add: ir.Op | None) -> BufferOffset:
        """Return where a convolution writes; with a sum, over what it adds if that is over."""
        if add is None:
            return self.new(op.output)
        name = _other_input(op, add)
        is_free = add.output not in self.slots and self._is_over(name, add)
        if is_free and self.home[name] != self.home[op.inputs[0]]:
            return self.reuse(name, add.output)
        return self.new(add.output)

    def _other(self, op: ir.Op, add: ir.Op) -> tuple[BufferOffset, Struct]:
        name = _other_input(op, add)
        return self.place(name), self._sum(add, op.output, name)

    def _sum(self, add: ir.Op, a: str, b: str) -> Struct:
        out = self.graph.tensors[add.output].scale
        scales = (self.graph.tensors[name].scale / out for name in (a, b))
        *factors, shift = add_multipliers(*scales)
        zeros = self._zero(a), self._zero(b)
        offset = pack.sum_offset((factors[0], factors[1]), zeros, shift)
        return Struct("ek_sum", (*factors, offset, shift, *self._limits(add)))

    def sum(self, op: ir.Op) -> None:
        conv = self.fused.get(op.output)
        if conv is not None:
            self.weighted(conv, op)
            return
        a, b = op.inputs
        places = self.place(a), self.place(b)
        planes, out = _planes(self.planes[op.output]), self._over_one_of(op, op.inputs)
        self.call("ek_add", self._sum(op, a, b), planes, *places, out, source=op.source)

    def _over_one_of(self, op: ir.Op, inputs: Sequence[str]) -> BufferOffset:
        """Return where to write what has the layout of what it reads: over one that is over."""
        free = () if op.output in self.slots else inputs
        over = next((name for name in free if self._is_over(name, op)), None)
        return self.reuse(over, op.output) if over else self.new(op.output)

    def pair(self, function: str, op: ir.Op, factors: tuple[int, ...], shift: int) -> None:
        is_held = [self.graph.tensors[name].data is not None for name in op.inputs]
        places = [
            0 if held else self.place(name) for held, name in zip(is_held, op.inputs, strict=True)
        ]
        struct, out = self._pair(op, factors, shift), self.new(op.output)
        self.call(function, struct, *places, out, source=op.source)

    def _pair(self, op: ir.Op, factors: tuple[int, ...], shift: int) -> Struct:
        constants = [name for name in op.inputs if self.graph.tensors[name].data is not None]
        zeros = [self._zero(name) for name in op.inputs]
        fields = (
            _planes(self.planes[op.output]),
            *(self._steps(name, op.output) for name in op.inputs),
            *zeros,
            *(factors if len(factors) == 2 else (*factors, 0)),
            shift,
            *self._limits(op),
            *(self._constant(name) for name in constants or [""]),
        )
        return Struct("ek_pair_op", fields)

    def _steps(self, name: str, output: str) -> Struct:
        """Return how far it is to the next plane, row and pixel of an operand: 0 if it is again."""
        sizes, out = (self._sizes(each) for each in (name, output))
        planes = self.planes.get(name) or self._planes_of_constant(name)
        steps = planes.plane, planes.row, 1
        return Struct(
            "ek_steps",
            tuple(
                0 if size == 1 < whole else step
                for step, size, whole in zip(steps, sizes, out, strict=True)
            ),
        )

    def _sizes(self, name: str) -> tuple[int, int, int]:
        """Return channels, height and width."""
        shape = self.graph.tensors[name].shape
        height, width = shape[1:3] if len(shape) == 4 else (1, 1)
        return shape[-1], height, width

    def _planes_of_constant(self, name: str) -> Planes:
        return Planes(*self._sizes(name), zero=self._zero(name))

    def _constant(self, name: str) -> int | NDArray[Any]:
        """Return a constant as planes of bytes; 0 if there is none."""
        if not name:
            return 0
        data = self.graph.constant(name).astype(np.int64) + _BYTE
        planes = np.moveaxis(data, -1, 1).astype(np.uint8).ravel()
        return np.pad(planes, (0, pack.SLACK))  # which kernels may read

    def look_up(self, op: ir.Op, table: Int64s) -> None:
        self._look_up(op.inputs[0], op, table)

    def _look_up(self, source: str, op: ir.Op, table: Int64s) -> None:
        place, planes = self.place(source), _planes(self.planes[op.output])
        entries = Struct("ek_table", (table.astype(np.uint8),))
        out = self._over_one_of(op, [source])
        self.call("ek_look_up", entries, planes, place, out, source=op.source)

    def join(self, op: ir.Op) -> None:
        starts = _starts(op, self.planes)
        buffer, first = self._slot(op.inputs[0])
        lie_so = [(buffer, first + start) for start in starts]
        if op.output not in self.slots and lie_so == [self._slot(name) for name in op.inputs]:
            self.reuse(op.inputs[0], op.output)
            return
        self.new(op.output)
        buffer, first = self._slot(op.output)
        for name, start in zip(op.inputs, starts, strict=True):
            if self._slot(name) != (buffer, first + start):
                planes = self.planes[name]
                to = BufferOffset(buffer, first + start + planes.lead)
                self.call("ek_concat", _planes(planes), self.place(name), to, source=op.source)

    def linear(self, op: ir.Op) -> None:
        if not _is_vector(self.planes[op.inputs[0]]):
            raise ExportError("its input is an image; flatten it first")
        weights, bias = self.graph.constant(op.inputs[1]), self.graph.constant(op.inputs[2])
        if self.goal == "size" and np.count_nonzero(weights) < STREAM_BELOW * weights.size:
            self.weighted(op)
            return
        x, out = self.graph.tensors[op.inputs[0]], self.graph.tensors[op.output]
        quantization = self.graph.tensors[op.inputs[1]].quantization
        assert quantization is not None  # the verifier's rule
        real = x.scale * np.asarray(quantization.scale) / out.scale
        weights, requant = self._requant(op, weights, bias, real)
        sizes = weights.shape[1], len(weights)
        struct = Struct("ek_linear_layer", (*sizes, _requant(requant), weights))
        places = self.place(x.name), self.new(out.name)
        self.call("ek_linear", struct, *places, source=op.source)

    def mean(self, op: ir.Op) -> None:
        x, out = (self.graph.tensors[name] for name in (op.inputs[0], op.output))
        planes = self.planes[x.name]
        count = planes.height * planes.width
        real = x.scale / count / out.scale
        multiplier, shift = multiplier_and_shift(np.array([real]))
        if shift[0] < LEAST_SHIFT or not _is_vector(self.planes[out.name]):
            self.per_channel(op, (planes.height, planes.width), real)
            return
        bias = np.array([-count * planes.zero], np.int32)
        struct = _requant(self._factors(op, bias, multiplier, shift))
        places = self.place(x.name), self.new(out.name)
        self.call("ek_mean", struct, _planes(planes), *places, source=op.source)

    def per_channel(self, op: ir.Op, kernel: tuple[int, int], real: float) -> None:
        """Sum windows of each channel by weights of 1."""
        channels = self.planes[op.inputs[0]].channels
        ones = np.ones((channels, 1, *kernel), np.int8)
        self._convolve(
            op, ir.Window(kernel), ones, np.zeros(channels, np.int32), np.full(channels, real)
        )

    def moved(self, op: ir.Op) -> bool:
        chain = self.moves.get(op.output)
        if chain is None:
            return False
        before, after = (self.planes[name] for name in (chain.source, op.output))
        stays = (chain.loops[:, 1] == chain.loops[:, 2]).all()
        alike = before == after or (before.has_no_halo and after.has_no_halo)
        if stays and alike and op.output not in self.slots:
            self.reuse(chain.source, op.output)
            return True
        loops = Struct("ek_loops", (len(chain.loops), *chain.loops.T.astype(np.int32)))
        places = self.place(chain.source), self.new(op.output)
        self.call("ek_move", loops, _planes(after), *places, source=op.source)
        return True

    def multiplied(self, op: ir.Op) -> bool:
        requant = _of_products(self.graph, op)
        if self.goal == "size" or requant.shift[0] < LEAST_SHIFT:
            return False
        layouts = [self.layout(name) for name in (*op.inputs, op.output)]
        terms, channels = (self.planes[name].channels for name in (op.inputs[0], op.output))
        how = _requant(requant), int(near(requant, _widest(terms))[0])
        places = *map(self.place, op.inputs), self.new(op.output)
        scratch = self._scratch(op, multiply_scratch(channels, terms))
        struct = Struct("ek_multiplication", (*layouts, *how))
        self.call("ek_multiply", struct, *places, scratch, source=op.source)
        return True

    def to_vector(self, function: str, op: ir.Op) -> None:
        planes = self.planes[op.inputs[0]]
        if _is_vector(planes):
            self.reuse(op.inputs[0], op.output)
        else:
            places = self.place(op.inputs[0]), self.new(op.output)
            self.call(function, _planes(planes), *places, source=op.source)


def _planes(planes: Planes) -> Struct:
    sizes = planes.channels, planes.height, planes.width
    return Struct("ek_planes", (*sizes, planes.row, planes.plane, planes.lead, planes.zero))


def _requant(r: Requant) -> Struct:
    return Struct("ek_requant", (r.bias, r.multiplier, r.shift, r.zero, r.low, r.high))


def _of_products(graph: ir.Graph, op: ir.Op) -> Requant:
    """Return how the sums of a product of two activations become bytes."""
    out = graph.tensors[op.output]
    how = multipliers(np.asarray(scale_of_sums(graph, op) / out.scale))
    multiplier, shift = (np.array([int(each)]) for each in (how.multiplier, how.shift))
    zero = np.zeros(1, np.int32)
    arrays = zero, multiplier.astype(np.int32), shift.astype(np.uint8)
    return Requant(*arrays, out.zero_point + _BYTE, 0, 255)


def _widest(terms: int) -> Int8s:
    """Return weights of one channel whose sums reach as far as any sums of products."""
    return np.array([[127] * terms + [-128] * terms], np.int8)


def _attends(graph: ir.Graph, found: FusedAttention) -> bool:
    """Whether the kernel scales as its products do."""
    requants = [_of_products(graph, op) for op in (found.score, found.mix)]
    return all(requant.shift[0] >= LEAST_SHIFT for requant in requants)


def _is_vector(planes: Planes) -> bool:
    return planes.plane == 1 and planes.lead == 0


def _by_channel(graph: ir.Graph, op: ir.Op) -> Int8s:
    """Return weights as [out, in of a group, kernel height, kernel width]."""
    return weights_of(op).by_channel(graph.constant(op.inputs[1])).transpose(0, 3, 1, 2)


def _is_convolution(op: ir.Op) -> bool:
    return op.kind in WEIGHTED and op.window is not None


def _fusions(graph: ir.Graph) -> dict[str, ir.Op]:
    """Return output of a sum -> the convolution that computes it too.

    Of two convolutions the later is taken: the earlier then is done when it starts.
    """
    order = {op.output: number for number, op in enumerate(graph.ops)}
    found = {}
    for op in graph.ops:
        if op.kind == "add" and op.inputs[0] != op.inputs[1] and is_plain(graph, op):
            makers = [graph.producer(n) for n in op.inputs if graph.sole_consumer(n) is op]
            convs = [m for m in makers if m is not None and _is_convolution(m)]
            if convs:
                found[op.output] = max(convs, key=lambda conv: order[conv.output])
    return found


def _other_input(conv: ir.Op, add: ir.Op) -> str:
    return next(name for name in add.inputs if name != conv.output)


def _layouts(graph: ir.Graph) -> dict[str, Planes]:
    """Return the layout of every activation."""
    plain = {
        name: _without_halo(tensor) for name, tensor in graph.tensors.items() if tensor.data is None
    }
    halos: dict[tuple[int, int], tuple[int, int]] = {}
    for op in graph.ops:
        if _is_convolution(op):
            planes = plain[op.inputs[0]]
            size = planes.height, planes.width
            need, most = pack.halo(planes, op.sliding), halos.get(size, (0, 0))
            halos[size] = max(need[0], most[0]), max(need[1], most[1])
    return {
        name: planes
        if len(graph.tensors[name].shape) == 2
        else Planes(
            planes.channels,
            planes.height,
            planes.width,
            *halos.get((planes.height, planes.width), (0, 0)),
            planes.zero,
        )
        for name, planes in plain.items()
    }


def _without_halo(tensor: ir.Tensor) -> Planes:
    height, width = tensor.shape[1:3] if len(tensor.shape) == 4 else (1, 1)
    return Planes(tensor.shape[-1], height, width, zero=tensor.zero_point + _BYTE)


def _slots(graph: ir.Graph, planes: Mapping[str, Planes]) -> dict[str, Slot]:
    """Return tensor -> where it lies in what the last concat that reads it makes."""
    found: dict[str, Slot] = {}
    for op in reversed(graph.ops):
        if _joins_planes(graph, op):
            buffer, first = found.get(op.output, (op.output, 0))
            for name, start in zip(op.inputs, _starts(op, planes), strict=True):
                found.setdefault(name, (buffer, first + start))
    return found


def _joins_planes(graph: ir.Graph, op: ir.Op) -> bool:
    """Whether an op puts the planes of its inputs one behind the other."""
    planes = {graph.tensors[name].shape[:-1] for name in (*op.inputs, op.output)}
    return spec_of(op).variadic and len(planes) == 1


def _starts(concat: ir.Op, planes: Mapping[str, Planes]) -> list[int]:
    """Return how many bytes lie before each input of a concat."""
    sizes = [planes[name].channels * planes[name].plane for name in concat.inputs]
    return [0, *itertools.accumulate(sizes[:-1])]


def _shared_phases(graph: ir.Graph, planes: Mapping[str, Planes]) -> dict[str, Phases]:
    """Return output of a convolution with a stride -> the phases that it reads."""
    found: dict[str, Phases] = {}
    strided = [op for op in graph.ops if _is_convolution(op) and op.sliding.stride != (1, 1)]
    # Large windows first: small ones can read what was made for them.
    for op in sorted(strided, key=_taps_and_padding, reverse=True):
        mine = [
            found[o.output] for o in strided if o.output in found and o.inputs[0] == op.inputs[0]
        ]
        fitting = (phases for phases in mine if _can_read(phases, op.sliding))
        made = Phases(planes[op.inputs[0]], op.sliding, planes[op.output].row)
        found[op.output] = next(fitting, made)
    return found


def _taps_and_padding(op: ir.Op) -> int:
    return math.prod(op.sliding.kernel) + sum(op.sliding.padding)


def _can_read(phases: Phases, window: ir.Window) -> bool:
    try:
        phases.distances(window)
    except ExportError:
        return False
    return True
