"""What an artifact's inputs are made of, as its manifest says."""

from __future__ import annotations

import math

import numpy as np

from edge.artifact import Artifact, manifest_path
from fedkit.core.errors import ConfigError, ExportError
from fedkit.graph import ir
from fedkit.preprocess.raw_input import RawInput
from fedkit.preprocess.records import of_record

DETAIL = "raw_input"
"""Of a manifest, where it is known."""


def raw_input_of(found: Artifact) -> RawInput | None:
    """Return what an artifact's manifest says of its raw input; None where it says nothing.

    Raises:
        ExportError: It says something that is not known here.
    """
    if DETAIL not in found.details:
        return None
    try:
        return of_record(found.detail(DETAIL, dict))
    except ConfigError as error:
        raise ExportError(
            f"the manifest {manifest_path(found.path)} is damaged, or of a later version: {error}"
        ) from error


def check_raw_input(raw_input: RawInput, graph: ir.Graph) -> None:
    """Check that a graph takes what a raw input becomes.

    Raises:
        ExportError: It takes another shape, or gives something else than one value per class.
    """
    shape = graph.tensors[graph.inputs[0]].shape
    wanted = ir.to_graph_layout(np.empty((1, *raw_input.shape), np.float32)).shape
    if shape != wanted:
        raise ExportError(
            f"the model takes {shape}, and its raw input makes {wanted}; export it with what it "
            "was trained on"
        )
    sizes = [math.prod(graph.tensors[name].shape) for name in graph.outputs]
    if len(sizes) != 1:
        raise ExportError(
            f"the model has {len(sizes)} outputs, and one that tells what it hears or sees has "
            "one; export it with that one, or without a raw input"
        )
    try:
        raw_input.check_outputs(sizes[0])
    except ConfigError as error:
        raise ExportError(str(error)) from error
