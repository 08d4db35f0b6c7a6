"""Texts as tokens of a language model: one for each character, or a file of others' text.

A text becomes windows of tokens, and the targets of a window are its tokens one step on, so that a
model that looks back learns to tell each next character.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import DataError
from fedkit.tasks.task import Examples

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""What is told apart: a new line and the printable characters of ASCII, in order."""

OTHER = len(CHARACTERS)
"""Token of all other characters."""

TOKENS = OTHER + 1

_TOKEN_OF_CODE = np.full(128, OTHER, np.int64)
_TOKEN_OF_CODE[[ord(each) for each in CHARACTERS]] = np.arange(OTHER)


def tokens_of(text: str) -> NDArray[np.int64]:
    """Return the token of each character, int64 [n]; a tab is a space."""
    plain = text.replace("\r\n", "\n").replace("\t", " ")
    codes = np.frombuffer(plain.encode("utf-32-le", "replace"), "<u4")
    return np.asarray(_TOKEN_OF_CODE[np.where(codes < len(_TOKEN_OF_CODE), codes, 0)])


def text_of(tokens: NDArray[np.int64]) -> str:
    """Return what tokens stand for; what is of no character here is a question mark."""
    return "".join((CHARACTERS + "?")[int(token)] for token in tokens)


def windows(texts: Mapping[str, str], length: int, test_share: float, test: bool) -> Examples:
    """Cut texts into windows.

    Args:
        texts: Name of who owns a text -> it.
        length: Tokens of a window, at least 1.
        test_share: Of each text, from its end, that is for the test, 0 to below 1.
        test: Whether those are wanted, or the others.

    Returns:
        Inputs and targets int64 [n, length], one step apart; owners are the names. What is left
        behind the last whole window of a text is left out.

    Raises:
        DataError: A length or share breaks its rule, or no text has a whole window.
    """
    if length < 1 or not 0 <= test_share < 1:
        raise DataError(
            f"length is {length} and test_share {test_share}; a window has at least 1 token, and a "
            "share is from 0 to below 1"
        )
    parts, owners = [], []
    for name, text in texts.items():
        tokens = tokens_of(text)
        first = len(tokens) - round(len(tokens) * test_share)
        tokens = tokens[first:] if test else tokens[:first]
        count = max(0, (len(tokens) - 1) // length)
        places = length * np.arange(count)[:, None] + np.arange(length + 1)
        parts.append(tokens[places])
        owners += [name] * count
    cut = np.concatenate([np.empty((0, length + 1), np.int64), *parts])
    if not len(cut):
        raise DataError(
            f"{len(texts)} text(s) of {', '.join(list(texts)[:3])} have no window of {length} "
            "tokens and one more; give longer texts, or shorter windows"
        )
    return Examples(cut[:, :-1], cut[:, 1:], np.array(owners))
