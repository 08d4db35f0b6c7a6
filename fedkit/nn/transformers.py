"""Transformers over patches of images and over steps of series, with a token of the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkit.nn.blocks import Norm
from fedkit.nn.linear_attention import SimplifiedLinearAttention
from fedkit.nn.norms.slab import ProgressiveNorm


class Sizes(NamedTuple):
    """Of a Transformer.

    Attributes:
        width: Of a token.
        heads: Among which it is divided.
        hidden: Values of a token between the two layers of a block.
        blocks: How many.
        norm_first: Whether each half of a block normalises what it reads, not what it adds to.
        biases: Whether queries, keys and values have some.
        causal: Whether tokens see none behind them.
        post_share: Share of the blocks, the first ones, that normalise what they add to though
            `norm_first` says otherwise: 0.25 is Mix-LN (Li et al., 2024, arXiv 2412.13795).
    """

    width: int
    heads: int
    hidden: int
    blocks: int
    norm_first: bool
    biases: bool
    causal: bool = False
    post_share: float = 0.0


class Attention(nn.Module):
    """Attention of all tokens to all, or to those before them, by heads."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, self.heads, self.causal = sizes.width, sizes.heads, sizes.causal
        self.query, self.key, self.value = (nn.Linear(width, width, sizes.biases) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return as many tokens as those given, [n, tokens, width]."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class TransformerBlock(nn.Module):
    """Attention, and two layers for each token, each with a norm and a shortcut.

    Args:
        sizes: Of all.
        norm: Makes a norm over the last axis.
        attention: Takes and returns [n, tokens, width]; None is that of all to all.
    """

    def __init__(
        self, sizes: Sizes, norm: Norm = nn.LayerNorm, attention: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.norm_first = sizes.norm_first
        self.norm, self.norm_of_tokens = norm(sizes.width), norm(sizes.width)
        self.attention = Attention(sizes) if attention is None else attention
        self.grow = nn.Linear(sizes.width, sizes.hidden)
        self.shrink = nn.Linear(sizes.hidden, sizes.width)

    def _of_tokens(self, x: Tensor) -> Tensor:
        out: Tensor = self.shrink(functional.gelu(self.grow(x)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return as many tokens as those given, [n, tokens, width]."""
        if self.norm_first:
            x = x + self.attention(self.norm(x))
            return x + self._of_tokens(self.norm_of_tokens(x))
        x = self.norm(x + self.attention(x))
        out: Tensor = self.norm_of_tokens(x + self._of_tokens(x))
        return out


def blocks_of(sizes: Sizes) -> nn.Sequential:
    """Return the blocks of a Transformer, each with its norms where `sizes` places them."""
    post = round(sizes.post_share * sizes.blocks)
    first = [sizes.norm_first and number >= post for number in range(sizes.blocks)]
    return nn.Sequential(*(TransformerBlock(sizes._replace(norm_first=each)) for each in first))


_PATCH, _PATCH_OF_SMALL, _SMALL = 4, 2, 16
_SPREAD = 0.5
"""Of what tells places apart: with the usual 0.02 a few epochs of SGD do not learn to."""


class TokenClassifier(nn.Module):
    """Tokens, what tells their places, blocks, and logits of the class's own token.

    Args:
        tokens: Makes [n, width, ...] of inputs.
        count: How many tokens that are.
        sizes: Of all else.
        classes: Logits.
    """

    def __init__(self, tokens: nn.Module, count: int, sizes: Sizes, classes: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.of_class = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.places = nn.Parameter(torch.zeros(1, 1 + count, sizes.width))
        for each in (self.of_class, self.places):
            nn.init.trunc_normal_(each, std=_SPREAD)
        self.blocks = blocks_of(sizes)
        self.norm = nn.LayerNorm(sizes.width)
        self.logits = nn.Linear(sizes.width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, classes]."""
        tokens = self.tokens(x).flatten(2).transpose(1, 2)
        all_of_class = self.of_class.expand(x.shape[0], -1, -1)
        tokens = self.blocks(torch.cat([all_of_class, tokens], 1) + self.places)
        out: Tensor = self.logits(self.norm(tokens[:, 0]))
        return out


def vit_tiny(shape: Sequence[int], classes: int) -> nn.Module:
    """A small ViT (Dosovitskiy et al., 2021): 4 blocks of width 48, 4 heads; 80 k parameters.

    Its patches are of 4x4 pixels, of 2x2 where height or width is below 16. It is of no paper:
    published ones are for larger images.
    """
    channels, height, width = shape
    patch = _PATCH_OF_SMALL if min(height, width) < _SMALL else _PATCH
    sizes = Sizes(48, 4, 96, 4, norm_first=True, biases=True)
    patches = nn.Conv2d(channels, sizes.width, patch, patch)
    return TokenClassifier(patches, (height // patch) * (width // patch), sizes, classes)


class PooledTokens(nn.Module):
    """Tokens, what tells their places, blocks, and logits of the mean over all tokens.

    Args:
        tokens: Makes [n, width, ...] of inputs.
        count: How many tokens that are.
        blocks: Take and return [n, tokens, width].
        norm: Of the last block's tokens.
        logits: Of their mean.
    """

    def __init__(
        self, tokens: nn.Module, count: int, blocks: nn.Module, norm: nn.Module, logits: nn.Linear
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.places = nn.Parameter(torch.zeros(1, count, logits.in_features))
        nn.init.trunc_normal_(self.places, std=_SPREAD)
        self.blocks, self.norm, self.logits = blocks, norm, logits

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, classes]."""
        tokens = self.tokens(x).flatten(2).transpose(1, 2)
        out: Tensor = self.logits(self.norm(self.blocks(tokens + self.places)).mean(1))
        return out


def slab_vit_tiny(shape: Sequence[int], classes: int) -> nn.Module:
    """`vit_tiny` with the norms and the attention of SLAB (Guo et al., 2024, arXiv 2405.11582).

    Its norms end as batch norms, which fold away, and its attention has no softmax. As in SLAB-PVT
    there is no token of the class; logits are of the mean over the tokens. 100 k parameters for
    32x32 pixels. It is of no paper: published ones are for larger images.
    """
    channels, height, width = shape
    patch = _PATCH_OF_SMALL if min(height, width) < _SMALL else _PATCH
    sizes = Sizes(48, 4, 96, 4, norm_first=True, biases=True)
    plane = height // patch, width // patch
    blocks = (
        TransformerBlock(
            sizes, ProgressiveNorm, SimplifiedLinearAttention(sizes.width, sizes.heads, plane)
        )
        for _ in range(sizes.blocks)
    )
    return PooledTokens(
        nn.Conv2d(channels, sizes.width, patch, patch),
        plane[0] * plane[1],
        nn.Sequential(*blocks),
        ProgressiveNorm(sizes.width),
        nn.Linear(sizes.width, classes),
    )


def kwt1(shape: Sequence[int], classes: int) -> nn.Module:
    """KWT-1 (Berg et al., 2021; keyword spotting): 609 k parameters at 40 channels, 98 steps.

    The paper says 607 k. Channels are the coefficients of a spectrum, and each step is a token.
    """
    channels, length = shape
    sizes = Sizes(64, 1, 256, 12, norm_first=False, biases=False)
    return TokenClassifier(nn.Conv1d(channels, sizes.width, 1), length, sizes, classes)


class NextToken(nn.Module):
    """Tokens and what tells their places, blocks that look back, and logits of each next token.

    Args:
        count: Tokens of an example.
        tokens: How many there are, and so many logits.
        sizes: Of all else.
    """

    def __init__(self, count: int, tokens: int, sizes: Sizes) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, sizes.width)
        self.places = nn.Parameter(torch.zeros(count, sizes.width))
        for each in (self.tokens.weight, self.places):
            nn.init.trunc_normal_(each, std=_SPREAD)
        self.blocks = blocks_of(sizes)
        self.norm = nn.LayerNorm(sizes.width)
        self.logits = nn.Linear(sizes.width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, tokens there are, count] of int64 [n, count]."""
        known = self.norm(self.blocks(self.tokens(x) + self.places))
        out: Tensor = self.logits(known).transpose(1, 2)
        return out


def char_gpt(shape: Sequence[int], classes: int) -> nn.Module:
    """A small GPT (Radford et al., 2018) over characters: 3 blocks of width 64, 4 heads.

    It is of no paper: published ones are for words. 168 k parameters at 97 characters, 64 of them
    in an example.
    """
    (count,) = shape
    sizes = Sizes(64, 4, 256, 3, norm_first=True, biases=True, causal=True)
    return NextToken(count, classes, sizes)
