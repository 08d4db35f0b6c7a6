"""Find what a person names as `package.module:name`, and run the user's code.

What their code raises becomes one line that names their file and line: a traceback through ours
would hide it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from fedkit.core.errors import FedkitError

T = TypeVar("T")

MODULES_FROM = "FEDKIT_MODULES"
"""Variable that tells a process in which folder the command was given that started it."""

OWN = ("fedkit", "edge", "sim")
"""Our packages, whose names no file in the current folder may take."""

_OURS = Path(__file__).parents[2]


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
            f"{word} path {path!r}: module {module_name!r} cannot be imported ({reason(error)}); "
            "run from the folder that holds it, or install it"
        ) from error
    except (Exception, SystemExit) as error:  # whatever their module does when it is imported
        raise refusal(
            f"{word} path {path!r}: importing module {module_name!r} ended in {reason(error)}; "
            "fix the module"
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

    Modules are looked up in the current folder too, after everything that is installed: a file
    there does not take the place of a module of Python's, of ours or of a library's.

    Raises:
        ImportError: The module cannot be imported, or it is such a file.
    """
    module_name, _, attribute = path.partition(":")
    here = os.environ.get(MODULES_FROM) or str(Path.cwd())
    for own in OWN:
        importlib.import_module(own)
    if here not in sys.path:
        sys.path.append(here)
    module = importlib.import_module(module_name)
    _check_not_hidden(module_name, module, Path(here))
    return getattr(module, attribute, None)


def _check_not_hidden(name: str, module: ModuleType, here: Path) -> None:
    top = name.partition(".")[0]
    if top in OWN:
        return
    file = next((f for f in (here / f"{top}.py", here / top / "__init__.py") if f.is_file()), None)
    found = getattr(sys.modules.get(top, module), "__file__", None)
    if file is not None and not (found and Path(found).resolve() == file.resolve()):
        raise ImportError(
            f"{file} cannot be imported as {top!r}: that is the name of the module in "
            f"{found or 'Python itself'}; give your file another name"
        )


@contextmanager
def theirs(what: str, refusal: type[FedkitError]) -> Iterator[None]:
    """Run code of a user's; what it raises becomes one line.

    Args:
        what: Whose code it is, to begin the message with.
        refusal: The error to raise.

    Raises:
        FedkitError: Their code raised an error, or ended the process. One of ours stays as it is.
    """
    try:
        yield
    except FedkitError:
        raise
    except (Exception, SystemExit) as error:
        raise refusal(f"{what} failed with {reason(error)}") from error


def _not_theirs() -> tuple[str, ...]:
    """Return the folders of Python, of installed packages and of our own."""
    import sysconfig

    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    own = (f"{_OURS / package}/" for package in OWN)
    return (*(f"{sysconfig.get_path(kind)}/" for kind in kinds), *own, "<")


def reason(error: BaseException) -> str:
    """Say in one line what an error is and at which line of the user's own files it came up."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if isinstance(error, SyntaxError):  # its own text names the line
        return text if error.filename is None else f"{text} in {error.filename}"
    import traceback  # here, as sysconfig: a device holds what it imports

    others = _not_theirs()
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(others)
    ]
    return f"{text} at {frames[-1].filename}, line {frames[-1].lineno}" if frames else text
