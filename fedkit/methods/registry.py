"""All methods, ours and its baselines: one row each, behind `fedkit.methods.interface`.

A baseline is added as a file with one function or two and a row here, or, from outside, as
`--method package.module:NAME` where NAME is a `Method`.
"""

from __future__ import annotations

from dataclasses import replace

from fedkit.config import RunConfig
from fedkit.core.errors import ConfigError
from fedkit.core.lookup import load
from fedkit.methods.feddst import FEDDST
from fedkit.methods.fedtiny.method import FEDTINY
from fedkit.methods.interface import Method, send_whole
from fedkit.methods.magnitude import MAGNITUDE
from fedkit.methods.prunefl import PRUNEFL
from fedkit.methods.random_masks import ERK, RANDOM
from fedkit.methods.snip import SNIP
from fedkit.methods.ssfl import SSFL
from fedkit.methods.synflow import SYNFLOW

DENSE = Method(
    "FedAvg: every weight trains and travels (McMahan et al., 2017)",
    lambda opening: send_whole(opening.tuned(opening.dense)),
    settings={"density": 1.0},
)


def _without(what: str, **settings: object) -> Method:
    return replace(FEDTINY, about=f"FedTiny {what}", settings=settings, ablation_of="fedtiny")


METHODS: dict[str, Method] = {
    "fedtiny": FEDTINY,
    "fedtiny-once": _without("pruning the dense start at once", pruning="once"),
    "fedtiny-uniform": _without("around uniform layer densities", distribution="uniform"),
    "fedtiny-vanilla": _without("ranking under the server's statistics", selection="vanilla"),
    "fedtiny-no-selection": _without("without selection", selection="none"),
    "fedtiny-no-progressive": _without("without progressive pruning", adjust_share=0.0),
    "fedtiny-entire": _without("adjusting the whole model at once", granularity="entire"),
    "dense": DENSE,
    "random": RANDOM,
    "erk": ERK,
    "magnitude": MAGNITUDE,
    "snip": SNIP,
    "synflow": SYNFLOW,
    "ssfl": SSFL,
    "prunefl": PRUNEFL,
    "feddst": FEDDST,
}
"""Name -> method, for `--method NAME`."""


def load_method(path: str) -> Method:
    """Find a method by name or as `package.module:NAME`.

    Raises:
        ConfigError: No such name, module or attribute, or it is not a `Method`.
    """
    return load(path, METHODS, Method, ConfigError)


def resolve(config: RunConfig) -> RunConfig:
    """Return the config with what its method fixes; every process of a run does this first."""
    return config.model_copy(update=dict(load_method(config.method).settings))
