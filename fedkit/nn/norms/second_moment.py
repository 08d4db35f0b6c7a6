"""Batch norms by an uncentred second moment: x / sqrt(mean of squares), of each channel.

In a Transformer a batch's statistics jump from step to step, and gradients through them more. Both
norms here smooth them over steps, forward and backward, and fold away in evaluation.

What a fleet merges is the plain mean of a device's second moments, as of any batch norm. What they
smooth with belongs to a device and to one round: `forget` clears it before each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fedkit.core.errors import ConfigError

Smooth = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(gradient, normalised values, mean of their products) -> what stands for that mean."""


class SecondMomentNorm(nn.modules.batchnorm._BatchNorm, ABC):
    """What both have in common.

    Takes and returns [n, channels, ...] of two to four dimensions. `running_var` [channels] is the
    second moment around 0, and `running_mean` is 0 always, so that second moments of devices merge
    as variances do.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__(channels, eps, momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        if not 2 <= input.dim() <= 4:
            raise ValueError(f"expected 2D, 3D or 4D input (got {input.dim()}D input)")

    @abstractmethod
    def forget(self) -> None:
        """Clear what earlier steps left."""

    @abstractmethod
    def _for_step(self, second: Tensor) -> tuple[Tensor, Smooth]:
        """Return by what second moment to divide, and what smooths the gradient.

        Args:
            second: That of the batch, [channels].
        """

    def forward(self, input: Tensor) -> Tensor:
        """Return the same shape."""
        self._check_input_dim(input)
        shape = (-1, *(1,) * (input.dim() - 2))
        if not self.training:
            scale = self.weight / (self.running_var + self.eps).sqrt()
            return input * scale.view(shape) + self.bias.view(shape)
        second = _mean(input.detach().square())
        divisor, smooth = self._for_step(second)
        root = (divisor + self.eps).sqrt()
        out: Tensor = _Smoothed.apply(input, root, smooth)  # type: ignore[no-untyped-call]
        self._track(second)
        out = out * self.weight.view(shape) + self.bias.view(shape)
        return out

    @torch.no_grad()
    def _track(self, second: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        plain = 1 / self.num_batches_tracked.item()
        self.running_var.lerp_(second, plain if self.momentum is None else self.momentum)


def _mean(x: Tensor) -> Tensor:
    """Return the mean of each channel, [channels]."""
    return x.transpose(0, 1).flatten(1).mean(1)


class _Smoothed(torch.autograd.Function):
    """x / root; backward (g - nu * xhat) / root, where nu stands for the mean of g * xhat."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, root: Tensor, smooth: Smooth) -> Tensor:
        wide = root.view(-1, *(1,) * (x.dim() - 2))
        xhat = x / wide
        ctx.save_for_backward(xhat, wide)
        ctx.smooth = smooth
        return xhat

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (xhat, wide) = gradients, ctx.saved_tensors
        nu: Tensor = ctx.smooth(gradient, xhat, _mean(gradient * xhat))
        return (gradient - nu.view(wide.shape) * xhat) / wide, None, None


class UnifiedNorm(SecondMomentNorm):
    """Unified Normalization (Yang et al., 2022, arXiv 2208.01313).

    After `warmup` steps it divides by the GEOMETRIC mean of the last `window` second moments, and
    its gradient takes the arithmetic mean of the last `window` means of g * xhat. A step is an
    outlier where the arithmetic mean is above the geometric one by more than `window` times the
    variance of the deviations seen before: it takes the moments of its batch, forward and backward,
    and is not remembered.

    The authors' code also averages gradients over all steps and corrects them for how far the
    second moment is off its running mean; over the few steps of a round that is left out.

    Args:
        channels: Of the input.
        window: Steps that are smoothed over.
        warmup: Steps that take the moments of their batch, at least `window`.
        filters: Whether outliers are looked for; the authors do so for images, not for text.
        eps: Added to the second moment.
        momentum: Of `running_var`; None is the plain mean.
    """

    squares: Tensor
    products: Tensor
    step: Tensor

    def __init__(
        self,
        channels: int,
        window: int = 4,
        warmup: int = 4,
        filters: bool = True,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__(channels, eps, momentum)
        if not 1 <= window <= warmup:
            raise ConfigError(f"window is {window} and warmup {warmup}; take 1 <= window <= warmup")
        self.window, self.warmup, self.filters = window, warmup, filters
        for name in ("squares", "products"):
            self.register_buffer(name, torch.ones(window, channels), persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64), persistent=False)
        self.forget()

    def forget(self) -> None:
        """See `SecondMomentNorm.forget`."""
        self.squares.fill_(1)
        self.products.zero_()
        self.step.zero_()

    def _for_step(self, second: Tensor) -> tuple[Tensor, Smooth]:
        step = int(self.step)
        place = step % self.window
        warms = step < self.warmup
        before = self.squares.clone()
        self.squares[place] = second
        geometric = _geometric(self.squares, self.eps)
        excess = self.squares.mean(0) - geometric
        usual = self.window * before.sqrt().var(correction=0)
        if not warms and self.filters and bool((excess > usual).any()):
            self.squares.copy_(before)
            return second, lambda gradient, xhat, product: product
        self.step.add_(1)

        def smooth(gradient: Tensor, xhat: Tensor, product: Tensor) -> Tensor:
            self.products[place] = product
            return product if warms else self.products.mean(0)

        return (second if warms else geometric), smooth


def _geometric(moments: Tensor, eps: float) -> Tensor:
    """Return the geometric mean over steps; of a channel of zeros too, which has no logarithm."""
    return (moments + eps).log().mean(0).exp() - eps


class PowerNorm(SecondMomentNorm):
    """PowerNorm (Shen et al., 2020, arXiv 2003.07845), without the group scaling of its code.

    After `warmup` steps it divides by the running second moment psi^2 of the steps before, and its
    gradient is (g - nu xhat) / psi with nu of the steps before (equations 13 to 16): nu grows by
    (1 - alpha) of mean(g xhat) - nu mean(xhat^2).

    Args:
        channels: Of the input.
        alpha: What psi^2 and nu keep in a step.
        warmup: Steps that take the moments of their batch, and average them; at least 1.
        eps: Added to the second moment.
        momentum: Of `running_var`; None is the plain mean.
    """

    psi: Tensor
    nu: Tensor
    step: Tensor

    def __init__(
        self,
        channels: int,
        alpha: float = 0.9,
        warmup: int = 4,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__(channels, eps, momentum)
        if not 0 <= alpha < 1 or warmup < 1:
            raise ConfigError(
                f"alpha is {alpha} and warmup {warmup}; take 0 <= alpha < 1 <= warmup"
            )
        self.alpha, self.warmup = alpha, warmup
        for name in ("psi", "nu"):
            self.register_buffer(name, torch.zeros(channels), persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64), persistent=False)
        self.forget()

    def forget(self) -> None:
        """See `SecondMomentNorm.forget`."""
        self.psi.fill_(1)
        self.nu.zero_()
        self.step.zero_()

    def _for_step(self, second: Tensor) -> tuple[Tensor, Smooth]:
        step = int(self.step)
        self.step.add_(1)
        warms = step < self.warmup
        divisor = second if warms else self.psi.clone()
        self.psi.lerp_(second, 1 / (step + 1) if warms else 1 - self.alpha)

        def smooth(gradient: Tensor, xhat: Tensor, product: Tensor) -> Tensor:
            nu = product if warms else self.nu.clone()
            change = product - self.nu * _mean(xhat.square())
            self.nu.add_(change, alpha=1 - self.alpha)
            return nu

        return divisor, smooth
