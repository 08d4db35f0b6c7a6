"""Passes that are a table of steps for the kernels, with what Python runs between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Run = TypeVar("Run", bound=Callable[..., Any])


@dataclass(frozen=True)
class Piece(Generic[Run]):
    """Entries `first` to `last` - 1 of a table, or what Python runs instead.

    Attributes:
        op: Before whose backward pass it is; None: in the middle of one, or of none.
    """

    first: int
    last: int
    run: Run | None = None
    op: int | None = None


def joined(pieces: Iterable[Piece[Run]], through: bool = True) -> list[Piece[Run]]:
    """Return pieces of a table that follow each other as one, unless Python runs between them.

    Args:
        pieces: In order.
        through: Whether to join those of different ops too; False: what begins an op stays apart.
    """
    found = list[Piece[Run]]()
    for piece in pieces:
        begins = piece.op is not None and not through
        if piece.run is not None or begins:
            found.append(piece)
        elif piece.last > piece.first:
            follows = bool(found) and found[-1].run is None
            before = found.pop() if follows else piece
            found.append(Piece(before.first, piece.last, op=before.op))
    return found
