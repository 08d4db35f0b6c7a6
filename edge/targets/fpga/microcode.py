"""From an int8 graph to a program of the FPGA engine in `hdl/`.

What the engine computes is what `edge.define.interpret_int8` computes under `half_up`, integer by
integer. Every op becomes one step or a few:

- convolutions, linear layers, means and average pools are filters over windows, whose zeros are
  not stored; a maximum is a filter that keeps the largest instead of adding;
- a pool is cut into regions whose windows lose the same taps to the padding;
- sums, ReLUs and whatever moves activations handle one activation at a time.

Activations lie as rows of pixels of channels, with the halo that convolutions read around them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from edge.arena import Buffer, plan
from edge.ops.registry import SPECS
from edge.targets.common import check_compilable, multiplier_and_shift
from edge.targets.fpga.lanes import MOST_ENTRIES, Filter, deal, entry_count, narrowest_gap
from edge.targets.fpga.steps import SAME, EngineStep, LoopAddress, MapLayout, Microcode, Run, Triple
from fedkit.core.errors import ExportError
from fedkit.core.numerics import Int64s
from fedkit.graph import integers, ir
from fedkit.graph.ops.registry import WEIGHTED, weights_of
from fedkit.graph.places import places_of, sizes_of

MOST_COPIES = 1024
"""Steps of one op that moves activations."""

_LEAD = 256  # makes a sum of centred values of int8 positive, so that it can be divided exactly


def compile_graph(graph: ir.Graph, lanes: int, keep: bool = False) -> Microcode:
    """Turn a graph into steps.

    Args:
        graph: Int8, as `edge.quantize.to_int8.quantize` leaves it, with one input and one output.
        lanes: Filters at a time.
        keep: Give every activation, in the order of the ops, not the output alone.

    Raises:
        ExportError: Something in the graph cannot be done; names all of it.
    """
    check_compilable(graph, "FPGA", several_outputs=False)
    maps = _maps(graph)
    steps = tuple(_Compiler(graph, maps).run(keep))
    offsets, size = plan(_buffers(graph, maps), 1)
    filters = [each for step in steps for each in step.filters]
    gap_bits = narrowest_gap(filters, max(1, (size - 1).bit_length()))
    slots = tuple(tuple(deal(step.filters, lanes, gap_bits)) for step in steps)
    _check_lengths(steps, gap_bits)
    return Microcode(steps, slots, offsets, size, gap_bits)


def _check_lengths(steps: Sequence[EngineStep], gap_bits: int) -> None:
    long = {
        step.source: most
        for step in steps
        if (most := max((entry_count(f, gap_bits) for f in step.filters), default=0)) > MOST_ENTRIES
    }
    if long:
        named = "; ".join(f"{source} has {most}" for source, most in long.items())
        raise ExportError(
            f"a filter of the FPGA target has at most {MOST_ENTRIES} weights that are not zero, "
            f"but {named}: prune or split these layers"
        )


# Memory


def _maps(graph: ir.Graph) -> dict[str, MapLayout]:
    halos: dict[str, tuple[int, ...]] = {}
    for op in graph.ops:
        if op.kind in WEIGHTED and op.window is not None:
            need = _halo(graph, op, op.window)
            most = halos.get(op.inputs[0], (0,) * 4)
            halos[op.inputs[0]] = tuple(map(max, need, most))
    return {
        name: _map(tensor, halos.get(name, (0,) * 4))
        for name, tensor in graph.tensors.items()
        if tensor.data is None
    }


def _halo(graph: ir.Graph, op: ir.Op, window: ir.Window) -> tuple[int, ...]:
    """Return the pixels that a convolution reads beyond its input on each side."""
    size, out = graph.tensors[op.inputs[0]].shape[1:3], graph.tensors[op.output].shape[1:3]
    found = []
    for axis, before in enumerate((window.padding[0], window.padding[2])):
        reach = (out[axis] - 1) * window.stride[axis]
        reach += window.dilation[axis] * (window.kernel[axis] - 1)
        found += [before, max(0, reach - before - (size[axis] - 1))]
    return tuple(found)


def _map(tensor: ir.Tensor, halo: Sequence[int]) -> MapLayout:
    height, width = tensor.shape[1:3] if len(tensor.shape) == 4 else (1, 1)
    top, bottom, left, right = halo
    return MapLayout(height, width, tensor.shape[-1], tensor.zero_point, (top, bottom, left, right))


def _buffers(graph: ir.Graph, maps: Mapping[str, MapLayout]) -> dict[str, Buffer]:
    first = dict.fromkeys(graph.inputs, 0)
    last = dict.fromkeys((*graph.inputs, *graph.outputs), len(graph.ops))
    last[graph.inputs[0]] = 0
    for number, op in enumerate(graph.ops):
        first[op.output] = number
        for name in (*op.inputs, op.output):
            last[name] = max(number, last.get(name, 0))
    return {name: Buffer(maps[name].size, first[name], last[name]) for name in first}


# Steps


@dataclass
class _Compiler:
    """Yields the steps of each op in order; an `edge.ops.builders.FpgaCompiler`."""

    graph: ir.Graph
    maps: Mapping[str, MapLayout]
    missing: dict[tuple[ir.Kind, str], list[str]] = field(default_factory=dict)
    """Kind of op and reason -> where it is."""

    def run(self, keep: bool) -> Iterator[EngineStep]:
        (source,), (result,) = self.graph.inputs, self.graph.outputs
        yield from self._filled(source, "input")
        yield EngineStep("take", self.maps[source].shape, self._whole(source), source="input")
        for op in self.graph.ops:
            yield from self._steps(op)
            if keep and op.output != result:
                yield self._give(op.output)
        yield self._give(result)
        if self.missing:
            named = "; ".join(
                f"{_several(kind, places)} ({why})" for (kind, why), places in self.missing.items()
            )
            raise ExportError(
                f"the FPGA target has nothing for {named}: export for another target, or change "
                "these layers"
            )

    def _steps(self, op: ir.Op) -> Iterator[EngineStep]:
        try:
            steps = SPECS[op.kind].fpga if op.kind in SPECS else None
            if steps is None:
                raise ExportError("there is no step for this kind of op")
            yield from self._filled(op.output, _comment(op))
            yield from steps(self, op)
        except ExportError as error:
            self.missing.setdefault((op.kind, str(error)), []).append(op.source or "(model)")

    def _filled(self, name: str, source: str) -> Iterator[EngineStep]:
        """Yield what writes the zero point where a halo will be."""
        here = self.maps[name]
        if any(here.halo):
            write = LoopAddress(name, 0, (0, 0, 1))
            yield EngineStep(
                "fill", (1, 1, here.size), write, bias=here.zero, source=f"halo of {source}"
            )

    def _give(self, name: str) -> EngineStep:
        read = (self._whole(name),)
        return EngineStep("give", self.maps[name].shape, None, read, source=f"output {name}")

    def _whole(self, name: str) -> LoopAddress:
        return LoopAddress(name, self.maps[name].at(0, 0), self.maps[name].strides)

    # Filters

    def weighted(self, op: ir.Op) -> Iterator[EngineStep]:
        graph, x = self.graph, self.maps[op.inputs[0]]
        window = op.window or ir.Window()
        weights = weights_of(op).by_channel(graph.constant(op.inputs[1]).astype(np.int64))
        taps = _tap_offsets(x, window)
        biases = graph.constant(op.inputs[2]).astype(np.int64)
        biases -= x.zero * weights.sum(axis=(1, 2, 3))
        scales = graph.tensors[op.inputs[1]].quantization
        assert scales is not None  # the verifier's rule
        tensor, out = graph.tensors[op.inputs[0]], graph.tensors[op.output]
        multiplier, shift = multiplier_and_shift(
            tensor.scale * np.asarray(scales.scale) / out.scale
        )
        groups = np.arange(x.channels).reshape(-1, weights.shape[3])
        filters = []
        for number, kernel in enumerate(weights):
            inputs = groups[number * len(groups) // len(weights)]
            offsets, values = (taps[:, :, None] + inputs).ravel(), kernel.ravel()
            kept = np.flatnonzero(values)
            numbers = int(biases[number]), int(multiplier[number]), int(shift[number])
            filters.append(Filter(offsets[kept], values[kept], *numbers, number))
        yield self._windows(op, "filters", filters, window)

    def _windows(
        self, op: ir.Op, run: Run, filters: Sequence[Filter], window: ir.Window
    ) -> EngineStep:
        """Return the step of filters over all windows; the first one may begin in the halo."""
        x, out = self.maps[op.inputs[0]], self.maps[op.output]
        lead = x.at(-window.padding[0], -window.padding[2])
        strides = 0, window.stride[0] * x.row, window.stride[1] * x.channels
        read, write = LoopAddress(op.inputs[0], lead, strides), self._places(op.output)
        return self._filters(op, run, (out.height, out.width), read, write, filters)

    def _places(self, name: str) -> LoopAddress:
        here = self.maps[name]
        return LoopAddress(name, here.at(0, 0), (0, here.row, here.channels))

    def _filters(
        self,
        op: ir.Op,
        run: Run,
        windows: tuple[int, int],
        read: LoopAddress,
        write: LoopAddress,
        filters: Sequence[Filter],
        offset: int | None = None,
    ) -> EngineStep:
        return EngineStep(
            run,
            (1, *windows),
            write,
            (read,),
            offset=self.maps[op.output].zero if offset is None else offset,
            limits=integers.limits(self.graph, op),
            filters=tuple(filters),
            source=_comment(op),
        )

    def mean(self, op: ir.Op) -> Iterator[EngineStep]:
        x, out = (self.graph.tensors[name] for name in (op.inputs[0], op.output))
        here = self.maps[op.inputs[0]]
        count = here.height * here.width
        multiplier, shift = multiplier_and_shift(np.asarray(x.scale / count) / out.scale)
        window = ir.Window((here.height, here.width))
        filters = self._ones(
            _tap_offsets(here, window).ravel(),
            -count * here.zero,
            int(multiplier),
            int(shift),
            here.channels,
        )
        yield self._windows(op, "filters", filters, window)

    def _ones(
        self, taps: Int64s, bias: int, multiplier: int, shift: int, channels: int
    ) -> list[Filter]:
        """Return filters that add all taps of a channel, one for each channel."""
        ones = np.ones(len(taps), np.int64)
        return [Filter(taps + c, ones, bias, multiplier, shift, c) for c in range(channels)]

    def pool(self, op: ir.Op, maxima: bool) -> Iterator[EngineStep]:
        window = op.sliding
        x, out = self.maps[op.inputs[0]], self.maps[op.output]
        rows = _regions(x.height, out.height, window, 0)
        columns = _regions(x.width, out.width, window, 1)
        for (y, height, in_y), (left, width, in_x) in itertools.product(rows, columns):
            taps = (in_y[:, None] * x.row + in_x * x.channels).ravel()
            read = LoopAddress(
                op.inputs[0],
                x.at(y * window.stride[0] - window.padding[0], 0)
                + (left * window.stride[1] - window.padding[2]) * x.channels,
                (0, window.stride[0] * x.row, window.stride[1] * x.channels),
            )
            write = LoopAddress(op.output, out.at(y, left), self._places(op.output).strides)
            yield self._pooled(op, maxima, (height, width), read, write, taps)

    def _pooled(
        self,
        op: ir.Op,
        maxima: bool,
        windows: tuple[int, int],
        read: LoopAddress,
        write: LoopAddress,
        taps: Int64s,
    ) -> EngineStep:
        x, count = self.maps[op.inputs[0]], len(taps)
        if count == 0:
            raise ExportError("a window lies in the padding alone")
        if maxima:
            filters = self._ones(taps, 0, *SAME, x.channels)
            return self._filters(op, "maxima", windows, read, write, filters, 0)
        # Exact: the sum is positive, and the multiplier is above 1 / count by too little to matter.
        shift = 29 + count.bit_length()
        multiplier = -(-(2**shift) // count)
        filters = self._ones(taps, count * (_LEAD - x.zero), multiplier, shift, x.channels)
        return self._filters(op, "filters", windows, read, write, filters, x.zero - _LEAD)

    # Single activations

    def rescale(self, op: ir.Op) -> Iterator[EngineStep]:
        x, out = (self.graph.tensors[name] for name in (op.inputs[0], op.output))
        multiplier, shift = multiplier_and_shift(np.asarray(x.scale) / out.scale)
        yield from self.single(op, (1,), -x.zero_point, (int(multiplier), int(shift)))

    def single(
        self, op: ir.Op, factors: tuple[int, ...], bias: int, scale: tuple[int, int]
    ) -> Iterator[EngineStep]:
        yield EngineStep(
            "single",
            self.maps[op.output].shape,
            self._whole(op.output),
            tuple(self._whole(name) for name in op.inputs),
            factors,
            bias,
            scale,
            self.maps[op.output].zero,
            integers.limits(self.graph, op),
            source=_comment(op),
        )

    def _copied(
        self, op: ir.Op, counts: Triple, read: LoopAddress, write: LoopAddress
    ) -> EngineStep:
        limits = integers.limits(self.graph, op)
        return EngineStep(
            "single", counts, write, (read,), (1,), limits=limits, source=_comment(op)
        )

    def join(self, op: ir.Op) -> Iterator[EngineStep]:
        out, before = self._whole(op.output), 0
        for name in op.inputs:
            write = LoopAddress(out.name, out.lead + before, out.strides)
            yield self._copied(op, self.maps[name].shape, self._whole(name), write)
            before += self.maps[name].channels

    def take(self, op: ir.Op) -> Iterator[EngineStep]:
        x, out = self.maps[op.inputs[0]], self.maps[op.output]
        sizes = sizes_of(self.graph.tensors[op.inputs[0]].shape)
        lists = (
            range(size) if each is None else each
            for size, each in zip(sizes, places_of(op).lists, strict=True)
        )
        axes = [in_runs(each) for each in lists]
        count = math.prod(map(len, axes))
        if count > MOST_COPIES:
            raise ExportError(f"it takes places in {count} steps; {MOST_COPIES} can be")
        for runs in itertools.product(*axes):
            rows, columns, channels = runs
            counts = rows.length, columns.length, channels.length
            read = LoopAddress(
                op.inputs[0],
                x.at(rows.first, columns.first) + channels.first,
                _moved(x, *(run.step for run in runs)),
            )
            write = LoopAddress(
                op.output,
                out.at(rows.start, columns.start) + channels.start,
                _moved(out, *(run.stride for run in runs)),
            )
            yield self._copied(op, counts, read, write)

    def put(self, op: ir.Op, starts: Iterable[tuple[str, int, int]]) -> Iterator[EngineStep]:
        out = self.maps[op.output]
        for name, top, left in starts:
            write = LoopAddress(op.output, out.at(top, left), out.strides)
            yield self._copied(op, self.maps[name].shape, self._whole(name), write)

    def transpose(self, op: ir.Op, axes: tuple[int, int, int]) -> Iterator[EngineStep]:
        x, out = self._whole(op.inputs[0]), self._whole(op.output)
        rows, columns, channels = (x.strides[axis - 1] for axis in axes)
        read = LoopAddress(x.name, x.lead, (rows, columns, channels))
        yield self._copied(op, self.maps[op.output].shape, read, out)

    def pad(self, op: ir.Op) -> Iterator[EngineStep]:
        x, out = self.maps[op.inputs[0]], self.maps[op.output]
        if not any(out.halo):
            ends = LoopAddress(op.output, 0, (0, 0, 1))
            yield EngineStep("fill", (1, 1, out.size), ends, bias=out.zero, source=_comment(op))
        top, _, left, _ = op.sliding.padding
        write = LoopAddress(op.output, out.at(top, left), out.strides)
        yield self._copied(op, x.shape, self._whole(op.inputs[0]), write)

    def reshape(self, op: ir.Op) -> Iterator[EngineStep]:
        read, write = self._whole(op.inputs[0]), self._whole(op.output)
        x, out = self.maps[op.inputs[0]], self.maps[op.output]
        counts = x.shape if any(x.halo) else out.shape
        if x.shape != out.shape and any(x.halo) and any(out.halo):
            raise ExportError("it reshapes one padded image to another")
        if not any(x.halo):
            read = LoopAddress(read.name, 0, _contiguous(counts))
        if not any(out.halo):
            write = LoopAddress(write.name, 0, _contiguous(counts))
        yield self._copied(op, counts, read, write)

    def flatten(self, op: ir.Op) -> Iterator[EngineStep]:
        x, read = self.maps[op.inputs[0]], self._whole(op.inputs[0])
        counts = x.channels, x.height, x.width
        by_channel = LoopAddress(read.name, read.lead, (1, x.row, x.channels))
        write = LoopAddress(op.output, 0, _contiguous(counts))
        yield self._copied(op, counts, by_channel, write)


class TakenRun(NamedTuple):
    """Places start, start + stride, ... of a result are first, first + step, ... of a map."""

    start: int
    stride: int
    first: int
    step: int
    length: int


def in_runs(places: Sequence[int]) -> list[TakenRun]:
    """Return what a list of places is in few runs: of neighbours, or of every second and so on."""
    return min(
        ([run for lead in range(by) for run in _split(places, lead, by)] for by in range(1, 9)),
        key=len,
    )


def _split(places: Sequence[int], lead: int, by: int) -> Iterator[TakenRun]:
    """Yield the runs of every `by`-th place from `lead` on, each as long as it can be."""
    numbers = places[lead::by]
    at = 0
    while at < len(numbers):
        end = min(at + 2, len(numbers))
        step = numbers[end - 1] - numbers[at]
        while end < len(numbers) and numbers[end] - numbers[end - 1] == step:
            end += 1
        yield TakenRun(lead + at * by, by, numbers[at], step, end - at)
        at = end


def _moved(x: MapLayout, rows: int, columns: int, channels: int) -> Triple:
    """Return the bytes to a place so many rows, columns or channels on."""
    return rows * x.row, columns * x.channels, channels


def _several(kind: ir.Kind, places: Sequence[str], most: int = 3) -> str:
    """Name an op and where it is.

    >>> _several("mean", ["0", "2", "4", "6", "8"])
    'mean 0, 2, 4 and 2 more'
    """
    rest = f" and {len(places) - most} more" if len(places) > most else ""
    return f"{kind} {', '.join(places[:most])}{rest}"


def _comment(op: ir.Op) -> str:
    return f"{op.kind} {op.source}".strip()


def _contiguous(counts: Triple) -> Triple:
    return counts[1] * counts[2], counts[2], 1


def _tap_offsets(x: MapLayout, window: ir.Window) -> Int64s:
    """Return int64 [kernel height, kernel width]: bytes from a window's first pixel to each."""
    rows = np.arange(window.kernel[0])[:, None] * window.dilation[0] * x.row
    return rows + np.arange(window.kernel[1]) * window.dilation[1] * x.channels


def _regions(size: int, out: int, window: ir.Window, axis: int) -> list[tuple[int, int, Int64s]]:
    """Group outputs along an axis whose windows lose the same taps to the padding.

    Returns:
        First output, how many, and the distances of the taps that are left.
    """
    taps = np.arange(window.kernel[axis]) * window.dilation[axis]
    padding = window.padding[2 * axis]
    found: list[tuple[int, int, Int64s]] = []
    for number in range(out):
        places = number * window.stride[axis] - padding + taps
        left = taps[(places >= 0) & (places < size)]
        if found and np.array_equal(found[-1][2], left):
            start, count, _ = found[-1]
            found[-1] = (start, count + 1, left)
        else:
            found.append((number, 1, left))
    return found
