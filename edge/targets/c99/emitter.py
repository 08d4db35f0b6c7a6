"""Write a graph as C99 sources that compile anywhere, with the kernels that they call.

The model is `NAME_invoke` in model.c: no allocation, nothing of libc but memcpy and memset, all of
its memory in an arena that the caller gives. Constants are plain initialisers of the structs in
ek.h, so that a compiler places them in read-only memory.

Whatever a linker or a preprocessor sees begins with the model's name, the kernels too: models of
several names, and of several versions of the kernels, are one program.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import arena
from edge.targets.c99 import pack
from edge.targets.c99.calls import (
    Argument,
    BufferOffset,
    CallList,
    ConstantAddress,
    Goal,
    Struct,
    compile_graph,
)
from edge.targets.c99.front_end_files import FrontEnd
from edge.targets.c99.front_ends import FRONT_ENDS
from edge.targets.c99.literals import wrapped
from edge.targets.c99.loops import ARENA, CallText, body_of
from edge.targets.c99.pack import Planes
from edge.targets.c_names import (
    NAME,
    check_name,
    output_names,
    output_parameters,
    prefixed,
    renamed,
)
from edge.targets.common import layout_of
from edge.targets.export_target import ports
from fedkit.core.text import source_text
from fedkit.graph import ir
from fedkit.graph.layouts import order_is_free
from fedkit.graph.ops.registry import tokens_of
from fedkit.preprocess.raw_input import RawInput

_KERNELS = Path(pack.__file__).with_name("kernels")
_SIGNED = {"i1": "int8_t", "i2": "int16_t", "i4": "int32_t"}
_TYPES = {**_SIGNED, "i8": "int64_t", "u1": "uint8_t", "u2": "uint16_t", "u4": "uint32_t"}
_RECORDS = {pack.QUAD: "ek_quad", pack.PAIR: "ek_pair", pack.FILTER: "ek_filter"}
_ALIGNMENTS: Mapping[Goal, int] = {"speed": 64, "size": 4}  # of a cache line; of an int32_t
_INCLUDE = re.compile(r'^#include "(ek\w*\.h)"', re.MULTILINE)
_FLAGS: Mapping[Goal, str] = {"speed": "-O3 -march=native", "size": "-Os"}


@dataclass(frozen=True)
class Sources:
    """A model in C.

    Attributes:
        files: Name -> content.
        arena_bytes: Memory that the caller must give.
        calls: Kernel and torch module of each call of `model_invoke`, in order.
        kept: Activation -> where its first pixel lies in the arena, and how it lies there; empty
            unless all were kept.
    """

    files: Mapping[str, bytes]
    arena_bytes: int
    calls: tuple[tuple[str, str], ...]
    kept: Mapping[str, tuple[int, Planes]]


def emit(
    graph: ir.Graph,
    inputs: ir.Codes,
    outputs: Sequence[NDArray[np.int8]],
    goal: Goal = "speed",
    keep: bool = False,
    name: str = NAME,
    raw_input: RawInput | None = None,
) -> Sources:
    """Write a graph as C.

    Args:
        graph: Int8, optimised.
        inputs: int8 [n, ...] in the graph's layout, or int32 of tokens; examples for the test that
            is written too.
        outputs: int8 [n, ...] of each output, what the graph gives for them.
        goal: "speed", or "size" for microcontrollers.
        keep: Write no activation over another, so that all can be looked at after a call.
        name: What identifiers begin with; see `check_name`.
        raw_input: What its inputs are made of, if the sources are to make them.

    Returns:
        The sources; the same arguments always give the same.

    Raises:
        ExportError: Something in the graph has no kernel; names all of it. Or the name cannot be.
    """
    check_name(name)
    program = compile_graph(graph, goal, keep)
    offsets, size = arena.plan(program.buffers, _ALIGNMENTS[goal])
    kernels = _kernels(program)
    headers = _headers(kernels)
    front_end = None if raw_input is None else FRONT_ENDS.get(type(raw_input))
    texts = {
        "model.h": _header(graph, size + pack.SLACK, _ALIGNMENTS[goal], name),
        "model.c": _model(program, offsets, graph, name, _own_headers(headers)),
        "test_vector.h": _vectors(inputs, outputs),
        "main.c": renamed(_main(graph), name),
        "Makefile": _makefile(kernels, headers, goal, front_end),
        "CMakeLists.txt": _cmake(kernels, name, front_end),
    }
    if raw_input is not None and front_end is not None:
        classes = math.prod(graph.tensors[graph.outputs[0]].shape)
        texts |= front_end.texts(raw_input, ports(graph)[0][0], classes, name)
    files = {file: text.encode() for file, text in texts.items()}
    files |= {file: (_KERNELS / file).read_bytes() for file in (*headers, *kernels)}
    for header in ("ek.h", *_own_headers(headers)):
        files[header] = prefixed(files[header].decode(), name).encode()
    kept = {
        activation: (offsets[place.buffer] + place.lead, planes)
        for activation, (place, planes) in program.homes.items()
    }
    calls = tuple((call.function, call.source) for call in program.calls)
    return Sources(files, size + pack.SLACK, calls, kept if keep else {})


def _kernels(program: CallList) -> list[str]:
    """Return the sources that define what the program calls."""
    called = {call.function for call in program.calls}
    return sorted(
        path.name
        for path in _KERNELS.glob("*.c")
        if any(f"\nvoid {function}(" in path.read_text() for function in called)
    )


def _headers(kernels: list[str]) -> list[str]:
    """Return the headers that all kernels share, and those of these kernels alone."""
    every = sorted(path.name for path in _KERNELS.glob("*.h"))
    shared = {name for name in every if not any(_has_source(each) for each in _included([name]))}
    own = _included(kernels)
    return [name for name in every if name in shared | own]


def _included(files: Sequence[str]) -> set[str]:
    """Return the headers among some files, and those that they include, and so on."""
    found = {name for name in files if name.endswith(".h")}
    texts = ((_KERNELS / name).read_text(encoding="utf-8") for name in files)
    more = {name for text in texts for name in _INCLUDE.findall(text)} - found
    return found | more if not more else found | _included(sorted(more | found))


def _has_source(header: str) -> bool:
    return _KERNELS.joinpath(header).with_suffix(".c").exists()


def _own_headers(headers: list[str]) -> list[str]:
    """Return those that declare one kernel: `NAME.h` beside `NAME.c`."""
    return [name for name in headers if _has_source(name)]


# The header


def _header(graph: ir.Graph, arena: int, alignment: int, name: str) -> str:
    x, *outputs = (graph.tensors[name] for name in (*graph.inputs, *graph.outputs))
    y_lines = "\n".join(map(_port, outputs, output_names(len(outputs))))
    parameters = output_parameters(len(outputs))
    given = ", ".join(
        f"`{each}` {layout_of(y)}" for each, y in zip(parameters, outputs, strict=True)
    )
    text = f"""\
/* An int8 model, real = SCALE * (integer - ZERO_POINT). */
#ifndef MODEL_H
#define MODEL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

{_input_port(graph, x)}
{y_lines}
#define MODEL_ARENA_BYTES {arena}
#define MODEL_ARENA_ALIGNMENT {alignment}

/* Runs one example. `in` is {layout_of(x)}, {given}.
 * `arena` holds MODEL_ARENA_BYTES on MODEL_ARENA_ALIGNMENT; nothing in it is kept from call to
 * call. Returns 0, or 1 if the arena is not aligned{_OF_TOKENS if tokens_of(graph) else ""}. */
int model_invoke({_parameters(graph)});

#ifdef __cplusplus
}}
#endif
#endif
"""
    return renamed(text, name)


_OF_TOKENS = """, or 2, with nothing
 * written, if a token is not 0 to MODEL_TOKENS - 1"""


def _parameters(graph: ir.Graph) -> str:
    """Return the parameters of a model."""
    kind = graph.tensors[graph.inputs[0]].dtype
    outputs = (f"int8_t *{name}" for name in output_parameters(len(graph.outputs)))
    return ", ".join([f"const {kind}_t *in", *outputs, "uint8_t *arena"])


def _input_port(graph: ir.Graph, x: ir.Tensor) -> str:
    """Return what there is to say of the input: of tokens, how many and of how many."""
    if not (tokens := tokens_of(graph)):
        return _port(x, "INPUT")
    count = math.prod(x.shape)
    return f"""\
#define MODEL_INPUT_BYTES {count * np.dtype(x.dtype).itemsize}
#define MODEL_INPUT_TOKENS {count}
#define MODEL_TOKENS {tokens}"""


def _port(tensor: ir.Tensor, name: str) -> str:
    return f"""\
#define MODEL_{name}_BYTES {math.prod(tensor.shape)}
#define MODEL_{name}_SCALE {tensor.scale!r}f
#define MODEL_{name}_ZERO_POINT ({tensor.zero_point})"""


# The model


def _model(
    program: CallList,
    offsets: Mapping[str, int],
    graph: ir.Graph,
    name: str,
    own_headers: list[str],
) -> str:
    constants = _Constants()
    lines = []
    for number, call in enumerate(program.calls):
        arguments = (
            constants.argument(argument, f"m{number}_{position}", offsets)
            for position, argument in enumerate(call.arguments)
        )
        kinds, comment = tuple(map(_kind, call.arguments)), source_text(call.source)
        lines.append(CallText(call.function, tuple(arguments), kinds, comment))
    body = body_of(lines)
    statements = "\n".join(body.statements)
    includes = "\n".join(f'#include "{header}"' for header in ("ek.h", *own_headers))
    return f"""\
#include "model.h"

{includes}

{"".join((*constants.lines, *body.tables))}
int {name}_invoke({_parameters(graph)}) {{
    if ((uintptr_t)arena % {name.upper()}_ARENA_ALIGNMENT != 0) return 1;
{renamed(_CHECKS_TOKENS, name) if tokens_of(graph) else ""}{statements}
    return 0;
}}
"""


_CHECKS_TOKENS = """\
    for (int i = 0; i < MODEL_INPUT_TOKENS; i++)
        if (in[i] < 0 || in[i] >= MODEL_TOKENS) return 2;
"""


def _kind(argument: Argument) -> str:
    """Return what an argument is, see `edge.targets.c99.loops.CallText`."""
    if isinstance(argument, BufferOffset):
        return ARENA
    if isinstance(argument, ConstantAddress) and argument.to is not None:
        return argument.to.kind
    return ""


@dataclass
class _Constants:
    """Definitions of constants, each before what points to it; equal ones are one.

    Attributes:
        lines: The definitions.
        known: Type and content -> name.
    """

    lines: list[str] = field(default_factory=list)
    known: dict[tuple[str, str | bytes], str] = field(default_factory=dict)

    def argument(self, argument: Argument, name: str, offsets: Mapping[str, int]) -> str:
        if isinstance(argument, BufferOffset):
            return f"arena + {offsets[argument.buffer] + argument.lead}"
        return (
            self._pointer(argument, name)
            if isinstance(argument, ConstantAddress)
            else str(argument)
        )

    def _pointer(self, pointer: ConstantAddress, name: str) -> str:
        if pointer.to is None:
            return "0"
        kind, text = pointer.to.kind, self._struct(pointer.to, name)
        if (kind, text) not in self.known:
            self.known[kind, text] = name
            self.lines.append(f"static const {kind} {name} = {text};\n")
        return f"&{self.known[kind, text]}"

    def _struct(self, struct: Struct, name: str) -> str:
        texts = [self._field(value, f"{name}_{i}") for i, value in enumerate(struct.fields)]
        return f"{{{', '.join(texts)}}}"

    def _field(self, value: int | NDArray[Any] | Struct | ConstantAddress, name: str) -> str:
        if isinstance(value, np.ndarray):
            key = str(value.dtype), value.tobytes()
            if key not in self.known:
                self.known[key] = name
                self.lines.append(_array(value, name))
            return self.known[key]
        if isinstance(value, ConstantAddress):
            return self._pointer(value, name)
        return self._struct(value, name) if isinstance(value, Struct) else str(value)


def _array(values: NDArray[Any], name: str) -> str:
    if values.size == 0:  # which C does not have
        values = np.zeros(1, values.dtype)
    kind = _RECORDS.get(values.dtype) or _TYPES[values.dtype.str[1:]]
    lines = "\n".join(wrapped(_items(values)))
    return f"static const {kind} {name}[{values.size}] = {{\n{lines}\n}};\n"


def _items(values: NDArray[Any]) -> Iterator[str]:
    """Yield the initialiser of each element."""
    if values.dtype.names is None:
        yield from map(str, values.ravel().tolist())
        return
    columns = (values[name].tolist() for name in values.dtype.names)
    braces = str.maketrans("[]()", "{}{}", " ")
    yield from (str(record).translate(braces) for record in zip(*columns, strict=True))


# The test and how to build it


def _vectors(inputs: NDArray[Any], outputs: Sequence[NDArray[np.int8]]) -> str:
    names = (name.lower().replace("output", "test_outputs") for name in output_names(len(outputs)))
    arrays = "\n".join(map(_array, outputs, names))
    return f"""\
/* Examples, and what the model gives for them. */
#include <stdint.h>

#define TEST_VECTORS {len(inputs)}

{_array(inputs, "test_inputs")}
{arrays}"""


def _main(graph: ir.Graph) -> str:
    """Return the program of the test; a map may be larger than a stack, and lies elsewhere."""
    is_vector = all(order_is_free(graph.tensors[name].shape) for name in graph.outputs)
    names, parameters = (make(len(graph.outputs)) for make in (output_names, output_parameters))
    lines: dict[str, list[str]] = {"held": [], "expected": [], "compared": []}
    for name, out in zip(names, parameters, strict=True):
        size, expected = f"MODEL_{name}_BYTES", out.replace("out", "expected")
        vectors = out.replace("out", "test_outputs")
        lines["held"].append(f"    {'' if is_vector else 'static '}int8_t {out}[{size}];")
        lines["expected"].append(f"        const int8_t *{expected} = {vectors} + n * {size};")
        wrong = f"wrong += {out}[i] != {expected}[i];"
        lines["compared"].append(f"        for (int i = 0; i < {size}; i++) {wrong}")
    step = "TOKENS" if tokens_of(graph) else "BYTES"
    sizes = [f"MODEL_{name}_BYTES" for name in names]
    return _MAIN.format(
        **{name: "\n".join(each) for name, each in lines.items()},
        outputs=", ".join(parameters),
        step=f"MODEL_INPUT_{step}",
        size=sizes[0] if len(sizes) == 1 else f"({' + '.join(sizes)})",
    )


_MAIN = """\
/* Runs the model on its test vectors; fails unless every integer is as expected. */
#include <stdio.h>

#include "model.h"
#include "test_vector.h"

static uint8_t memory[MODEL_ARENA_BYTES + MODEL_ARENA_ALIGNMENT];

int main(void) {{
    uint8_t *arena = memory + (MODEL_ARENA_ALIGNMENT - (uintptr_t)memory % MODEL_ARENA_ALIGNMENT);
{held}
    int wrong = 0;
    for (int n = 0; n < TEST_VECTORS; n++) {{
{expected}
        if (model_invoke(test_inputs + n * {step}, {outputs}, arena)) return 2;
{compared}
    }}
    printf("%d of %d outputs differ\\n", wrong, TEST_VECTORS * {size});
    return wrong != 0;
}}
"""


def _makefile(
    kernels: list[str], headers: list[str], goal: Goal, front_end: FrontEnd | None
) -> str:
    sources, own_headers, program = _of(front_end)
    objects = " ".join(name.replace(".c", ".o") for name in ("model.c", *kernels, *sources))
    headers = [*headers, *own_headers]
    return f"""\
CFLAGS ?= {_FLAGS[goal]}
ALL_CFLAGS = -std=c99 -Wall -Wextra -Wconversion $(CFLAGS)
OBJECTS = {objects}

libmodel.a: $(OBJECTS)
\t$(AR) rcs $@ $(OBJECTS)

%.o: %.c model.h {" ".join(headers)}
\t$(CC) $(ALL_CFLAGS) -c $< -o $@

model_test: main.c test_vector.h libmodel.a
\t$(CC) $(ALL_CFLAGS) main.c libmodel.a -o $@

test: model_test
\t./model_test
{_MAKE_PROGRAM.format(program=program) if program else ""}
clean:
\trm -f $(OBJECTS) libmodel.a model_test{program and f" {program}"}

.PHONY: test clean
"""


def _of(front_end: FrontEnd | None) -> tuple[Sequence[str], Sequence[str], str]:
    """Return sources, headers and the program's name of a front end, where the model has one."""
    if front_end is None:
        return (), (), ""
    return front_end.sources, front_end.headers, front_end.program.removesuffix(".c")


_MAKE_PROGRAM = """
{program}: {program}.c program.h libmodel.a
\t$(CC) $(ALL_CFLAGS) {program}.c libmodel.a -o $@
"""


def _cmake(kernels: list[str], name: str, front_end: FrontEnd | None) -> str:
    sources, _, program = _of(front_end)
    return f"""\
cmake_minimum_required(VERSION 3.10)
project({name} C)
set(CMAKE_C_STANDARD 99)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

add_library({name} STATIC model.c {" ".join((*kernels, *sources))})
target_include_directories({name} PUBLIC ${{CMAKE_CURRENT_SOURCE_DIR}})

enable_testing()
add_executable({name}_test main.c)
target_link_libraries({name}_test {name})
add_test(NAME {name}_test COMMAND {name}_test)
{_CMAKE_PROGRAM.format(name=name, program=program) if program else ""}"""


_CMAKE_PROGRAM = """
add_executable({name}_{program} {program}.c)
target_link_libraries({name}_{program} {name})
"""
