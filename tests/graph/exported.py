"""torch's own exporter to ONNX."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edge.targets.onnx import emitter as emitter


def exported(
    model: nn.Module, shape: Sequence[int], opset: int = 17, symbolic: bool = True, **options: Any
) -> bytes:
    """Return the file that torch's own exporter makes."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is the older one
        torch.onnx.export(
            model,
            (torch.zeros(1, *shape),),
            file,  # type: ignore[arg-type]  # buffers are documented for this exporter
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            dynamic_axes={"x": {0: "n"}} if symbolic else None,
            **options,
        )
    return file.getvalue()
