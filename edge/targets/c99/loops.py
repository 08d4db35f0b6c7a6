"""Calls that come again and again, with other places alone, as a loop over a table of places.

So are the calls of the steps of a recurrent layer: code for one step, and for each step where in
the arena it reads and writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edge.targets.c99.literals import wrapped

ARENA = "arena"
"""Kind of an argument that is a place in the arena."""

_VARY = (ARENA, "ek_places")
"""Kinds of arguments that may differ from round to round; the latter tell which step is taken."""

_MOST_CALLS = 64
"""Of a round."""

_LEAST = 32
"""Calls of all rounds: fewer are written out."""


@dataclass(frozen=True)
class CallText:
    """A call as C has it.

    Attributes:
        function: The kernel.
        arguments: As text.
        kinds: What each of them is: the name of a struct, `ARENA`, or "" where it is a number.
        comment: Where it comes from.
    """

    function: str
    arguments: tuple[str, ...]
    kinds: tuple[str, ...]
    comment: str

    @property
    def form(self) -> tuple[str, ...]:
        """What must be the same in each round."""
        pairs = zip(self.arguments, self.kinds, strict=True)
        return (self.function, *(kind if kind in _VARY else text for text, kind in pairs))

    def text(self, indent: str) -> str:
        """Return the call."""
        arguments = ", ".join(self.arguments)
        return f"{indent}{self.function}({arguments}); /* {self.comment} */"


@dataclass
class Body:
    """What a model does, in C.

    Attributes:
        tables: Definitions that it needs.
        statements: Its lines.
    """

    tables: list[str] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)


def body_of(lines: Sequence[CallText]) -> Body:
    """Return calls as C, with loops where they repeat."""
    known: dict[tuple[str, ...], int] = {}
    forms = [known.setdefault(line.form, len(known)) for line in lines]
    body, number = Body(), 0
    while number < len(lines):
        calls, rounds = _repeated(forms, number)
        end = number + calls * rounds
        if calls * rounds >= _LEAST and rounds > 1:
            _add_loop(body, lines[number:end], calls, f"loop{number}")
        else:
            end = number + 1
            body.statements.append(lines[number].text("    "))
        number = end
    return body


def _repeated(forms: Sequence[int], first: int) -> tuple[int, int]:
    """Return how many calls a round has and how many rounds there are, so that most are in one."""
    best = (1, 1)
    for calls in range(1, _MOST_CALLS + 1):
        one, rounds = forms[first : first + calls], 1
        while forms[first + rounds * calls : first + (rounds + 1) * calls] == one:
            rounds += 1
        if rounds > 1 and calls * rounds > best[0] * best[1]:
            best = (calls, rounds)
    return best


def _add_loop(body: Body, lines: Sequence[CallText], calls: int, name: str) -> None:
    rounds = [lines[first : first + calls] for first in range(0, len(lines), calls)]
    tables = _Tables(name)
    made = [tables.line([each[number] for each in rounds]) for number in range(calls)]
    body.tables += tables.definitions()
    body.statements.append(f"    for (int i = 0; i < {len(rounds)}; i++) {{")
    if tables.places:
        body.statements.append(f"        const int32_t *at = {name}_at[i];")
    body.statements += [line.text("        ") for line in made]
    body.statements.append("    }")


@dataclass
class _Tables:
    """What differs from round to round of one loop.

    Attributes:
        name: What the names of its tables begin with.
        places: Offsets into the arena of each round -> their number.
        structs: Addresses of constants of each round, and their kind -> their number.
    """

    name: str
    places: dict[tuple[str, ...], int] = field(default_factory=dict)
    structs: dict[tuple[tuple[str, ...], str], int] = field(default_factory=dict)

    def line(self, rounds: Sequence[CallText]) -> CallText:
        """Return the call of all rounds."""
        first = rounds[0]
        columns = zip(*(each.arguments for each in rounds), strict=True)
        arguments = (
            self._one(texts, kind) for texts, kind in zip(columns, first.kinds, strict=True)
        )
        return CallText(first.function, tuple(arguments), first.kinds, first.comment)

    def _one(self, texts: tuple[str, ...], kind: str) -> str:
        if len(set(texts)) == 1:
            return texts[0]
        if kind == ARENA:
            return f"arena + at[{self.places.setdefault(texts, len(self.places))}]"
        return f"{self.name}_{self.structs.setdefault((texts, kind), len(self.structs))}[i]"

    def definitions(self) -> Iterator[str]:
        """Yield the tables."""
        if self.places:
            offsets = [[text.removeprefix("arena + ") for text in each] for each in self.places]
            rows = (f"{{{', '.join(row)}}}" for row in zip(*offsets, strict=True))
            size = f"[{len(offsets[0])}][{len(offsets)}]"
            yield f"static const int32_t {self.name}_at{size} = {{\n{_lines(rows)}\n}};\n"
        for (texts, kind), number in self.structs.items():
            name = f"{self.name}_{number}[{len(texts)}]"
            yield f"static const {kind} *const {name} = {{\n{_lines(texts)}\n}};\n"


def _lines(items: Sequence[str] | Iterator[str]) -> str:
    return "\n".join(wrapped(items))
