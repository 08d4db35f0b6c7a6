"""Structs and arrays of the engine as constants of C."""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_NULL = "NULL"
_TABLE = "place_t"  # of kernels.h
_SHORT = 1 << 15
_LINE = 96


class Tables:
    """Definitions in C, each once, in an order in which none names a later one.

    Args:
        constants: Arrays that structs may point into.
        structs: Arrays of structs that they may point to.
        memory: Address -> expression in C, or None: it is no memory that changes.

    Attributes:
        lines: What was defined.
        is_short: Whether all numbers of arrays fit 16 bits.
    """

    def __init__(
        self,
        constants: Iterable[Array],
        structs: Iterable[ctypes.Array[Any]],
        memory: Callable[[int], str | None],
    ) -> None:
        self.lines: list[str] = []
        self.is_short = True
        self._names: dict[str, str] = {}
        self._memory = memory
        found = {array.ctypes.data: array for array in constants}
        self._starts = sorted(found)
        self._arrays = [found[start] for start in self._starts]
        self._structs = {ctypes.addressof(array): array for array in structs}

    def argument(self, value: Any) -> str:
        """Return the expression of one argument of a kernel."""
        if hasattr(value, "_obj"):
            return f"&{self.struct(value._obj)}"
        if isinstance(value, ctypes.c_void_p):
            return self.pointer(value.value)
        return str(getattr(value, "value", value))

    def struct(self, struct: ctypes.Structure) -> str:
        """Define a struct; return its name."""
        kind = _kind(type(struct))
        return self._define(f"struct {kind}", kind, "", self._fields(struct))

    def pointer(self, address: int | None) -> str:
        """Return the expression of an address of memory or of a constant."""
        if not address:
            return _NULL
        if (place := self._memory(address)) is not None:
            return place
        index = bisect_right(self._starts, address) - 1
        array = self._arrays[index] if index >= 0 else None
        if array is None or address >= array.ctypes.data + array.nbytes:
            raise LookupError(f"nothing known lies at {address:#x}")
        element = (address - array.ctypes.data) // array.itemsize
        return f"{self._array(array)}{f' + {element}' if element else ''}"

    def _fields(self, struct: ctypes.Structure) -> str:
        fields: Any = struct._fields_
        return f"{{{', '.join(self._field(getattr(struct, name), kind) for name, kind in fields)}}}"

    def _field(self, value: Any, kind: type[Any]) -> str:
        if isinstance(value, ctypes.Structure):
            return self._fields(value)
        if isinstance(value, ctypes._Pointer):
            return self._pointed(value)
        if isinstance(value, float):
            return value.hex()
        return self.pointer(value) if kind is ctypes.c_void_p else str(value)

    def _pointed(self, pointer: Any) -> str:
        if not pointer:
            return _NULL
        several = self._structs.get(ctypes.addressof(pointer.contents))
        if several is None:
            return f"&{self.struct(pointer.contents)}"
        kind = _kind(several._type_)
        content = ", ".join(self._fields(each) for each in several)
        return self._define(f"struct {kind}", f"{kind}s", f"[{len(several)}]", f"{{{content}}}")

    def _array(self, array: Array) -> str:
        flat = np.ascontiguousarray(array).reshape(-1)
        self.is_short &= int(flat.view(np.int32).max() if flat.dtype.names else flat.max()) < _SHORT
        if flat.dtype.names:
            kind, name = "struct tap", "taps"
            numbers = [f"{{{', '.join(map(str, each))}}}" for each in flat.tolist()]
        else:
            kind = _TABLE if flat.dtype == np.int32 else f"{flat.dtype}_t"
            name, numbers = flat.dtype.name, [str(each) for each in flat.tolist()]
        return self._define(kind, name, f"[{len(flat)}]", f"{{\n{wrapped(numbers)}}}")

    def _define(self, kind: str, name: str, size: str, content: str) -> str:
        """Define a constant, unless there is an equal one."""
        key = f"{kind}{size}{content}"
        if key not in self._names:
            self._names[key] = f"{name}_{len(self._names)}"
            self.lines.append(f"static const {kind} {self._names[key]}{size} = {content};")
        return self._names[key]


def wrapped(words: Iterable[str]) -> str:
    """Return words between commas, in lines that are not too long."""
    lines, line = list[str](), ""
    for word in words:
        if len(line) + len(word) > _LINE:
            lines.append(line)
            line = ""
        line += f"{word}, "
    return "\n".join([*lines, line.rstrip().rstrip(",")])


def _kind(struct: type[Any]) -> str:
    """Return what C calls a struct that Python calls `CConv`, or `Windows`."""
    name = struct.__name__
    is_marked = name[0] == "C" and name[1:2].isupper()
    return (name[1:] if is_marked else name).lower()
