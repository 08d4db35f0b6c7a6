"""Sub-8-bit integer training: ShiftQuant's formats, quantisers and products, and L1 norms.

The method is that of Guo et al., "Towards Accurate and Efficient Sub-8-Bit Integer Training"
(arXiv 2411.10948), as we reconstruct it; only the abstract was available, so no equation here is
the paper's own. Ours are: the rule that gives a channel its group, stochastic rounding by bits that
a counter draws, and the three realisations of the product.

In the form that is multiplied, ShiftQuant's levels are some of the levels of a plain int8 tensor,
so where int8 is the narrowest product it saves stored and sent bits, not time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedkit.tasks.losses import PLAIN, Loss

if TYPE_CHECKING:
    from torch import nn

    from fedkit.engine.integer.model import IntegerModel


def convert(
    model: nn.Module,
    input_shape: tuple[int, ...],
    bits: int = 8,
    gradient: str = "shiftquant",
    loss: Loss = PLAIN,
) -> IntegerModel:
    """Return a torch model in the form that trains in integers; the model is left as it was.

    Args:
        model: Takes float32 [n, *input_shape], returns features, series or maps.
        input_shape: (channels, height, width), (channels, length) or (features,) of one example.
        bits: Of weights, activations and gradients, 2 to 8; the layers at input and output have 8.
        gradient: How gradients are scaled: "shiftquant", "per-tensor" or "per-channel".
        loss: What training makes small.

    Raises:
        EngineError: The bits or the rule do not exist.
        PlanError: The model has layers that cannot be converted; each is named, with the reason.
    """
    from fedkit.engine.integer.model import IntegerModel

    return IntegerModel.of(model, input_shape, bits, gradient, loss)
