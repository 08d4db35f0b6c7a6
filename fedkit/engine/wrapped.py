"""An engine around another one."""

from __future__ import annotations

from fedkit.engine.base import Engine, NormLevels
from fedkit.sparse.state import ModelState


class WrappedEngine:
    """A base of engines that compute by another one: what says nothing of training is its own.

    Args:
        inner: The other one.
    """

    def __init__(self, inner: Engine) -> None:
        self.layout, self._inner = inner.layout, inner

    def initial_state(self) -> ModelState:
        """See `Engine.initial_state`."""
        return self._inner.initial_state()

    @property
    def absolute_norms(self) -> frozenset[str]:
        """See `Engine.absolute_norms`."""
        return self._inner.absolute_norms

    @property
    def norm_parameters(self) -> frozenset[str]:
        """See `Engine.norm_parameters`."""
        return self._inner.norm_parameters

    def norm_levels(self, input_shape: tuple[int, ...]) -> NormLevels:
        """See `Engine.norm_levels`."""
        return self._inner.norm_levels(input_shape)
