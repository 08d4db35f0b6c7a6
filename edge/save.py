"""An int8 graph as an artifact of any target, complete or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge import arena, artifact, graph_file
from edge.quantize import truth
from edge.raw import DETAIL, check_raw_input
from edge.targets.export_target import ports
from edge.targets.registry import find_row, runtimes
from fedkit.graph import ir
from fedkit.graph.ops.registry import tokens_of
from fedkit.preprocess.raw_input import RawInput


def save(
    target: str,
    graph: ir.Graph,
    examples: ir.Inputs,
    path: Path,
    provenance: Mapping[str, Any],
    raw_input: RawInput | None = None,
    **options: Any,
) -> artifact.Artifact:
    """Save an int8 graph.

    Args:
        target: One of `edge.targets.registry.NAMES`.
        graph: As `edge.export.int8_graph` makes it.
        examples: float32 [n, c, h, w], [n, c, length] or [n, f], as torch takes them; what is made
            is tried on some, or brings them as tests of its own.
        path: Where to; nothing may be there.
        provenance: How it was made.
        raw_input: What its inputs are made of; C then makes them itself.
        **options: Of this target alone.

    Raises:
        ExportError: The target cannot express the graph, a package is missing, or `path` is taken;
            or the graph takes something else than the raw input makes.
    """
    artifact.check_free(path)
    row = find_row(target)
    if raw_input is not None:
        check_raw_input(raw_input, graph)
        options |= {"raw_input": raw_input} if row.makes_inputs else {}
    made = row.make(graph, examples, path, **options)
    inputs, outputs = ports(graph, made.file_shape)
    about: dict[str, Any] = {
        "target": made.kind,
        "inputs": inputs,
        "outputs": outputs,
        "provenance": provenance,
        "details": {**_details(graph, made.kind), **made.details, **_raw(raw_input)},
    }
    if isinstance(made.content, bytes):
        return artifact.save(made.content, path, **about)
    return artifact.save_folder(made.content, path, **about)


def save_graph(
    graph: ir.Graph, path: Path, provenance: Mapping[str, Any], raw_input: RawInput | None = None
) -> artifact.Artifact:
    """Save an int8 graph itself, from which every target can be made; errors as for `save`."""
    artifact.check_free(path)
    if raw_input is not None:
        check_raw_input(raw_input, graph)
    inputs, outputs = ports(graph)
    return artifact.save(
        graph_file.to_bytes(graph),
        path,
        target="graph",
        inputs=inputs,
        outputs=outputs,
        provenance=provenance,
        details={**_details(graph, "graph"), **_raw(raw_input)},
    )


def _raw(raw_input: RawInput | None) -> dict[str, Any]:
    return {} if raw_input is None else {DETAIL: raw_input.to_json()}


def _details(graph: ir.Graph, kind: str) -> dict[str, Any]:
    details: dict[str, Any] = {
        "rounding": runtimes().get(kind, {}),
        "activation_bytes": arena.activation_bytes(graph),
    }
    if tokens := tokens_of(graph):
        details["tokens"] = tokens
    if graph.series:
        details["series"] = graph.series
    if graph.origin is not None:
        details["float_error"] = asdict(truth.of(graph.origin, graph.outputs))
    return details
