"""Import the old path given as argument, or walk all that are read from stdin; tell what is found.

Run in an interpreter of its own, since a path warns once and stays imported.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings


def main() -> None:
    found = {}
    for line in sys.stdin:
        path, _, listed = line.partition(":")
        found[path] = look(path, listed.split())
    json.dump(found, sys.stdout)


def look(path: str, wanted: list[str]) -> dict[str, object]:
    parent, _, child = path.rpartition(".")
    above = importlib.import_module(parent) if parent else None
    before = getattr(above, child, None) if path not in sys.modules else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")  # what libraries say of each other
        warnings.filterwarnings("always", message=".* goes with fedkit 0.2")
        module = importlib.import_module(path)
        at_import = [str(each.message) for each in caught]
        lacking = [name for name in wanted if not hasattr(module, name)]
    return {
        "name": module.__name__,
        "own": module is sys.modules[module.__name__],
        "took_a_place": before is not None and before is not getattr(above, child),
        "at_import": at_import,
        "kinds": sorted({each.category.__name__ for each in caught}),
        "of_names": [str(each.message) for each in caught[len(at_import) :]],
        "lacking": lacking,
    }


if __name__ == "__main__":
    main()
