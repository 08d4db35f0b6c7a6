"""Divide by a constant where a norm over the channels divides by their deviation.

The norm is linear then: its mean and weight are one matrix, or, of an RMS norm, a factor for each
channel, and both fold into the layers behind it. A model is fine-tuned for this by
`fedkit.nn.norms.removal`, whose frozen norms are such matrices already (Heimersheim, 2024, "You can
remove GPT2's LayerNorm by fine-tuning"). What a norm no longer does is to tame an input that is far
from all that was seen, so each frozen norm leaves a guard: see `edge.quantize.guard`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edge.passes.affines import Floats
from edge.passes.rewrite import Hints, Place, Rewrite
from edge.passes.unread import constant, with_changed
from fedkit.graph import ir
from fedkit.graph.interpret import FloatArray, evaluate
from fedkit.graph.ops.norms import OfPlace

MOST_SPREAD = 4.0
"""How many times the least deviation seen the largest may be, for a norm that is frozen here."""

_NORM = "channel_norm"
_FEWEST_CHANNELS = 3  # so that a matrix is that of a frozen norm by no accident
_NEAR = 1e-5


@dataclass(frozen=True)
class _Match:
    norm: ir.Op
    deviation: float


def deviations(x: FloatArray, centred: bool) -> Floats:
    """Return the deviation over the channels of each place, float64 [n, ...], of [n, ..., c]."""
    values = x.astype(np.float64)
    values = values - centred * values.mean(-1, keepdims=True)
    return np.asarray(np.sqrt(np.square(values).mean(-1)))


def deviations_of(
    graph: ir.Graph, examples: FloatArray, names: Mapping[str, bool]
) -> dict[str, Floats]:
    """Return value -> its deviations on examples [n, ...]; `names` says which are centred."""
    found: dict[str, Floats] = {}

    def look(name: str, value: FloatArray) -> None:
        if name in names:
            found[name] = deviations(value, names[name])

    evaluate(graph, examples, look)
    return found


def watched(graph: ir.Graph) -> ir.Graph:
    """Return a graph with a guard, of any range, for what each frozen norm of the model reads."""
    found = {op.inputs[0]: ir.Guard() for op in graph.ops if _is_frozen(graph, op)}
    return replace(graph, guards={**found, **graph.guards})


def _is_frozen(graph: ir.Graph, op: ir.Op) -> bool:
    """Whether a layer takes the mean over the channels off, and scales each by itself."""
    if op.kind not in ("conv2d", "linear") or op.window not in (None, ir.Window()):
        return False
    weight = graph.constant(op.inputs[1])
    matrix = weight.reshape(len(weight), -1).astype(np.float64)
    channels = matrix.shape[1]
    if len(matrix) != channels or channels < _FEWEST_CHANNELS:
        return False
    scale = np.diag(matrix) * channels / (channels - 1)
    wanted = scale[:, None] * _centring(channels)
    return bool(scale.any() and np.abs(matrix - wanted).max() <= _NEAR * np.abs(scale).max())


def _centring(channels: int) -> Floats:
    return np.asarray(np.eye(channels) - 1 / channels)


def _places(graph: ir.Graph, given: Hints) -> Iterator[Place]:
    norms = {op.inputs[0]: _how(op).centred for op in graph.ops if op.kind == _NORM}
    seen: Mapping[str, Floats] = {}
    if given.examples is not None and norms:
        seen = deviations_of(graph, given.examples, norms)
    for op in graph.ops:
        if op.kind == _NORM:
            yield _place(op, seen)


def _how(op: ir.Op) -> OfPlace:
    assert isinstance(op.attributes, OfPlace)  # the verifier's rule
    return op.attributes


def _place(norm: ir.Op, seen: Mapping[str, Floats]) -> Place:
    where = norm.source or norm.output
    if norm.inputs[0] not in seen:
        why_not = "it needs examples, to see by what the norm divides"
        return Place(norm.output, where, why_not)
    spread = np.sqrt(seen[norm.inputs[0]] ** 2 + _how(norm).eps)
    low, high = float(spread.min()), float(spread.max())
    if not high <= MOST_SPREAD * low:
        why_not = (
            f"it divides by {low:.3g} to {high:.3g}, {high / low:.1f} times as much (at most "
            f"{MOST_SPREAD} may be); fine-tune the model with fedkit.nn.norms.removal"
        )
        return Place(norm.output, where, why_not)
    return Place(norm.output, where, found=_Match(norm, float(1 / np.mean(1 / spread))))


def _transform(graph: ir.Graph, found: _Match) -> ir.Graph:
    norm = found.norm
    gamma, beta = (graph.constant(name).astype(np.float64) for name in norm.inputs[1:])
    scale = gamma / found.deviation
    shift = constant(graph, f"{norm.output}.shift", beta)
    is_map = len(graph.tensors[norm.output].shape) == 4
    centred = _how(norm).centred
    matrix = scale[:, None] * _centring(len(scale)) if centred else scale
    matrix = matrix[:, None, None] if centred and is_map else matrix
    weight = constant(graph, f"{norm.output}.matrix", matrix)
    kind = ("conv2d" if is_map else "linear") if centred else "affine"
    made = ir.Op(
        kind,
        (norm.inputs[0], weight.name, shift.name),
        norm.outputs,
        ir.Window() if kind == "conv2d" else None,
        norm.activation if centred else "none",
        norm.source,
    )
    guards = {**graph.guards, norm.inputs[0]: ir.Guard(centred=centred)}
    changed = with_changed(graph, {norm.output: made}, (weight, shift))
    return replace(changed, guards=guards)


REWRITE = Rewrite(
    "ln_freeze",
    "a layer or RMS norm divides by a constant, with a guard on its range",
    "examples are given, on which what the norm divides by differs by a factor of four at most",
    exact=False,
    places=_places,
    transform=_transform,
    opt_in=True,
    caution="a model that was not fine-tuned for it loses accuracy",
)
