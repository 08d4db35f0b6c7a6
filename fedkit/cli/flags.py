"""Flags made from `RunConfig`, so that a key is named, explained and checked in one place."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import click
import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from fedkit.config import RunConfig

QUICK = {
    "epochs": 1,
    "server_epochs": 3,
    "sparse_epochs": 3,
    "examples_per_device": 200,
    "test_examples": 1000,
}
"""What `--quick` sets where neither a flag nor the config file does."""

QUICK_HELP = "a small run to see it work: " + ", ".join(f"{k} {v}" for k, v in QUICK.items())


class ConfigCommand(TyperCommand):
    """A command with `--config` and a flag per config key, which `from_config` hands on.

    The keys are looked up when this command is run or explained, since that takes as long as all
    else of the command line together.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters of the command's function, then a flag per key."""
        return [*_flags(), *super().get_params(ctx)]


def from_config(command: Callable[..., None]) -> Callable[..., None]:
    """Take flags of a `ConfigCommand` as the parameter `values` of its function.

    Flags arrive as text and are parsed by `RunConfig`, so that a bad flag and a bad line of a
    TOML file get the same message. `values` receives what was given, the file first.
    """

    def wrapper(**given: Any) -> None:
        from fedkit.config import KEYS, read_config

        config = given.pop("config")
        values = read_config(Path(config)) if config else {}
        for key in KEYS:
            if (text := given.pop(key)) is not None:
                values[key] = text
        command(values=values, **given)

    signature = inspect.signature(command, eval_str=True)
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        if name != "values"
    ]
    _sign(wrapper, own)
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    return wrapper


@functools.cache
def _flags() -> tuple[click.Parameter, ...]:
    """Return `--config` and a flag per key, as typer makes them of a function's parameters."""
    from fedkit.config import KEYS

    def keys(**given: Any) -> None: ...

    file = Annotated[Path | None, typer.Option(help="TOML file of these keys; flags override it")]
    _sign(keys, [_parameter("config", file), *map(_flag, KEYS)])
    app = typer.Typer(add_completion=False)
    app.command()(keys)
    return tuple(typer.main.get_command(app).params)


def _sign(function: Callable[..., None], parameters: list[inspect.Parameter]) -> None:
    """Give a function of `**given` the parameters that typer is to see."""
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}


def make(values: Mapping[str, Any], quick: bool) -> RunConfig:
    """Validate the given values, over those of `--quick` if asked for."""
    from fedkit.config import make_config

    config = make_config({**(QUICK if quick else {}), **values})
    if not config.backbone:
        return config
    # A server may run in another folder.
    return config.changed(backbone=str(Path(config.backbone).absolute()))


def _flag(key: str) -> inspect.Parameter:
    from fedkit.config import KEYS

    info = KEYS[key]
    option = typer.Option(
        help=f"{info.description} [default: {info.default!r}]",
        metavar=_metavar(info.kind),
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
