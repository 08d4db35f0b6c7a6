"""Networks with gates that go over steps, one after the other: an LSTM of text, a GRU of series."""

from __future__ import annotations

from torch import Tensor, nn


class CharLstm(nn.Module):
    """Tokens, an LSTM, and logits of each next token.

    Args:
        tokens: How many there are, and so many logits.
        width: Of a token.
        size: Of the LSTM's states.
    """

    def __init__(self, tokens: int, width: int, size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, width)
        self.steps = nn.LSTM(width, size, batch_first=True)
        self.logits = nn.Linear(size, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, tokens there are, count] of int64 [n, count]."""
        states, _ = self.steps(self.tokens(x))
        out: Tensor = self.logits(states).transpose(1, 2)
        return out


class SeriesGru(nn.Module):
    """A GRU over the steps of a series, and logits of its last state.

    Args:
        channels: Of a step.
        size: Of the GRU's states.
        classes: Logits.
    """

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.steps = nn.GRU(channels, size, batch_first=True)
        self.logits = nn.Linear(size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, classes] of float32 [n, channels, steps]."""
        _, states = self.steps(x.transpose(1, 2))
        out: Tensor = self.logits(states[-1])
        return out


def char_lstm(count: int, classes: int) -> nn.Module:
    """A small LSTM over characters: 37 k parameters at 97 characters, of any number in an example.

    It is of no paper: that of LEAF (Caldas et al., 2018) for Shakespeare has two layers of 256.
    """
    del count
    return CharLstm(classes, 32, 64)


def har_gru(channels: int, classes: int) -> nn.Module:
    """A GRU of 48 states over sensors: 8 k parameters at 6 channels, 4 activities.

    It is of no paper: it is the smallest form in which activities are told step by step.
    """
    return SeriesGru(channels, 48, classes)
