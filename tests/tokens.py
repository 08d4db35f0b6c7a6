"""Models of people whose layers are over the last axis: tokens, and maps with channels last."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mixer(nn.Module):
    """Patches of an image as tokens; layers over tokens and over channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 6, 4, 4)
        self.token_in, self.token_out = nn.Linear(6, 5), nn.Linear(5, 6)
        self.channel_in, self.channel_out = nn.Linear(6, 9), nn.Linear(9, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.token_out(F.gelu(self.token_in(x.transpose(1, 2)))).transpose(1, 2)
        x = x + self.channel_out(F.relu(self.channel_in(x)))
        logits: Tensor = self.head(x.mean(1))
        return logits


class Next(nn.Module):
    """A block of a ConvNeXt: filters per channel, then layers with channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 4, 4)
        self.filters = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.grow, self.shrink = nn.Linear(6, 11), nn.Linear(11, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.shrink(F.gelu(self.grow(self.filters(x).permute(0, 2, 3, 1))))
        logits: Tensor = self.head((x + y.permute(0, 3, 1, 2)).mean((-2, -1)))
        return logits


class NormedNext(nn.Module):
    """A block of a ConvNeXt with its norm, and an RMS norm of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 4, 4)
        self.filters = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.scale = nn.LayerNorm(6, eps=1e-3), nn.RMSNorm(6)
        self.grow, self.shrink = nn.Linear(6, 11), nn.Linear(11, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.shrink(F.gelu(self.grow(self.norm(self.filters(x).permute(0, 2, 3, 1)))))
        tokens = self.scale((x + y.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2))
        logits: Tensor = self.head(tokens.mean(1))
        return logits


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mixer": (Mixer, (1, 8, 12)),
    "next": (Next, (1, 12, 8)),
    "normed": (NormedNext, (1, 12, 8)),
}
NORMED = "normed"
"""Of those, the one that the integer engine does not train."""


class FusedHeads(nn.Module):
    """Attention as timm has it: one layer gives queries, keys and values."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.all, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, size = x.shape
        parts = self.all(x).reshape(n, tokens, 3, self.heads, size // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (query * (size // self.heads) ** -0.5) @ key.transpose(-2, -1)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(n, tokens, size)
        result: Tensor = self.out(mixed)
        return result


class OwnHeads(nn.Module):
    """Attention of three layers, as textbooks have it."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, size = x.shape
        query, key, value = (
            layer(x).view(n, tokens, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = torch.matmul(query, key.transpose(2, 3)) / (size // self.heads) ** 0.5
        mixed = F.softmax(scores, dim=-1) @ value
        result: Tensor = self.out(mixed.transpose(1, 2).contiguous().view(n, tokens, size))
        return result


class OneCall(OwnHeads):
    """The same, by torch's function."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


class AttentionLayer(nn.Module):
    """The same, by torch's layer."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(size, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x, x, x, need_weights=False)[0]
        return result


class SmallTransformer(nn.Module):
    """Patches, a token of the class or a mean, places, and blocks with norms before."""

    def __init__(self, attention: Callable[[int, int], nn.Module], has_class: bool = True) -> None:
        super().__init__()
        size, tokens = 8, 6
        self.patches = nn.Conv2d(1, size, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, size)) if has_class else None
        self.places = nn.Parameter(0.1 * torch.randn(1, tokens + has_class, size))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(3))
        self.attention = attention(size, 2)
        self.grow, self.shrink = nn.Linear(size, 12), nn.Linear(12, size)
        self.head = nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.places
        x = x + self.attention(self.norms[0](x))
        x = x + self.shrink(F.gelu(self.grow(self.norms[1](x))))
        x = self.norms[2](x)
        result: Tensor = self.head(x.mean(1) if self.token is None else x[:, 0])
        return result


def encoder() -> nn.Module:
    """Return a Transformer whose block is torch's own."""
    layer = nn.TransformerEncoderLayer(6, 2, 8, 0.0, "gelu", batch_first=True)
    return nn.Sequential(nn.Linear(3, 6), layer, nn.Flatten(), nn.Linear(24, 3))


ATTENTION: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "fused heads": (lambda: SmallTransformer(FusedHeads), (1, 8, 12)),
    "own heads": (lambda: SmallTransformer(OwnHeads, has_class=False), (1, 8, 12)),
    "one call": (lambda: SmallTransformer(OneCall), (1, 8, 12)),
    "layer": (lambda: SmallTransformer(AttentionLayer, has_class=False), (1, 8, 12)),
    "encoder": (encoder, (4, 3)),
}


def made(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a model with weights of its own, and the shape of an example."""
    torch.manual_seed(0)
    make, shape = {**KINDS, **ATTENTION}[kind]
    return make(), shape
