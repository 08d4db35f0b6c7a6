"""Flags made from `RunConfig`, so that a key is named, explained and checked in one place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from fedkit.config import RunConfig, make_config, read_config

QUICK = {
    "epochs": 1,
    "server_epochs": 3,
    "sparse_epochs": 3,
    "examples_per_device": 200,
    "test_examples": 1000,
}
"""What `--quick` sets where neither a flag nor the config file does."""

QUICK_HELP = "a small run to see it work: " + ", ".join(f"{k} {v}" for k, v in QUICK.items())


def from_config(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `values` of a command by `--config` and a flag per config key.

    Flags arrive as text and are parsed by `RunConfig`, so that a bad flag and a bad line of a
    TOML file get the same message. `values` receives what was given, the file first.
    """

    def wrapper(config: Path | None, **given: Any) -> None:
        values = read_config(config) if config else {}
        for key in RunConfig.model_fields:
            if (text := given.pop(key)) is not None:
                values[key] = text
        command(values=values, **given)

    signature = inspect.signature(command, eval_str=True)
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        if name != "values"
    ]
    file = Annotated[Path | None, typer.Option(help="TOML file of these keys; flags override it")]
    config = _parameter("config", file)
    parameters = [config, *map(_flag, RunConfig.model_fields), *own]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    return wrapper


def make(values: Mapping[str, Any], quick: bool) -> RunConfig:
    """Validate the given values, over those of `--quick` if asked for."""
    return make_config({**(QUICK if quick else {}), **values})


def _flag(key: str) -> inspect.Parameter:
    info = RunConfig.model_fields[key]
    option = typer.Option(
        help=f"{info.description} [default: {info.default!r}]",
        metavar=_metavar(info.annotation),
        rich_help_panel="Configuration (keys of --config)",
    )
    return _parameter(key, Annotated[str | None, option])


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is not None:
        return "|".join(get_args(annotation))
    return {"str": "TEXT", "int": "INTEGER", "float": "NUMBER"}[annotation.__name__]


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )
