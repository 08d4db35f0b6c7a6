"""A part of a model: some of its tensors, as a model of their own that can travel and be merged."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

from fedkit.core.errors import ConfigError
from fedkit.core.text import short
from fedkit.sparse.kept import joined, kept_weights
from fedkit.sparse.layout import Layout
from fedkit.sparse.packed import packed
from fedkit.sparse.state import Masks, ModelState

_WORDS = ("norm", "head")


@dataclass(frozen=True)
class Part:
    """Some tensors of a model.

    Attributes:
        layout: Of those alone, in the model's order.
        whole: Whether they are all of the model's.
    """

    layout: Layout
    whole: bool

    @classmethod
    def of_names(cls, layout: Layout, names: Container[str]) -> Part:
        """Return the part with such weights and running statistics of a model."""
        weights, stats = (
            {name: shape for name, shape in shapes.items() if name in names}
            for shapes in (layout.weights, layout.stats)
        )
        own = Layout(weights, stats, tuple(name for name in layout.prunable if name in names))
        return cls(own, own == layout)

    def __bool__(self) -> bool:
        return bool(self.layout.weights or self.layout.stats)

    def of(self, state: ModelState) -> ModelState:
        """Return the part of a model; the same object where it is all of it."""
        if self.whole:
            return state
        weights = kept_weights(state.weights, state.masks).only(self.layout.weights)
        stats = {name: value for name, value in state.stats.items() if name in self.layout.stats}
        return ModelState(weights, stats, self.masks(state.masks))

    def masks(self, masks: Masks) -> Masks:
        """Return the masks of the part."""
        return masks if self.whole else packed(masks).only(self.layout.prunable)

    def into(self, state: ModelState, part: ModelState) -> ModelState:
        """Return a model with this part of it replaced."""
        if self.whole:
            return part
        whole, own = (kept_weights(each.weights, each.masks) for each in (state, part))
        masks = packed(state.masks).changed(packed(part.masks).bits)
        return ModelState(joined(whole, own), {**state.stats, **part.stats}, masks)


def head(layout: Layout) -> frozenset[str]:
    """Return the parameters of the last layer that can be pruned: weight and bias."""
    module = _module(layout.prunable[-1])
    return frozenset(name for name in layout.weights if _module(name) == module)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def norms(layout: Layout, parameters: Container[str]) -> frozenset[str]:
    """Return the parameters of all norms of a model, and their running statistics."""
    return frozenset([*(name for name in layout.weights if name in parameters), *layout.stats])


def chosen(key: str, which: str, layout: Layout, parameters: Container[str]) -> frozenset[str]:
    """Return the names of the weights and running statistics that a text stands for.

    Args:
        key: The key of the configuration that holds the text.
        which: `norm`, `head`, `norm+head`; or a regular expression of whole names.
        layout: The model's layout.
        parameters: Names of the parameters of its norms.

    Raises:
        ConfigError: It is neither, or names no tensor of the model.
    """
    words = which.split("+")
    if set(words) <= set(_WORDS):
        sets = {"norm": norms(layout, parameters), "head": head(layout)}
        found = frozenset().union(*(sets[word] for word in words))
    else:
        found = _matching(key, which, [*layout.weights, *layout.stats])
    if not found:
        raise ConfigError(
            f"{key} is {short(which)}, and the model has no such tensor; its tensors are "
            f"{short(', '.join([*layout.weights, *layout.stats]))}"
        )
    return found


def _matching(key: str, which: str, names: list[str]) -> frozenset[str]:
    try:
        rule = re.compile(which)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(
            f"{key} is {short(which)}, which is not a regular expression ({error}); give "
            "norm, head, norm+head, or an expression of whole names, such as 'layer4.*'"
        ) from error
    return frozenset(name for name in names if rule.fullmatch(name))
