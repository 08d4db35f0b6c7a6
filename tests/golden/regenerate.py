"""Write the golden vectors beside this file: `python -m tests.golden.regenerate [--check]`.

They pin numbers down across versions and languages: any implementation of the integer contract
reads the same files. A new set is a row of `GOLDEN`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedkit.core import numerics

FOLDER = Path(__file__).parent

Case = Mapping[str, Any]
"""One line of a file: a function's name, its arguments and its result, as JSON."""

X = [-(2**40) - 1, -32769, -129, -24, -8, -6, -5, -2, -1, 0, 1, 2, 5, 6, 8, 24, 127, 32768, 2**40]
COUNTERS = [0, 1, 2, 3, 255, 65536, 2**31, 2**32 - 1]


def numerics_cases() -> Iterator[Case]:
    x = np.array(X)
    for bits in (2, 4, 8, 16):
        yield case("saturate", numerics.saturate(x, bits), x=X, bits=bits)
        yield case("saturate_symmetric", numerics.saturate_symmetric(x, bits), x=X, bits=bits)
    for mode in ("floor", "half_up", "half_away", "half_even"):
        shift_right = getattr(numerics, f"shift_right_{mode}")
        for shift in (0, 1, 2, 4, 31, 62):
            yield case(shift_right.__name__, shift_right(x, shift), x=X, shift=shift)
    for words in ((0,), (1,), (0, 1), (1, 0), (2**64 - 1, 2, 3)):
        key = numerics.derive_key(*words)
        bits32 = numerics.random_bits(key, np.array(COUNTERS, np.uint32))
        yield {"function": "derive_key", "words": words, "result": key}
        yield case("random_bits", bits32, key=key, counters=COUNTERS)
    random = numerics.random_bits(key, np.arange(len(X), dtype=np.uint32))
    for shift in (0, 1, 3, 31):
        out = numerics.shift_right_stochastic(x, shift, random)
        yield case("shift_right_stochastic", out, x=X, shift=shift, random=random.tolist())
    for real in (0.0, 1.0, -1.0, 1 / 3, -0.0123, 32767.5 / 2**15, 2.0**-40, 20000.0):
        fixed = numerics.fixed_point(real)
        yield {"function": "fixed_point", "real": real, "bits": 15, "result": vars(fixed)}
        yield case("multiply_half_up", numerics.multiply_half_up(x, fixed), x=X, fixed=vars(fixed))


def case(function: str, result: np.ndarray[Any, Any], **arguments: Any) -> Case:
    return {"function": function, **arguments, "result": result.tolist()}


GOLDEN: dict[str, Callable[[], Iterator[Case]]] = {"numerics": numerics_cases}


def render(name: str) -> str:
    """Return the text of one set, a case a line, so that a difference shows what changed."""
    lines = ",\n".join(json.dumps(case) for case in GOLDEN[name]())
    return f"[\n{lines}\n]\n"


def outdated() -> list[str]:
    """Return the files that differ from what the code gives, and those that no row makes."""
    files = {f"{name}.json": render(name) for name in GOLDEN}
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    return sorted(name for name in files | found if files.get(name) != found.get(name))


def main() -> int:
    """Write all sets; with `--check` only name what is outdated, and return 1 if anything is."""
    if "--check" in sys.argv:
        print(*outdated(), sep="\n", end="\n" if outdated() else "")
        return int(bool(outdated()))
    for name in GOLDEN:
        (FOLDER / f"{name}.json").write_text(render(name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
