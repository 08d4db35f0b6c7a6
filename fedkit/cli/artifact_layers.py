"""What a report says of an artifact's layers, read from its graph; nothing of it is run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from edge import artifact
from edge.inspect import inspect
from edge.targets.interpreter import graph_of
from fedkit.report.reading import ArtifactLayer

_KEYS = [each.name for each in fields(ArtifactLayer)]


def layers(path: Path) -> list[ArtifactLayer]:
    """Return the layers of an artifact.

    Raises:
        ExportError: It, its manifest or its graph is missing or damaged.
    """
    found = artifact.load(path)
    ops = inspect(found, graph_of(found))
    return [ArtifactLayer(**{key: getattr(op, key) for key in _KEYS}) for op in ops]
