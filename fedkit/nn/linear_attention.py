"""Attention whose cost grows with the number of tokens, not with its square.

Where a softmax needs the weight of each token for each other one, these give queries and keys
values that are not below 0, and a token gets (q (k^T v)) / (q sum(k)): the sums over all tokens are
taken once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedkit.core.errors import ConfigError

_LEAST = 1e-6
"""What a divisor is at least, as in the papers' code."""


class SimplifiedLinearAttention(nn.Module):
    """SLA of SLAB (Guo et al., 2024, arXiv 2405.11582): ReLU for the softmax, and a convolution.

    q = relu(query), k = relu(key + places), out = q (k^T v) / (q sum(k)) + depthwise(v). Here each
    channel has a kernel of its own in the convolution; the paper's code has one for all heads.

    Args:
        width: Of a token, which `heads` divide.
        heads: How many.
        plane: (height, width) of the map whose pixels the tokens are, row by row.
        biases: Whether queries, keys and values have some.
        kernel: Of the convolution.

    Raises:
        ConfigError: The heads do not divide the width.
    """

    def __init__(
        self, width: int, heads: int, plane: tuple[int, int], biases: bool = True, kernel: int = 5
    ) -> None:
        super().__init__()
        _check(width, heads)
        self.heads, self.plane = heads, plane
        self.query, self.key, self.value = (nn.Linear(width, width, biases) for _ in range(3))
        self.places = nn.Parameter(torch.zeros(plane[0] * plane[1], width))
        self.depthwise = nn.Conv2d(width, width, kernel, padding="same", groups=width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return as many tokens as those given, [n, tokens, width]."""
        value = self.value(x)
        query, key = self.query(x).relu(), (self.key(x) + self.places).relu()
        q, k, v = (_by_heads(each, self.heads) for each in (query, key, value))
        near = self.depthwise(value.transpose(1, 2).unflatten(2, self.plane))
        mixed = _mixed(q, k, v).transpose(1, 2).flatten(2) + near.flatten(2).transpose(1, 2)
        out: Tensor = self.out(mixed)
        return out


class NormAwareAttention(nn.Module):
    """The attention of NaLaFormer (Meng et al., 2025, arXiv 2506.21137).

    A query's direction q / |q| is raised to the power 3 (1/2 + tanh |q|), so that a long query
    looks at fewer tokens, as it does in a softmax; keys are cubed. Parts above and below 0 are
    values of their own, none of which is below 0. As in the authors' code values have a convolution
    beside it, and SiLU(gate) times a layer norm follows. Left out are the rotations of places.

    It trains on torch alone, and exports refuse it by name: powers and lengths of activations are
    no ops of integers.

    Args:
        width: Of a token, which `heads` divide.
        heads: How many.
        plane: (height, width) of the map whose pixels the tokens are, row by row.

    Raises:
        ConfigError: The heads do not divide the width.
    """

    def __init__(self, width: int, heads: int, plane: tuple[int, int]) -> None:
        super().__init__()
        _check(width, heads)
        self.heads, self.plane = heads, plane
        self.query, self.key, self.value, self.gate = (nn.Linear(width, width) for _ in range(4))
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return as many tokens as those given, [n, tokens, width]."""
        value = self.value(x)
        q, k, v = (_by_heads(each, self.heads) for each in (self.query(x), self.key(x), value))
        directed = _OPS.directed if torch.compiler.is_exporting() else _directed
        mixed = _mixed(directed(q), _halves(k**3), v).transpose(1, 2).flatten(2)
        near = self.depthwise(value.transpose(1, 2).unflatten(2, self.plane))
        mixed = self.norm(mixed + near.flatten(2).transpose(1, 2))
        out: Tensor = self.out(mixed * nn.functional.silu(self.gate(x)))
        return out


def _check(width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise ConfigError(f"{heads} heads do not divide a width of {width}; take a divisor of it")


def _by_heads(x: Tensor, heads: int) -> Tensor:
    """Return [n, heads, tokens, size] of [n, tokens, width]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return q (k^T v) / (q sum(k)), [n, heads, tokens, size]."""
    turned = k.transpose(-2, -1)
    quotient = _OPS.quotient if torch.compiler.is_exporting() else _quotient
    out: Tensor = quotient(q @ (turned @ v), q @ turned.sum(-1, keepdim=True), _LEAST)
    return out


def _halves(x: Tensor) -> Tensor:
    """Return what is above 0 and what is below, behind each other along the last axis."""
    return torch.cat([x.relu(), (-x).relu()], -1)


def _directed(q: Tensor) -> Tensor:
    length = q.norm(dim=-1, keepdim=True)
    direction = _halves(q) / length.clamp(min=_LEAST)
    power = 3 * (0.5 + torch.tanh(length))
    # A power of 0 has no gradient that is finite.
    return torch.where(direction > 0, direction.clamp(min=_LEAST) ** power, direction)


def _quotient(x: Tensor, y: Tensor, least: float) -> Tensor:
    return x / y.clamp(min=least)


# As ops, so that a traced model shows one op for each.

_LIBRARY: Any = torch.library.Library("fedkit", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("quotient(Tensor x, Tensor y, float least) -> Tensor")
_LIBRARY.define("directed(Tensor q) -> Tensor")
_LIBRARY.impl("quotient", _quotient, "CompositeExplicitAutograd")
_LIBRARY.impl("directed", _directed, "CompositeExplicitAutograd")
_OPS: Any = torch.ops.fedkit
