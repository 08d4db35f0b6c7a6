"""Run an .onnx artifact in onnxruntime, on the CPU; see `edge.targets.tflite.runner`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import artifact
from edge.targets.tflite.runner import Runner, read_model, refused
from fedkit.core.errors import ExportError

_PROVIDERS = ["CPUExecutionProvider"]
_ERRORS_ONLY = 3
_TYPES = {"tensor(int8)": "int8", "tensor(int32)": "int32"}
_FUSE_INT8 = "session.qdqisint8allowed"
"""On x86-64 onnxruntime fuses the qdq form around int8 only if told so; else it computes floats."""


class OnnxRunner(Runner):
    """An .onnx model of ours in onnxruntime, all of whose optimisations are on."""

    _order = "NCHW"

    def __init__(self, model: Path | str | bytes, threads: int = 1) -> None:
        """Load a model.

        Args:
            model: Path of the artifact, or the bytes of an .onnx file.
            threads: Threads that the runtime may use.

        Raises:
            ExportError: onnxruntime is missing or refuses the model, the model does not give the
                scales of its ports, or the artifact does not match its manifest.
        """
        if importlib.util.find_spec("onnxruntime") is None:
            raise ExportError("onnxruntime is not installed; run `pip install onnxruntime`")
        content = model if isinstance(model, bytes) else read_model(Path(model))
        self._session = _session(content, threads)
        self._input = _port(self._session, self._session.get_inputs()[0])
        self._outputs = tuple(_port(self._session, each) for each in self._session.get_outputs())
        self._held = self._session.io_binding()
        nothing = np.zeros(self._input.shape, self._input.dtype)
        self._held.bind_cpu_input(self._input.name, nothing)
        for port in self._outputs:
            self._held.bind_output(port.name)

    def _classify(self, example: NDArray[Any]) -> Sequence[NDArray[Any]]:
        feed = {self._input.name: np.ascontiguousarray(example)}
        with refused("onnxruntime"):
            return [np.asarray(each) for each in self._session.run(None, feed)]

    def _invoke(self) -> None:
        self._session.run_with_iobinding(self._held)


def _session(content: bytes, threads: int) -> Any:
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry(_FUSE_INT8, "1")
    try:
        return ort.InferenceSession(content, options, providers=_PROVIDERS)
    except Exception as error:  # its errors have no class in common
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise ExportError(
            f"onnxruntime refuses the model of {len(content)} bytes: {reason}; the file is damaged "
            f"or made for another runtime: export it again"
        ) from error


def _port(session: Any, port: Any) -> artifact.Port:
    known = session.get_modelmeta().custom_metadata_map
    try:
        scale = float(known[f"{port.name}.scale"])
        zero_point = int(known[f"{port.name}.zero_point"])
    except (KeyError, ValueError) as error:
        raise ExportError(
            f"the model's metadata do not give scale and zero point of {port.name!r}; "
            f"export it with `export_onnx`"
        ) from error
    kind = _TYPES[port.type]
    return artifact.Port(port.name, kind, tuple(port.shape), scale, zero_point)
