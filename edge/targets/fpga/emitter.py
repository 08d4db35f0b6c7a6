"""Write a graph as Verilog: a module with a byte stream in and one out, and a bench that tests it.

`model.v` sets the parameters of the engine in edge/targets/fpga/hdl, whose files come with it. What
the model computes is in files for $readmemh: the program, and for each lane its filters' table and
weights. Tools must run in the folder, or where these files are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.targets.common import layout_of
from edge.targets.fpga import lanes as lane_memory
from edge.targets.fpga.assembler import WORD_BITS, assemble, listing
from edge.targets.fpga.lanes import LaneMemory, value_bits
from edge.targets.fpga.microcode import compile_graph
from edge.targets.fpga.step_times import cycles
from edge.targets.fpga.steps import Microcode
from fedkit.core.errors import ExportError
from fedkit.graph import ir

_HDL = Path(lane_memory.__file__).with_name("hdl")
_MODULES = ("engine", "sequencer", "lane", "pe", "requantize", "rom", "ram")

MOST_LANES = 8


@dataclass(frozen=True)
class Sources:
    """A model in Verilog.

    Attributes:
        files: Name -> content.
        cycles: Of one inference, from its first byte to the next one's, if no stream waits.
        rom_bits: Of program, tables and weights.
        weight_bits: Of a weight's value; with `gap_bits` that is what it takes.
        gap_bits: Of where a weight's activation lies.
        weights: How many are stored.
        ram_bytes: Of the activations; each lane has a copy.
        given: Activation -> shape, in the order in which they come out.
    """

    files: Mapping[str, bytes]
    cycles: int
    rom_bits: int
    weight_bits: int
    gap_bits: int
    weights: int
    ram_bytes: int
    given: Mapping[str, tuple[int, ...]]


def emit(
    graph: ir.Graph,
    inputs: NDArray[np.int8],
    outputs: NDArray[np.int8],
    lanes: int = 4,
    keep: bool = False,
) -> Sources:
    """Write a graph as Verilog.

    Args:
        graph: Int8, optimised.
        inputs: int8 [n, ...] in the graph's layout, examples for the bench.
        outputs: int8 [n, ...], what the graph gives for them; with `keep` all activations, flat.
        lanes: Filters that are computed at a time, 1 .. 8.
        keep: Give every activation, in the order of the ops, not the output alone.

    Returns:
        The sources; the same arguments always give the same.

    Raises:
        ExportError: Something in the graph cannot be done; names all of it. Or `lanes` is wrong.
    """
    if not 1 <= lanes <= MOST_LANES:
        raise ExportError(f"lanes is {lanes}; it must be 1 to {MOST_LANES}")
    code = compile_graph(graph, lanes, keep)
    memories, program = _memories(code, lanes), assemble(code)
    widths = _widths(code, memories, len(program))
    texts = {
        "model.v": _model(graph, widths, _has_maxima(code)),
        "program.hex": listing(program),
        **_constants(memories),
        "testbench.v": _testbench(inputs, outputs),
        "inputs.hex": _hex(inputs.ravel().view(np.uint8).tolist(), 8),
        "expected.hex": _hex(outputs.ravel().view(np.uint8).tolist(), 8),
        "Makefile": _MAKEFILE,
    }
    files = {name: text.encode() for name, text in texts.items()}
    files |= {f"{name}.v": (_HDL / f"{name}.v").read_bytes() for name in _MODULES}
    entries = sum(len(memory.entries) for memory in memories)
    tables = sum(len(memory.table) for memory in memories)
    entry_bits = code.gap_bits + memories[0].value_bits
    return Sources(
        files,
        cycles(code, lanes),
        WORD_BITS * len(program) + 32 * tables + entry_bits * entries,
        memories[0].value_bits,
        code.gap_bits,
        entries,
        code.ram_bytes,
        _given(graph, keep),
    )


def _constants(memories: Sequence[LaneMemory]) -> dict[str, str]:
    """Return the files of the lanes' memories; all of one kind are equally deep."""
    deepest, texts = max(len(memory.entries) for memory in memories), {}
    for number, memory in enumerate(memories):
        entries = memory.entries + [0] * (deepest - len(memory.entries))
        texts[f"weights_{number}.hex"] = _hex(entries, memory.gap_bits + memory.value_bits)
        texts[f"filters_{number}.hex"] = _hex(memory.table, 32)
    return texts


def _given(graph: ir.Graph, keep: bool) -> dict[str, tuple[int, ...]]:
    (result,) = graph.outputs
    names = [op.output for op in graph.ops if op.output != result] if keep else []
    return {name: graph.tensors[name].shape for name in (*names, result)}


def _has_maxima(code: Microcode) -> bool:
    return any(step.run == "maxima" for step in code.steps)


# Memories


def _memories(code: Microcode, lanes: int) -> list[LaneMemory]:
    filters = [each for step in code.steps for each in step.filters]
    bits = value_bits(filters)
    memories = [LaneMemory(code.gap_bits, bits) for _ in range(lanes)]
    for slots in code.slots:
        for slot in slots:
            for memory, each in zip(memories, slot.filters, strict=True):
                memory.add(each, slot.interval)
    return memories


def _hex(words: Sequence[int], bits: int) -> str:
    digits = -(-bits // 4)
    return "".join(f"{word:0{digits}x}\n" for word in words or [0])


# The module


def _widths(code: Microcode, memories: Sequence[LaneMemory], words: int) -> dict[str, int]:
    entries = max(1, *(len(memory.entries) for memory in memories))
    table = max(1, len(memories[0].table))
    return {
        "LANES": len(memories),
        "ADDRESS": code.address_bits,
        "RAM_DEPTH": code.ram_bytes,
        "GAP": code.gap_bits,
        "WEIGHT": memories[0].value_bits,
        "WEIGHT_ADDRESS": _bits(entries),
        "WEIGHT_DEPTH": entries,
        "TABLE_ADDRESS": _bits(table),
        "TABLE_DEPTH": table,
        "PROGRAM_ADDRESS": _bits(words),
        "PROGRAM_DEPTH": words,
    }


def _bits(depth: int) -> int:
    """Return the bits of an address that can count up to and beyond the last word."""
    return max(1, depth.bit_length())


def _model(graph: ir.Graph, widths: Mapping[str, int], maxima: bool) -> str:
    (x,), (y,) = ([graph.tensors[n] for n in names] for names in (graph.inputs, graph.outputs))
    settings = {**widths, "MAXIMUM": int(maxima)}
    parameters = ",\n".join(f"        .{name}({value})" for name, value in settings.items())
    return f"""\
// An int8 model, real = scale * (integer - zero point).
//   in: {_port(x)}
//   out: {_port(y)}
// Both are streams of signed bytes: one moves in each cycle in which valid and ready are high.
// `out_last` marks an example's last byte. The next example's first is taken when it has left.
`default_nettype none

module model (
    input wire clock,
    input wire reset,
    input wire [7:0] in_data,
    input wire in_valid,
    output wire in_ready,
    output wire [7:0] out_data,
    output wire out_valid,
    input wire out_ready,
    output wire out_last
);
    engine #(
{parameters}
    ) core (
        .clock(clock), .reset(reset),
        .in_data(in_data), .in_valid(in_valid), .in_ready(in_ready),
        .out_data(out_data), .out_valid(out_valid), .out_ready(out_ready), .out_last(out_last)
    );
endmodule

`default_nettype wire
"""


def _port(tensor: ir.Tensor) -> str:
    return f"{layout_of(tensor)}, scale {tensor.scale!r}, zero point {tensor.zero_point}"


def _testbench(inputs: NDArray[np.int8], outputs: NDArray[np.int8]) -> str:
    numbers = {
        "EXAMPLES": len(inputs),
        "IN": math.prod(inputs.shape[1:]),
        "OUT": math.prod(outputs.shape[1:]),
    }
    text = (_HDL / "testbench.v").read_text()
    for name, value in numbers.items():
        text = text.replace(f"parameter {name} = 1", f"parameter {name} = {value}")
    return text


_MAKEFILE = f"""\
# Simulates the model on its examples: iverilog, or `make test-verilator`, which is faster.
SOURCES = model.v {" ".join(f"{name}.v" for name in _MODULES)}

test:
\tiverilog -g2005 -o testbench.vvp testbench.v $(SOURCES)
\tvvp -n testbench.vvp

test-verilator:
\tverilator --binary --timing -Wno-fatal -Wno-TIMESCALEMOD --top-module testbench \\
\ttestbench.v $(SOURCES)
\t./obj_dir/Vtestbench

lint:
\tverilator --lint-only -Wall --top-module model $(SOURCES)

clean:
\trm -rf testbench.vvp obj_dir

.PHONY: test test-verilator lint clean
"""
