"""A batch norm over the places that hold data, of padded series and images with holes.

Source: Yu et al., "Region Normalization for Image Inpainting", 2020 (arXiv 1911.10375), whose
basic form normalises each region by its own moments. Here the masked region is what was never
measured: it gives no moments, and is scaled as the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MaskedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """`nn.BatchNorm1d` or `2d` whose moments are those of unmasked places.

    Takes [n, channels, ...] of three or four dimensions and a mask [n, 1, ...], True where there is
    data; without one, all places count. In evaluation the mask changes nothing.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__(channels, eps, momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        if not 3 <= input.dim() <= 4:
            raise ValueError(f"expected 3D or 4D input (got {input.dim()}D input)")

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the same shape."""
        if mask is None or not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        samples = unmasked(input, mask)
        if len(samples) < 2:
            raise ValueError(f"expected more than 1 value per channel, got {len(samples)} unmasked")
        variance, mean = torch.var_mean(samples, 0, correction=0)
        self._track(mean, variance * len(samples) / (len(samples) - 1))
        scale = self.weight / (variance + self.eps).sqrt()
        return (input - _wide(mean, input)) * _wide(scale, input) + _wide(self.bias, input)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        plain = 1 / self.num_batches_tracked.item()
        momentum = plain if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def unmasked(input: Tensor, mask: Tensor) -> Tensor:
    """Return the values of unmasked places, [places, channels].

    Args:
        input: [n, channels, ...].
        mask: [n, 1, ...].

    Raises:
        ValueError: The mask does not go with the input.
    """
    wanted = (len(input), 1, *input.shape[2:])
    if tuple(mask.shape) != wanted:
        raise ValueError(f"expected a mask of shape {wanted} (got {tuple(mask.shape)})")
    return input.movedim(1, -1)[mask[:, 0].bool()]


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.dim() - 2))
