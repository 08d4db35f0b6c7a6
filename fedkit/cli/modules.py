"""Files that would take the place of a module of Python's or of ours: told before they do.

Nothing is imported here but what Python itself has imported already, or it would be theirs.
"""

import os
import sys

OWN = ("edge", "fedkit", "sim")
"""Our packages."""


def in_the_way() -> str:
    """Return what is wrong with a file that PYTHONPATH puts before a module; "" where none is."""
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for folder in map(os.path.abspath, sys.path):
        if folder == os.path.dirname(os.__file__):
            break
        for name, entry in _modules_in(folder) if folder != ours else ():
            whose = "of fedkit" if name in OWN else "of Python itself"
            return (
                f"{os.path.join(folder, entry)} is in the way: PYTHONPATH puts it before the "
                f"module {name!r} {whose}; give it another name, or take its folder out of "
                "PYTHONPATH"
            )
    return ""


def _modules_in(folder: str) -> list[tuple[str, str]]:
    """Return the modules of Python's and of ours that a folder holds too: names and entries."""
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return []
    known = sys.stdlib_module_names.union(OWN)
    found = [(entry.removesuffix(".py"), entry) for entry in entries]
    return [
        (name, entry)
        for name, entry in found
        if name in known
        and (name != entry or os.path.isfile(os.path.join(folder, entry, "__init__.py")))
    ]
