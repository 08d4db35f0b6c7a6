"""Find what a person names as `package.module:name`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def find(path: str) -> object:
    """Return what `package.module:name` names, or None where the module has no such name.

    Modules are looked up from the current folder too, as `python -m` does.

    Raises:
        ImportError: The module cannot be imported.
    """
    module_name, _, attribute = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return getattr(importlib.import_module(module_name), attribute, None)
