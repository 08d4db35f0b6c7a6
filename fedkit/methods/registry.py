"""All methods, ours and its baselines: one row each, behind `fedkit.methods.interface`.

A method is added as a file in this package with one function or two and its rows, `METHODS`: name
-> `Method`. It is found here. From outside it is `--method package.module:NAME` where NAME is a
`Method`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from importlib import import_module

from fedkit import methods
from fedkit.config import RunConfig
from fedkit.core.errors import ConfigError
from fedkit.core.lookup import load
from fedkit.methods.interface import Method

_ORDER = ("fedtiny", "dense", "random", "magnitude", "snip", "synflow", "ssfl", "prunefl", "feddst")
"""How tables begin, by the first name of a module; of others the name decides."""


def _found() -> Iterator[tuple[str, Mapping[str, Method]]]:
    """Yield name and rows of every module of this package that has some."""
    for module in pkgutil.walk_packages(methods.__path__, f"{methods.__name__}."):
        own = module.name == __name__
        if not own and (rows := getattr(import_module(module.name), "METHODS", None)):
            yield module.name, rows


def _place(rows: Mapping[str, Method]) -> tuple[int, str]:
    first = next(iter(rows))
    return (_ORDER.index(first) if first in _ORDER else len(_ORDER)), first


def gather() -> dict[str, Method]:
    """Return name -> method, of all modules of this package.

    Raises:
        ConfigError: Two modules give one name, or a row is no `Method`.
    """
    table: dict[str, Method] = {}
    owner: dict[str, str] = {}
    for module, rows in sorted(_found(), key=lambda found: _place(found[1])):
        for name, row in rows.items():
            if not isinstance(row, Method):
                raise ConfigError(
                    f"{module} names {name!r} in METHODS, and that is a {type(row).__name__}; make "
                    "it a fedkit.methods.interface.Method"
                )
            if name in owner:
                raise ConfigError(
                    f"{owner[name]} and {module} both have a method {name!r}; rename one"
                )
            table[name], owner[name] = row, module
    return table


METHODS = gather()
"""Name -> method, for `--method NAME`."""


def load_method(path: str) -> Method:
    """Find a method by name or as `package.module:NAME`.

    Raises:
        ConfigError: No such name, module or attribute, or it is not a `Method`.
    """
    return load(path, METHODS, Method, ConfigError)


def resolve(config: RunConfig) -> RunConfig:
    """Return the config with what its method fixes; every process of a run does this first."""
    return config.changed(**dict(load_method(config.method).settings))
