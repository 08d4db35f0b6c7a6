"""What all engines that follow a plan know from it alone."""

from __future__ import annotations

from fedkit.engine.base import NormLevels
from fedkit.engine.plan.structure import Plan, absolute_norms, norm_levels, norm_parameters
from fedkit.stats.moments import Moments
from fedkit.stats.norms import norm_names


class PlannedEngine:
    """A base of engines that follow a plan.

    Attributes:
        plan: The model.
    """

    plan: Plan

    def moments_of_norms(self) -> dict[str, list[Moments]]:
        """Return room for moments of each norm, in the model's order, which a message keeps.

        A plan has them in the order of the forward pass, which may be another.
        """
        return {name: [] for name in norm_names(self.plan.stats)}

    @property
    def absolute_norms(self) -> frozenset[str]:
        """See `Engine.absolute_norms`."""
        return absolute_norms(self.plan)

    @property
    def norm_parameters(self) -> frozenset[str]:
        """See `Engine.norm_parameters`."""
        return norm_parameters(self.plan)

    def norm_levels(self, input_shape: tuple[int, ...]) -> NormLevels:
        """See `Engine.norm_levels`."""
        return norm_levels(self.plan)
