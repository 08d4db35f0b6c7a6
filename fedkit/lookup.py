"""Find what a person names as `package.module:name`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from fedkit.errors import FedkitError

T = TypeVar("T")


def load(path: str, named: Mapping[str, T], kind: type[T], refusal: type[FedkitError]) -> T:
    """Return what stands under a short name, or what `package.module:name` names.

    Args:
        path: The name or the path.
        named: What has a short name.
        kind: What it must be; its own name is the word for it in messages.
        refusal: The error to raise.

    Raises:
        FedkitError: No such name, module or attribute, or it is not a `kind`.
    """
    if path in named:
        return named[path]
    word = kind.__name__.lower()
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise refusal(
            f"no {word} {path!r}; give one of {', '.join(named)} or a path like package.module:name"
        )
    try:
        found = find(path)
    except ImportError as error:
        raise refusal(
            f"{word} path {path!r}: module {module_name!r} cannot be imported ({error}); run from "
            "the folder that holds it, or install it"
        ) from error
    if not isinstance(found, kind):
        what = "nothing" if found is None else f"a {type(found).__name__}"
        raise refusal(
            f"{word} path {path!r} leads to {what}; {attribute!r} must be a "
            f"{kind.__module__}.{kind.__name__} at the top level of module {module_name!r}"
        )
    return found


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
