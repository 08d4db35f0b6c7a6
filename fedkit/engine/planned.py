"""What all engines that follow a plan know from it alone."""

from __future__ import annotations

from fedkit.engine.base import NormLevels
from fedkit.engine.plan.structure import Plan, absolute_norms, norm_levels


class PlannedEngine:
    """A base of engines that follow a plan.

    Attributes:
        plan: The model.
    """

    plan: Plan

    @property
    def absolute_norms(self) -> frozenset[str]:
        """See `Engine.absolute_norms`."""
        return absolute_norms(self.plan)

    def norm_levels(self, input_shape: tuple[int, ...]) -> NormLevels:
        """See `Engine.norm_levels`."""
        return norm_levels(self.plan)
