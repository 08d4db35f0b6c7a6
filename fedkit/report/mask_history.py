"""Which weights a run moved, gathered from its steps: per layer, and of the mask as a whole."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedkit.report.reading import Run
from fedkit.report.run_steps import Step


@dataclass(frozen=True)
class Kept:
    """How much of a mask is left after each step of training.

    Attributes:
        steps: Those after round 0, whose rounds and phases they are of.
        of_before: Share of the weights kept before the step that are kept after it.
        of_first: Share of the weights that training began with; None where nobody knows.
    """

    steps: Sequence[Step]
    of_before: Sequence[float | None]
    of_first: Sequence[float | None]


class MaskHistory:
    """What the lines of a run's steps say of its masks.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._steps = run.steps
        self._sizes = {layer.name: layer.size for layer in run.layers}

    @property
    def is_told(self) -> bool:
        """Whether any step tells of its masks; those of older versions do not."""
        return any("layers" in step for step in self._steps)

    @functools.cached_property
    def adjustments(self) -> Sequence[Step]:
        """The steps of training that moved a weight."""
        return [step for step in self._steps if step["round"] and step.get("layers")]

    @functools.cached_property
    def layers(self) -> list[str]:
        """Names of all layers that steps tell of."""
        return list(dict.fromkeys(n for step in self._steps for n in step.get("layers", {})))

    def density(self, layer: str) -> tuple[list[Step], list[float]]:
        """Return the steps that changed a layer, and its kept share after each; the last step too.

        There are none where the checkpoint does not tell how large the layer is.
        """
        size = self._sizes.get(layer, 0)
        there = [step for step in self._steps if layer in step.get("layers", {})]
        if not size or not there:
            return [], []
        values = [step["layers"][layer]["kept"] / size for step in there]
        if there[-1] is not self._steps[-1]:
            there, values = [*there, self._steps[-1]], [*values, values[-1]]
        return there, values

    @functools.cached_property
    def kept(self) -> Kept:
        """How much of the mask is left after each step of training."""
        kept, first = dict[str, int](), dict[str, int]()
        began: dict[str, int] | None = None
        training, before, since = list[Step](), list[float | None](), list[float | None]()
        for step in self._steps:
            layers: Mapping[str, Mapping[str, int]] = step.get("layers", {})
            old = sum(kept.values())
            kept |= {name: told["kept"] for name, told in layers.items()}
            if not step["round"]:
                continue
            if began is None:
                began, first = dict(kept), dict(kept)
            first |= {n: told.get("of_first", -1) for n, told in layers.items()}
            lost = sum(told["pruned"] for told in layers.values())
            training.append(step)
            before.append(1 - lost / old if old else None)
            known = began and min(first.values()) >= 0 and sum(began.values())
            since.append(sum(first.values()) / known if known else None)
        return Kept(training, before, since)
