"""All benchmarks, found by what the first line of their module says.

A benchmark is a file NAME.py in this package whose docstring begins with

    `fedkit bench NAME`: what it measures

and which has `bench_NAME(quick)`, a JSON object with `rows`. Where it has `table(result)` too, the
lines of a table in Markdown, README shows its results. These modules are heavy: until one is asked
for, its first line alone is read. `python -m fedkit.bench.registry` lists them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, cast

_FIRST_LINE = re.compile(r'"""`fedkit bench (?P<name>\w+)`: (?P<about>.+)')


@dataclass(frozen=True)
class Benchmark:
    """One of the benchmarks.

    Attributes:
        name: As `fedkit bench NAME` takes it, and that of its module.
        about: What it measures: the first line about it.
    """

    name: str
    about: str

    def run(self, quick: bool, **options: Any) -> dict[str, Any]:
        """Run it; the result says what made it.

        Args:
            quick: Take little time.
            **options: What only this one takes.
        """
        from fedkit.core.provenance import made_by

        result = getattr(self._module, f"bench_{self.name}")(quick, **options)
        return {**cast(dict[str, Any], result), **made_by()}

    def table(self, result: Mapping[str, Any]) -> list[str]:
        """Return the lines of README's table; none where it has no table."""
        write = getattr(self._module, "table", None)
        return [] if write is None else cast(list[str], write(result))

    @property
    def _module(self) -> ModuleType:
        return import_module(f"fedkit.bench.{self.name}")


def _found() -> dict[str, Benchmark]:
    table = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        with path.open(encoding="utf-8") as file:
            said = _FIRST_LINE.match(file.readline())
        if said and said["name"] == path.stem:
            table[path.stem] = Benchmark(path.stem, said["about"].removesuffix('"""').strip())
    return table


BENCHMARKS = _found()
"""Name -> benchmark, in the order of the names."""


if __name__ == "__main__":
    for each in BENCHMARKS.values():
        print(f"{each.name}\t{each.about}")
