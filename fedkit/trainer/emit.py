"""A plan under masks as a folder of C99 that trains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from math import prod

import numpy as np

from fedkit.core.errors import ExportError
from fedkit.engine.kernels import native
from fedkit.engine.kernels.network import Network
from fedkit.engine.plan.execution import Key, Narrow, Schedule, Widen
from fedkit.engine.plan.plan import plan_digest, verify
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse.program import SparseProgram
from fedkit.engine.sparse.stored import STORED_BITS
from fedkit.sparse.state import Masks, masks_digest
from fedkit.tasks.losses import PLAIN
from fedkit.trainer.recorded import RecordedProgram, check_ops
from fedkit.trainer.storage import placed
from fedkit.trainer.tables import Tables, wrapped

BATCHES = (1, 2, 4, 8)
"""Examples of a step that one tile may hold."""

KERNELS = (
    *("kernels.h", "simd.h", "tensor.h", "exponent.h", "elementwise.h", "conv.h", "norm.h"),
    *("layer.h", "stored.h", "random.h"),
)
"""Headers of the engine that every trainer has."""

SOURCES = ("trainer.h", "parts.h", "run.h", "link.h", "link.c", "host.c")

_STATE_BYTES = 24 + max(BATCHES) * 9


@dataclass(frozen=True)
class Trainer:
    """What was made.

    Attributes:
        files: Name -> content.
        arena_bytes: All memory that it needs beside the stack.
        values: Weights, of pruned layers only those kept.
        statistics: Names of the running statistics, in the order of `trainer_statistic`.
        statistics_count: How many numbers these are.
    """

    files: Mapping[str, bytes]
    arena_bytes: int
    values: int
    statistics: tuple[str, ...]
    statistics_count: int


def emit(
    plan: Plan, masks: Masks, batch: int = 1, stored_bits: int = 32, ram: int | None = None
) -> Trainer:
    """Write a trainer.

    Args:
        plan: The model.
        masks: Which weights are kept; a trainer knows no others.
        batch: Examples of a step, one of `BATCHES`.
        stored_bits: Of what the backward pass reads again, one of `STORED_BITS`.
        ram: Most bytes of the arena; None: whatever it needs.

    Raises:
        ExportError: The model has an op or a loss that the trainer lacks, a norm that sees one
            value per channel, or needs more memory; or there is no such batch.
        EngineError: The masks do not fit, or the kernels are missing.
    """
    _check(plan, batch, stored_bits)
    narrow = _narrow(plan, masks, batch, stored_bits)
    program = RecordedProgram(plan, masks, batch, narrow, stored_bits)
    lasting = {**program.lasting(), ("statistics", 0): 8 * (_statistics(program) + 1)}
    places, offsets, size = placed(
        plan, program.parts, program.sizes, _STATE_BYTES, [*lasting.values()]
    )
    _check_size(size, ram, stored_bits)
    places |= zip(lasting, offsets, strict=True)
    writer = _Writer(program, places, stored_bits)
    files = {
        "trainer.c": writer.source().encode(),
        "trainer_model.h": writer.header(size).encode(),
        **{name: _text("fedkit.trainer", f"c/{name}") for name in SOURCES},
        **{f"kernels/{name}": _text("fedkit.engine.kernels", name) for name in KERNELS},
    }
    norms = (norm.norm for norm in program.network.norms.values())
    names = tuple(name for norm in norms for name in norm.stats)
    return Trainer(files, size, len(program.gradient), names, _statistics(program))


def _check(plan: Plan, batch: int, stored_bits: int) -> None:
    verify(plan)
    check_ops(plan)
    if batch not in BATCHES:
        raise ExportError(f"batch is {batch}; a trainer in C takes {_one_of(BATCHES)} (--batch)")
    if stored_bits not in STORED_BITS:
        raise ExportError(
            f"stored_bits is {stored_bits}; values are stored in {_one_of(STORED_BITS)}"
        )
    if plan.loss != PLAIN or plan.output_dims != 1:
        raise ExportError(
            f"the loss is {plan.loss}, of outputs {plan.output_shape}; the trainer in C has plain "
            "cross-entropy of one class per example: train others by fedkit's device on a board "
            "with Linux"
        )
    for tensor in plan.tensors:
        if tensor.norm is not None and batch * prod(tensor.shape[1:]) == 1:
            raise ExportError(
                f"norm {tensor.norm.name!r} sees one value per channel in a step of one example, "
                "which has no variance; take several examples (--batch 2), larger inputs or group "
                "norms"
            )


def _check_size(size: int, ram: int | None, stored_bits: int) -> None:
    if ram is not None and size > ram:
        fewer = [bits for bits in STORED_BITS if bits < stored_bits]
        hint = f"store fewer bits (--stored-bits {fewer[0]}), " if fewer else ""
        raise ExportError(
            f"training needs {size:,} bytes of memory, and --ram allows {ram:,}; {hint}take a "
            "smaller batch, a lower density or a smaller model"
        )


def _one_of(values: Sequence[int]) -> str:
    return f"{', '.join(map(str, values[:-1]))} or {values[-1]}"


def _narrow(plan: Plan, masks: Masks, batch: int, bits: int) -> frozenset[int]:
    """Return what the engine stores in few bits."""
    if bits == 32:
        return frozenset()
    network = Network(plan, masks, native.load_kernels("plain"))
    return SparseProgram(network, "train", batch, stored_bits=bits).schedule.narrow


def _statistics(program: RecordedProgram) -> int:
    return sum(2 * len(norm.center) for norm in program.network.norms.values())


def _text(package: str, name: str) -> bytes:
    return resources.files(package).joinpath(name).read_bytes()


class _Writer:
    """Writes the source of one trainer."""

    def __init__(self, program: RecordedProgram, places: Mapping[Key, int], bits: int) -> None:
        self._program, self._places, self._bits = program, places, bits
        self._tables = Tables(program.constants(), program.structs(), self._memory)

    @property
    def _schedule(self) -> Schedule:
        return self._program.parts

    def _memory(self, address: int) -> str | None:
        place = self._program.place_of(address)
        if place is None:
            return None
        begin = self._places.get(place.of)  # None of what no kernel of these passes reads
        return "NULL" if begin is None else f"AT({begin + place.at})"

    def header(self, size: int) -> str:
        """Return what of trainer.h is this model's own."""
        program = self._program
        defined = {
            "BATCH": program.batch,
            "INPUTS": prod(program.plan.tensors[0].shape),
            "CLASSES": program.plan.output_shape[0],
            "VALUES": len(program.gradient),
            "STATISTICS": _statistics(program),
            "STORED_BITS": self._bits,
            "ARENA_BYTES": size,
            "PLAN": f'"{plan_digest(program.plan)}"',
            "MASKS": f'"{masks_digest(program.network.masks)}"',
        }
        lines = (f"#define TRAINER_{name} {value}" for name, value in defined.items())
        return "\n".join(
            [
                "/* Of one model. ARENA_BYTES are all that it needs of RAM, beside the stack. */",
                *("#ifndef TRAINER_MODEL_H", "#define TRAINER_MODEL_H", "", *lines, "", "#endif"),
                "",
            ]
        )

    def source(self) -> str:
        """Return trainer.c."""
        forward, backward = self._passes()
        last = self._program
        output = self._tables.struct(last.tensors[last.plan.output])
        norms = [f"&{self._tables.struct(norm)}" for norm in last._norms.values()]
        pruned = [*self._pruned()]
        return "\n".join(
            [
                *_INCLUDES,
                *(("#define FEDKIT_SHORT_TABLES",) if self._tables.is_short else ()),
                *_PROLOGUE,
                *self._tables.lines,
                "",
                f"#define OUTPUT (&{output})",
                f"#define NORMS {len(norms)}",
                f"static const struct norm *const norms[] = {{{', '.join(norms) or 'NULL'}}};",
                f"#define PRUNED {len(pruned)}",
                f"static const int32_t pruned[] = {{\n{wrapped(pruned or ['0'])}}};",
                *self._names(),
                "",
                "static void forward_pass(void) {",
                *forward,
                "}",
                "",
                "static void backward_pass(void) {",
                *backward,
                "}",
                "",
                '#include "run.h"',
                "",
            ]
        )

    def _names(self) -> Iterator[str]:
        of = {"VALUES": "values", "VELOCITY": "velocity", "GRADIENT": "gradient"}
        for name, place in of.items():
            yield f"#define {name} ((float *)AT({self._places[place, 0]}))"
        yield f"#define STATISTICS ((double *)AT({self._places['statistics', 0]}))"
        yield f"#define INPUT ((float *)AT({self._places['x', 0]}))"

    def _pruned(self) -> Iterator[str]:
        parameters = self._program.network.parameters
        every = np.arange(len(self._program.gradient))
        for name, flags in parameters.pruned.items():
            yield from map(str, parameters.part(name, every)[flags].tolist())

    def _passes(self) -> tuple[list[str], list[str]]:
        """Return the statements of both passes."""
        passes: tuple[list[str], list[str]] = ([], [])
        moved = {"Forward", "Narrow"}
        if self._schedule.narrow:
            passes[0].append(
                "    const uint64_t key = with_word(with_word(0, STATE->seed), STATE->step);"
            )
        for step in self._schedule.steps:
            to = passes[0] if type(step).__name__ in moved else passes[1]
            calls = [*self._program.calls_of(step)]
            if isinstance(step, Narrow | Widen):
                to.append(f"    {self._converted(step)}")
            for name, arguments in calls:
                kernel = name if name in _OWN else f"{name}_plain"
                to.append(f"    {kernel}({', '.join(map(self._tables.argument, arguments))});")
        return passes

    def _converted(self, step: Narrow | Widen) -> str:
        tensor = self._tables.struct(self._program.tensors[step.tensor])
        codes = f"AT({self._places['code', step.tensor]})"
        if isinstance(step, Narrow):
            return f"tensor_narrow(&{tensor}, key, {step.tensor}, {codes});"
        return f"tensor_widen(&{tensor}, {codes});"


_OWN = ("conv_take", "conv_add", "conv_give", "conv_return")

_INCLUDES = (
    "/* Generated by fedkit: tables, memory and passes of one model. */",
    '#include "trainer.h"',
    "",
    "#include <string.h>",
    "",
    "#define ISA_PLAIN",
    "#define FEDKIT_LANES TRAINER_BATCH",
)
_PROLOGUE = (
    '#include "kernels/conv.h"',
    '#include "kernels/elementwise.h"',
    '#include "kernels/norm.h"',
    '#include "kernels/layer.h"',
    '#include "kernels/stored.h"',
    '#include "parts.h"',
    "",
    "/* All memory. What lies in it at one time does not overlap. */",
    "static union {",
    "    double aligned;",
    "    uint8_t bytes[TRAINER_ARENA_BYTES];",
    "} arena;",
    "#define AT(offset) ((void *)(arena.bytes + (offset)))",
    "",
    "struct state {",
    "    uint64_t seed, step;",
    "    int64_t batches, labels[TRAINER_BATCH];",
    "    uint8_t put[TRAINER_BATCH];",
    "};",
    "#define STATE ((struct state *)AT(0))",
    f"typedef char state_fits[sizeof(struct state) <= {_STATE_BYTES} ? 1 : -1];",
    "#define HALF_PI 1.5707963267948966",
    "",
)
