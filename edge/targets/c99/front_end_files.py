"""What the C of all raw inputs is made of: a front end, names of classes, a program for files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge.artifact import Port
from edge.targets.c99.literals import literal, wrapped
from edge.targets.c_names import prefixed
from fedkit.preprocess.raw_input import RawInput

_FOLDER = Path(__file__).with_name("front_end")
_CLASSES, _PROGRAM = ("model_classes.c", "model_classes.h"), "program.h"


@dataclass(frozen=True)
class FrontEnd:
    """The C of one kind of raw input.

    Attributes:
        own_sources: Files of the folder `front_end`, or made by `files`, that a library has.
        own_headers: Likewise.
        program: What takes files.
        files: (raw input, the model's input) -> name -> text of what is made for a model.
    """

    own_sources: tuple[str, ...]
    own_headers: tuple[str, ...]
    program: str
    files: Callable[[Any, Port], Mapping[str, str]]

    @property
    def sources(self) -> tuple[str, ...]:
        """All that a library has."""
        return (*self.own_sources, _CLASSES[0])

    @property
    def headers(self) -> tuple[str, ...]:
        """All that these and the program include."""
        return (*self.own_headers, _CLASSES[1])

    def texts(self, raw: RawInput, port: Port, outputs: int, name: str) -> dict[str, str]:
        """Return name -> text of the sources that a model has besides its own.

        Args:
            raw: What the model takes.
            port: Its input.
            outputs: How many values it gives.
            name: What identifiers begin with.
        """
        wanted = (*self.own_sources, *self.own_headers, self.program, _PROGRAM)
        texts = {each: (_FOLDER / each) for each in wanted if (_FOLDER / each).exists()}
        found = {each: path.read_text(encoding="utf-8") for each, path in texts.items()}
        found |= self.files(raw, port)
        found |= zip(_CLASSES, _classes(raw, outputs), strict=True)
        kernels = [each for each in found if each.startswith("ek_") and each.endswith(".h")]
        found |= {each: prefixed(found[each], name) for each in kernels}
        return {file: _renamed(text, name) for file, text in found.items()}


def _renamed(text: str, name: str) -> str:
    text = re.sub(r"\bMODEL_", f"{name.upper()}_", text)
    return re.sub(r"\bmodel_(?!\w+\.h\b)", f"{name}_", text)


def _classes(raw: RawInput, outputs: int) -> tuple[str, str]:
    """Return source and header of the names of classes."""
    names = ",\n".join(f"    {literal(raw.name(number))}" for number in range(outputs))
    source = f"""\
#include "model_classes.h"

const char *const model_class_names[MODEL_CLASSES] = {{
{names},
}};

int32_t model_class(const int8_t *out) {{
    int32_t best = 0;
    for (int32_t i = 1; i < MODEL_CLASSES; i++) best = out[i] > out[best] ? i : best;
    return best;
}}
"""
    header = f"""\
/* From the model's outputs to the name of a class. */
#ifndef MODEL_CLASSES_H
#define MODEL_CLASSES_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define MODEL_CLASSES {outputs}

extern const char *const model_class_names[MODEL_CLASSES];

/* The first of the largest outputs. */
int32_t model_class(const int8_t *out);

#ifdef __cplusplus
}}
#endif
#endif
"""
    return source, header


# What front ends make of their own


def sizes_header(kind: str, sizes: Mapping[str, int]) -> str:
    """Return a header of numbers: MODEL_KIND_NAME of each."""
    guard = f"MODEL_{kind.upper()}_SIZES_H"
    lines = "\n".join(f"#define MODEL_{key} {value}" for key, value in sizes.items())
    return f"#ifndef {guard}\n#define {guard}\n\n{lines}\n\n#endif\n"


def array(kind: str, name: str, values: NDArray[Any]) -> str:
    """Return a constant of whole numbers, of a type of C."""
    return initialised(kind, f"{name}[{len(values)}]", map(str, values.tolist()))


def initialised(kind: str, name: str, items: Iterable[str]) -> str:
    """Return a constant, given its elements as C has them."""
    lines = "\n".join(wrapped(items))
    return f"static const {kind} {name} = {{\n{lines}\n}};\n"
