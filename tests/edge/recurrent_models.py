"""Models with LSTM and GRU layers, in the forms in which people write them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

STEPS, CHANNELS, SIZE = 6, 5, 4
SHAPE = (STEPS, CHANNELS)


class Recurrent(nn.Module):
    """A layer over [n, steps, channels], and logits of what it gives.

    Args:
        kind: The layer's class.
        gives: What the logits are of: the last state, the last cell, the last step or all steps.
        **how: Of the layer.
    """

    def __init__(self, kind: Any, gives: str = "state", **how: Any) -> None:
        super().__init__()
        self.gives = gives
        self.first = how.get("batch_first", False)
        self.steps = kind(CHANNELS, SIZE, **how)
        both = 2 if how.get("bidirectional") and gives in ("step", "steps") else 1
        self.logits = nn.Linear(both * SIZE, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps, last = self.steps(x if self.first else x.transpose(0, 1))
        states, cells = last if isinstance(last, tuple) else (last, last)
        steps = steps if self.first else steps.transpose(0, 1)
        if self.gives == "steps":
            every: Tensor = self.logits(steps).transpose(1, 2)
            return every
        found = {"state": states[-1], "cell": cells[0], "step": steps[:, -1]}[self.gives]
        logits: Tensor = self.logits(found)
        return logits


HOWS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers": {"num_layers": 2},
    "both ways": {"bidirectional": True},
    "two layers, both ways": {"num_layers": 2, "bidirectional": True},
    "without biases": {"bias": False},
}


def kinds() -> Iterator[str]:
    """Yield the name of each model."""
    for kind, gives, how in itertools.product(
        ("LSTM", "GRU"), ("state", "cell", "step", "steps"), HOWS
    ):
        if kind == "LSTM" or gives != "cell":
            yield f"{kind}, {gives}, {how}"


def made(name: str, batch_first: bool = True) -> Recurrent:
    """Return a model by its name, with weights that are always the same."""
    kind, gives, how = name.split(", ", 2)
    torch.manual_seed(0)
    layer = {"LSTM": nn.LSTM, "GRU": nn.GRU}[kind]
    model = Recurrent(layer, gives, batch_first=batch_first, **HOWS[how])
    return model.eval()
