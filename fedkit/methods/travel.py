"""What of a model travels in a round, what stays on its device, and what nobody changes.

Three parts, by `train` and `local` of the configuration. The shared part goes both ways in every
round. The local one is each device's own: it gets the server's values with the first message that
brings the whole model, and sends none back. The rest is frozen: it is sent once and never trained.
Running statistics of norms are measured in every round, whatever is trained, so they are shared
unless they are local.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedkit.config import RunConfig
from fedkit.core.errors import ConfigError
from fedkit.engine.base import Engine
from fedkit.methods.interface import Method
from fedkit.methods.schedule import kept_per_layer
from fedkit.sparse.layout import Layout
from fedkit.sparse.part import Part, chosen
from fedkit.sparse.state import Masks


@dataclass(frozen=True)
class Travel:
    """The parts of a run's model.

    Attributes:
        shared: Trained by all, and merged.
        local: Each device's own.
        frozen: The same everywhere, and never trained.
        trained: Names of the weights that are trained; None: all.
    """

    shared: Part
    local: Part
    frozen: Part
    trained: frozenset[str] | None

    @classmethod
    def of(cls, config: RunConfig, engine: Engine) -> Travel:
        """Divide the engine's model.

        Raises:
            ConfigError: `train` or `local` names no tensor of it, or nothing is left to travel.
        """
        layout = engine.layout
        own = _named("local", config.local, layout, engine) if config.local else frozenset()
        trained = trained_weights(config, engine)
        moving = frozenset(layout.weights) if trained is None else trained
        shared = Part.of_names(layout, (moving | set(layout.stats)) - own)
        if not shared.layout.weights:
            raise ConfigError(
                f"train {config.train!r} and local {config.local!r} leave no trained tensor that "
                "devices share, so nothing is learned together: train more, or keep less local"
            )
        frozen = Part.of_names(layout, set(layout.weights) - moving - own)
        return cls(shared, Part.of_names(layout, own), frozen, trained)


def trained_weights(config: RunConfig, engine: Engine) -> frozenset[str] | None:
    """Return the names of the weights that devices train; None: all.

    Raises:
        ConfigError: `train` names none.
    """
    if config.train == "all":
        return None
    found = _named("train", config.train, engine.layout, engine) & set(engine.layout.weights)
    if not found:
        raise ConfigError(
            f"train is {config.train!r}, which names running statistics alone: they are measured, "
            "not trained; name weights"
        )
    return found


def _named(key: str, which: str, layout: Layout, engine: Engine) -> frozenset[str]:
    return chosen(key, which, layout, engine.norm_parameters)


def check_travel(config: RunConfig, method: Method, engine: Engine) -> Travel:
    """Return the parts of a run's model, once it is sure that the method keeps to them.

    Raises:
        ConfigError: Names what does not go together.
    """
    parts = Travel.of(config, engine)
    reasons = {
        "candidates are ranked by devices' norm statistics, which local keeps on them: set "
        "selection to none": bool(parts.local.layout.stats)
        and method.selects
        and config.selection == "adaptive",
        "exact norm statistics are asked for with the whole model, and local tensors do not "
        "travel: set bn_merge to pooled": bool(parts.local)
        and config.bn_merge in ("exact", "exact-last"),
        f"method {config.method!r} lets devices change masks of the whole model, and some of it "
        "does not travel: set adjust_share to 0, or take another method": bool(
            config.adjust_share
            and (method.own_masks or method.entries != "pruned")
            and parts.shared.layout.prunable != engine.layout.prunable
        ),
    }
    if found := [reason for reason, applies in reasons.items() if applies]:
        raise ConfigError(
            f"local is {config.local!r} and train {config.train!r}, which do not go with this run; "
            + "; ".join(found)
        )
    return parts


def opening_config(config: RunConfig, parts: Travel) -> RunConfig:
    """Return the config by which first masks are made: local layers are kept dense."""
    if not (own := parts.local.layout.prunable):
        return config
    return config.changed(exempt=",".join((*config.exempt_layers, *own)))


def first_counts(config: RunConfig, engine: Engine) -> dict[str, int]:
    """Return kept weights per layer of a run's first masks, before any noise.

    Raises:
        ConfigError: These layers cannot reach the density.
    """
    first = opening_config(config, Travel.of(config, engine))
    return kept_per_layer(first, engine.layout.prunable_shapes)


def check_dense(config: RunConfig, parts: Travel, masks: Masks) -> None:
    """Refuse first masks that prune what stays on devices.

    Raises:
        ConfigError: A method made such masks.
    """
    if pruned := [name for name in parts.local.layout.prunable if not masks[name].all()]:
        raise ConfigError(
            f"method {config.method!r} prunes {', '.join(pruned)}, which local keeps on devices, "
            "where layers are dense; take a method that heeds exempt"
        )
