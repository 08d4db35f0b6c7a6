"""What a norm needs that takes the place of a layer norm in a model of others."""

from __future__ import annotations

from torch import Tensor, nn


def compute_itself(norm: nn.Module) -> None:
    """Keep torch from computing layer norms in a norm's stead.

    In evaluation torch's TransformerEncoderLayer does, with the weights of whatever stands in their
    places, unless a module in it has a hook; and it asks for their `eps`.
    """
    norm.register_forward_pre_hook(_nothing)


def _nothing(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Do nothing."""
