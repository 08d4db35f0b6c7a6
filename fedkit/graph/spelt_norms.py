"""Norms that a model spells out: (x - mean) / sqrt(variance + eps), or x / sqrt(mean of squares).

A root and a division of activations are no ops of the graph; a norm over the channels is. So a
reader looks for norms before it reads, and leaves out what nothing but a norm reads.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

Ref = Hashable
"""A value of the model."""


@dataclass(frozen=True)
class Said:
    """What an op says.

    Attributes:
        kind: "add", "sub", "mul", "div", "power", "root", "inverse root", "inverse", "mean" or
            "variance", which divides by the count.
        operands: Values; a constant that is one number is a float.
        dims: Of a mean or variance, from 0 on: what it is over, and keeps as 1.
    """

    kind: str
    operands: tuple[Ref, ...]
    dims: tuple[int, ...] = ()


Look = Callable[[Ref], Said | None]
"""What the op says that gives a value; None of others, and of what keeps no dimensions."""


@dataclass(frozen=True)
class SpeltNorm:
    """A norm without weight and bias.

    Attributes:
        x: What is normalised.
        dims: Over which dimensions.
        eps: Added to the variance.
        centred: Whether the mean is taken off; else it is an RMS norm.
        inner: Values between, that are no others' if nothing else reads them.
    """

    x: Ref
    dims: tuple[int, ...]
    eps: float
    centred: bool
    inner: frozenset[Ref] = field(default_factory=frozenset)


def spelt_norms(
    ends: Iterable[Ref], look: Look, readers: Callable[[Ref], Iterable[Ref]]
) -> Mapping[Ref, SpeltNorm]:
    """Return each value that is a spelt norm -> that norm, of which others read no inner value.

    Args:
        ends: Values that may be.
        look: See `Look`.
        readers: A value -> the values that are computed from it; what the caller reads too.
    """
    found: dict[Ref, SpeltNorm] = {}
    for end in ends:
        norm = _norm(end, look)
        if norm and all({*readers(each)} <= norm.inner | {end} for each in norm.inner):
            found[end] = norm
    return found


def _norm(end: Ref, look: Look) -> SpeltNorm | None:
    for value, spread in _quotients(end, look):
        if (found := _of(value, spread, look)) is not None:
            return found
    return None


def _quotients(end: Ref, look: Look) -> list[tuple[Ref, list[Ref]]]:
    """Return each way to see a value as another, divided by a root; the values of that, outermost.

    The last of them is what the root is of.
    """
    said = look(end)
    if said is None or said.kind not in ("div", "mul"):
        return []
    left, right = said.operands
    if said.kind == "div":
        root = _operand(right, "root", look)
        return [] if root is None else [(left, [right, root])]
    ways = []
    for value, inverse in ((left, right), (right, left)):
        root = _operand(inverse, "inverse", look)
        if (inner := _operand(inverse, "inverse root", look)) is not None:
            ways.append((value, [inverse, inner]))
        elif (inner := _operand(root, "root", look)) is not None:
            ways.append((value, [inverse, root, inner]))
    return ways


def _operand(value: Ref | None, kind: str, look: Look) -> Ref | None:
    said = None if value is None else look(value)
    return said.operands[0] if said is not None and said.kind == kind else None


def _of(value: Ref, spread: list[Ref], look: Look) -> SpeltNorm | None:
    """Return the norm that divides a value by the root of the last of some values."""
    said = look(spread[-1])
    if said is None or said.kind != "add":
        return None
    variance, eps = sorted(said.operands, key=lambda each: isinstance(each, float))
    if not isinstance(eps, float) or isinstance(variance, float):
        return None
    inner = {*spread, variance}
    centred = _centred(value, look)
    of = look(variance)
    if of is None:
        return None
    if of.kind == "variance":
        fits = centred is not None and (of.operands[0], of.dims) == centred[:2]
    else:
        squared = _squared(of, look, inner)
        fits = squared is not None and (squared == value or _same(squared, centred, look, inner))
    if not fits:
        return None
    if centred is None or (of.kind == "mean" and centred[1] != of.dims):
        return SpeltNorm(value, of.dims, eps, False, frozenset(inner))
    return SpeltNorm(centred[0], of.dims, eps, True, frozenset({*inner, value, centred[2]}))


def _centred(value: Ref, look: Look) -> tuple[Ref, tuple[int, ...], Ref] | None:
    """Return what a value is less its mean, the dimensions of that, and the mean."""
    said = look(value)
    if said is None or said.kind != "sub":
        return None
    x, mean = said.operands
    of = look(mean)
    if of is None or of.kind != "mean" or of.operands[0] != x:
        return None
    return x, of.dims, mean


def _squared(said: Said, look: Look, inner: set[Ref]) -> Ref | None:
    """Return the value of whose squares a mean is; the squares are noted as inner."""
    square = look(said.operands[0]) if said.kind == "mean" else None
    if square is None:
        return None
    left, right = square.operands
    is_square = (square.kind, right) == ("power", 2.0) or (square.kind == "mul" and left == right)
    inner.add(said.operands[0])
    return left if is_square else None


def _same(
    value: Ref, centred: tuple[Ref, tuple[int, ...], Ref] | None, look: Look, inner: set[Ref]
) -> bool:
    """Whether a value is the same less its mean, computed again; then it is inner."""
    other = _centred(value, look)
    if other is None or centred is None or other[:2] != centred[:2]:
        return False
    inner.update({value, other[2]})
    return True
