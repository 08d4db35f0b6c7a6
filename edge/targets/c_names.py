"""What a C model is called, and the identifiers that follow from it."""

from __future__ import annotations

import re
from pathlib import Path

from fedkit.core.errors import ExportError

NAME = "model"
"""Of a model, if nothing else is asked for."""

PROGRAMS = frozenset({"main.c", "picture.c", "series.c", "wav.c"})
"""Sources of a folder that are programs of their own, not of the model."""

_LONGEST_NAME = 48
# Of C to C23 and C++; what CMake keeps for itself; the kernels' own.
_WORDS = """
alignas alignof and and_eq asm atomic_cancel atomic_commit atomic_noexcept auto bitand bitor
bool break case catch char char16_t char32_t char8_t class co_await co_return co_yield compl
concept const const_cast consteval constexpr constinit continue decltype default delete do
double dynamic_cast else enum explicit export extern false float for friend goto if inline int
long mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected
public reflexpr register reinterpret_cast requires restrict return short signed sizeof static
static_assert static_cast struct switch synchronized template this thread_local throw true try
typedef typeid typename typeof typeof_unqual union unsigned using virtual void volatile wchar_t
while xor xor_eq all clean depend edit_cache help install package package_source rebuild_cache
test ek
"""
_TAKEN = frozenset(_WORDS.split())
_ABOUT_PORTS = ("BYTES", "SCALE", "ZERO_POINT")


def check_name(name: str) -> None:
    """Check that a model's name can begin identifiers of C and C++.

    Raises:
        ExportError: It is not 1 to 48 letters, digits and `_`, a letter first; or
            it is a keyword, or has a `__`, which C++ keeps for itself.
    """
    if reason := _obstacle(name):
        raise ExportError(
            f"a C model cannot be called {name[:60]!r}: {reason}; give a name of letters, digits "
            "and `_` that begins with a letter, such as keyword_spotter"
        )


def check_new_name(name: str) -> None:
    """Check what a C model that is being made is to be called.

    Its macros are the name in capitals. Models whose names differ in capitals alone would share
    them, and a program that includes both would see the sizes of one of them.

    Raises:
        ExportError: See `check_name`; or the name has capitals.
    """
    check_name(name)
    if name != name.lower():
        raise ExportError(
            f"a C model cannot be called {name!r}: its macros are its name in capitals, and those "
            f"of a model {name.lower()!r} would be the same; call it {name.lower()}"
        )


def name_for(folder: Path) -> str:
    """Return the name of a model if none is given: its folder's as an identifier, or `NAME`.

    Capitals become small letters, see `check_new_name`.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "_", folder.resolve().name).strip("_").lower()
    return NAME if _obstacle(name) else name


def _obstacle(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        return "that is not an identifier"
    if len(name) > _LONGEST_NAME:
        return f"that has {len(name)} characters, and {_LONGEST_NAME} is the most"
    if name.lower() in _TAKEN or "__" in name:
        return "that means something else in C, C++ or CMake"
    return ""


def output_names(count: int) -> list[str]:
    """Return what names of the outputs' macros have in them: OUTPUT, or OUTPUT_0, OUTPUT_1, ..."""
    return ["OUTPUT"] if count == 1 else [f"OUTPUT_{number}" for number in range(count)]


def output_parameters(count: int) -> list[str]:
    """Return what the parameters for the outputs are called: out, or out_0, out_1, ..."""
    return ["out"] if count == 1 else [f"out_{number}" for number in range(count)]


def generic_names(name: str) -> list[str]:
    """Return a compiler's flags with which sources written for `NAME` use a model of any name."""
    if name == NAME:
        return []
    macros = [f"{port}_{what}" for port in ("INPUT", "OUTPUT") for what in _ABOUT_PORTS]
    macros += ["ARENA_BYTES", "ARENA_ALIGNMENT"]
    flags = [f"-D{NAME.upper()}_{macro}={name.upper()}_{macro}" for macro in macros]
    return [*flags, f"-D{name}_invoke={NAME}_invoke"]


def renamed(text: str, name: str) -> str:
    """Return our own C with another model's name in it."""
    text = re.sub(rf"\b{NAME.upper()}_", f"{name.upper()}_", text)
    return text.replace(f"{NAME}_invoke", f"{name}_invoke")


def prefixed(header: str, name: str) -> str:
    """Return a header of kernels with a name of its own for each."""
    kernels = re.findall(r"^void (ek_\w+)\(", header, re.MULTILINE)
    lines = "".join(f"#define {kernel} {name}_{kernel}\n" for kernel in kernels)
    place = "#define EK_SLACK" if "#define EK_SLACK" in header else "typedef struct"
    return header.replace(
        place, f"/* Each model brings its own kernels, under its own name. */\n{lines}\n{place}", 1
    )
