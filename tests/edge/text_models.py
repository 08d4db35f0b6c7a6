"""Models of tokens as people write them, some of them trained for a moment."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedkit.nn.zoo import build_model

COUNT, TOKENS = 8, 11


def examples(n: int, count: int = COUNT, tokens: int = TOKENS) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(tokens, size=(n, count))


def trained(model: nn.Module, steps: int = 15) -> nn.Module:
    """Teach a model [n, tokens there are, count] that a token follows twice the one before."""
    tokens = model(torch.from_numpy(examples(2))).shape[1]
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for seed in range(steps):
        torch.manual_seed(seed)
        x = torch.randint(tokens, (16, COUNT))
        optimiser.zero_grad()
        F.cross_entropy(model(x), 2 * x % tokens).backward()
        optimiser.step()
    return model.eval()


def char_gpt() -> nn.Module:
    torch.manual_seed(0)
    return trained(build_model("char-gpt", (COUNT,), TOKENS))


class OwnScores(nn.Module):
    """Attention with scores that are filled, as older code has it, and three heads."""

    def __init__(self, fill: float = -1e9) -> None:
        super().__init__()
        self.fill = fill
        self.tokens, self.places = nn.Embedding(TOKENS, 12), nn.Embedding(COUNT, 12)
        self.projected, self.out = nn.Linear(12, 36), nn.Linear(12, TOKENS)
        self.register_buffer("seen", torch.ones(COUNT, COUNT).tril().bool())
        self.scale = nn.Parameter(torch.full((12,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.places(torch.arange(COUNT))
        query, key, value = (
            each.unflatten(-1, (3, 4)).transpose(1, 2) for each in self.projected(x).chunk(3, -1)
        )
        scores = query @ key.mT / 2
        assert isinstance(self.seen, Tensor)
        weights = scores.masked_fill(~self.seen, self.fill).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        logits: Tensor = self.out(x + self.scale * mixed).transpose(1, 2)
        return logits


class TorchsLayer(nn.Module):
    """torch's own layer with the mask that torch makes, and one class for the whole text."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, 8, padding_idx=0)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(COUNT)
        logits: Tensor = self.out(self.block(self.tokens(x), src_mask=mask)[:, -1])
        return logits


class Bag(nn.Module):
    """The mean of the vectors of all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.out = nn.Embedding(TOKENS, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.tokens(x).mean(1))
        return logits


MODELS: dict[str, Callable[[], nn.Module]] = {
    "char-gpt": char_gpt,
    "own scores": lambda: trained(OwnScores()),
    "torch's layer": TorchsLayer,
    "a bag": Bag,
}


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[kind]().eval()
