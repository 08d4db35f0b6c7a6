"""The structs that Python fills are those of the C headers, field by field.

The headers are read here, not compiled: every declaration must be understood, and a struct that is
in a header and not in Python, or the other way round, fails.
"""

from __future__ import annotations

import ctypes
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkit.engine import ops
from fedkit.engine.kernels import int_native as integer_native
from fedkit.engine.kernels import native
from fedkit.engine.plan.geometry import TAP
from tests.engine.kernels.kernel_sets import KERNELS

NUMBERS: dict[str, Any] = {
    "int32_t": ctypes.c_int32,
    "place_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "double": ctypes.c_double,
    "float": ctypes.c_float,
}


def classes() -> dict[str, type[ctypes.Structure]]:
    """Find the Python side of every struct: those of all, and those of each family of ops."""
    families = (info.name for info in pkgutil.iter_modules(ops.__path__, f"{ops.__name__}."))
    found = {}
    for module in (native, integer_native, *map(importlib.import_module, families)):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, ctypes.Structure):
                about = re.match(r"`struct (\w+)`", value.__doc__ or "")
                if about:
                    found[about[1]] = value
    return found


CLASSES = classes()

# Filled through numpy, so a pointer to it is an address like that of any array.
ARRAYS = {"tap": TAP}

OPAQUE = ("crew",)
"""What the kernels alone look into."""


def declared(header: str, names: set[str] | None = None) -> dict[str, list[tuple[str, object]]]:
    """Read structs of a header, all or those of some names: name -> (field, its type) in order."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    return {
        name: [field for line in body.split(";") if line.strip() for field in fields(line)]
        for name, body in re.findall(r"struct (\w+) \{(.*?)\n\};", text, re.DOTALL)
        if names is None or name in names
    }


def fields(declaration: str) -> list[tuple[str, object]]:
    """Read one declaration, such as `const float *weight, *bias`."""
    found = re.fullmatch(r"\s*(?:const\s+)?((?:struct\s+)?\w+)\s+(.+)", declaration, re.DOTALL)
    assert found, declaration
    kind, names = found.groups()
    return [field(kind.split(), name.strip()) for name in names.split(",")]


def field(kind: list[str], name: str) -> tuple[str, object]:
    pointer, name = name.startswith("*"), name.lstrip("*")
    if found := re.fullmatch(r"(\w+)\[(\d+)\]", name):
        return found[1], (ctypes.c_void_p if pointer else NUMBERS[kind[0]]) * int(found[2])
    assert name.isidentifier(), name
    name = f"{name}_" if name in ("in", "from") else name  # keywords of Python
    if kind[0] == "struct" and kind[1] not in (*ARRAYS, *OPAQUE):
        struct = CLASSES[kind[1]]
        return name, ctypes.POINTER(struct) if pointer else struct
    return name, ctypes.c_void_p if pointer else NUMBERS[kind[0]]


CALLED = ("kernels.h", "int_kernels.h")
"""The headers whose structs are all filled by Python; of others, those that a class names."""


def structs() -> dict[str, list[tuple[str, object]]]:
    found = {}
    for header in sorted(Path(KERNELS).glob("*.h")):
        names = None if header.name in CALLED else set(CLASSES)
        found.update(declared(header.read_text(encoding="utf-8"), names))
    return found


def test_every_struct_of_the_headers_is_known() -> None:
    assert set(structs()) == {*CLASSES, *ARRAYS}


@pytest.mark.parametrize("name", CLASSES)
def test_a_struct_has_the_fields_of_its_header(name: str) -> None:
    assert [tuple(each) for each in CLASSES[name]._fields_] == structs()[name]


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_of_structs_has_the_fields_of_its_header(name: str) -> None:
    numbers = {"i4": ctypes.c_int32}
    dtype = ARRAYS[name]
    assert dtype.names is not None and dtype.fields is not None
    kinds = [numbers[np.dtype(dtype.fields[each][0]).str[1:]] for each in dtype.names]
    assert list(zip(dtype.names, kinds, strict=True)) == structs()[name]
    assert dtype.itemsize == sum(map(ctypes.sizeof, kinds))


def test_a_changed_header_is_seen() -> None:
    header = "struct int_mix {\n    const int32_t *a, *b;\n    double shift;\n};\n"
    assert declared(header)["int_mix"] != list(integer_native.IntMix._fields_)
    with pytest.raises(AssertionError):
        declared("struct odd {\n    int32_t list[FOUR];\n};\n")


def test_the_kinds_of_steps_are_those_of_the_header() -> None:
    text = Path(KERNELS, "int_steps.h").read_text(encoding="utf-8")
    (listed,) = re.findall(r"enum \{([A-Z_,\s]*REQUANTISE[A-Z_,\s]*)\}", text)
    assert [kind.name for kind in integer_native.StepKind] == re.findall(r"\w+", listed)
    assert [kind.value for kind in integer_native.StepKind] == list(
        range(len(integer_native.StepKind))
    )
