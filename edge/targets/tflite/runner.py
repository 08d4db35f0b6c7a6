"""Run an artifact in a runtime: for self-checks, parity tests and host latency.

What all runners do is here, and the one for .tflite; `edge.targets.onnx.runner` has the one for
.onnx.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edge import artifact
from fedkit.core.errors import ExportError
from fedkit.core.files import read_whole
from fedkit.graph import ir
from fedkit.graph.ops.embedding import MOST_TOKENS, check_tokens

Runtime = Literal["ai-edge-litert", "tflite-runtime"]

_MODULES: dict[str, str] = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
}
_WARM_UP = 10
_WARM_UP_SECONDS = 0.005
"""Longer than what ran before slows a processor down: after wide instructions of another runtime a
model of 5 us took 8 for as long as it was timed."""


def available_runtimes() -> tuple[Runtime, ...]:
    """Return the runtimes that can run here, the preferred one first."""
    return tuple(name for name in get_args(Runtime) if _obstacle(name) is None)


def _obstacle(runtime: str) -> str | None:
    """Return why a runtime cannot run here, or None."""
    if runtime not in _MODULES:
        return f"it is unknown; choose from {', '.join(_MODULES)}"
    if importlib.util.find_spec(_MODULES[runtime].split(".")[0]) is None:
        return f"it is not installed; run `pip install {runtime}`"
    # It imports under numpy 2, but its Interpreter() then fails on numpy's old binary interface.
    if runtime == "tflite-runtime" and int(np.__version__.split(".")[0]) >= 2:
        return f"it needs numpy below 2, and numpy is {np.__version__}"
    return None


class Runner(ABC):
    """A model in a runtime, fed one example at a time as on a device."""

    _order: ClassVar[Literal["NHWC", "NCHW"]]
    """How the file lays out images."""

    _input: artifact.Port
    _outputs: tuple[artifact.Port, ...]

    series: Collection[str] = ()
    """Outputs that `predict` gives as [n, c, length]; see `fedkit.graph.ir.Graph`."""

    tokens: int = 0
    """How many tokens there are, where inputs are of such and the manifest tells it."""

    most_examples: ClassVar[int | None] = None
    """Of a test set, where an example takes so long that not all of it can be run."""

    @abstractmethod
    def _classify(self, example: NDArray[Any]) -> Sequence[NDArray[Any]]:
        """Return the outputs [1, ...] for one input [1, ...] of the file's layout and type."""

    @abstractmethod
    def _invoke(self) -> None:
        """Run the model once, on what it holds."""

    def predict(self, inputs: ir.Inputs) -> Any:
        """Classify float inputs.

        Args:
            inputs: float32 [n, c, h, w], [n, c, length] or [n, f], as torch takes them; of a model
                of tokens whole numbers [n, tokens].

        Returns:
            float32 [n, classes], dequantised logits; of a model that returns a map [n, c, h, w], of
            one that returns a series [n, c, length], as torch has them, whatever the file has. A
            series is known by the manifest: a runner of bytes, or of a file that `open_runner` has
            not opened, gives [n, c, 1, length]. Of a model with several outputs a tuple of such
            arrays, in their order.

        Raises:
            ExportError: The inputs do not fit the model.
        """
        found = self._run(_quantize(inputs, self._input))
        real = (_dequantize(*each) for each in zip(found, self._outputs, strict=True))
        return _alone(tuple(real))

    def predict_int8(self, inputs: ir.Codes) -> Any:
        """Classify inputs that are quantised already.

        Args:
            inputs: int8 [n, c, h, w], [n, c, length] or [n, f], at the scale of the model's input;
                int32 [n, tokens] of a model of tokens.

        Returns:
            int8 [n, classes], [n, c, h, w] or [n, c, length] as `predict` does, at the scale of the
            model's output; of several outputs a tuple.

        Raises:
            ExportError: The inputs do not fit the model.
        """
        return _alone(self._run(inputs))

    def outputs_int8(self, inputs: ir.Codes) -> tuple[NDArray[np.int8], ...]:
        """Return what `predict_int8` does, as a tuple of one output too."""
        return self._run(inputs)

    def quantize(self, inputs: ir.Inputs) -> ir.Codes:
        """Return float32 inputs as the int8 values that `predict` feeds to the model.

        Of tokens they are int32, the same numbers.
        """
        found = _quantize(inputs, self._input)
        return found if self._input.dtype == "int32" else found.astype(np.int8)

    def latency(self, repeats: int = 200) -> dict[str, float]:
        """Time single invocations of batch 1, after some to warm up.

        Returns:
            "median_us" and "p95_us": microseconds of one invocation, without copying inputs.
        """
        end = time.perf_counter() + _WARM_UP_SECONDS
        for _ in range(_WARM_UP):
            self._invoke()
        while time.perf_counter() < end:
            self._invoke()
        times = [self._time_one() for _ in range(repeats)]
        return {
            "median_us": float(np.median(times)),
            "p95_us": float(np.percentile(times, 95)),
        }

    def speed(self) -> dict[str, float]:
        """Return what there is to say of one inference: here microseconds on this machine."""
        latency = self.latency()
        return {"latency_median_us": latency["median_us"], "latency_p95_us": latency["p95_us"]}

    def kept(self, example: NDArray[Any]) -> dict[str, NDArray[np.int8]]:
        """Run one example; return every activation of a model that was saved with `keep`.

        Args:
            example: int8 [1, h, w, c] or [1, f], in the graph's layout.

        Raises:
            NotImplementedError: Models of this target keep none.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no activations")

    def _time_one(self) -> float:
        start = time.perf_counter_ns()
        self._invoke()
        return (time.perf_counter_ns() - start) / 1000

    def _run(self, inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        examples = self._checked(inputs)
        results = [self._empty(port, len(examples)) for port in self._outputs]
        for number, example in enumerate(examples):
            for result, found in zip(results, self._classify(example[None]), strict=True):
                result[number] = found[0]
        return self._as_in_torch(results)

    def _empty(self, port: artifact.Port, count: int) -> NDArray[Any]:
        return np.empty((count, *port.shape[1:]), port.dtype)

    def _as_in_torch(self, results: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        """Return outputs [n, ...] of the file's layout in torch's."""
        is_nhwc = self._order == "NHWC"
        maps = (ir.from_graph_layout(each) if is_nhwc else each for each in results)
        named = zip(self._outputs, maps, strict=True)
        return tuple(each[:, :, 0] if port.name in self.series else each for port, each in named)

    def _checked(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """Return inputs in the file's layout; an ExportError if they do not fit the model."""
        laid = ir.to_graph_layout if self._order == "NHWC" else ir.as_maps
        examples = laid(inputs)
        expected = self._input.shape[1:]
        if examples.shape[1:] != expected or examples.dtype != self._input.dtype:
            raise ExportError(
                f"inputs are {inputs.dtype} {inputs.shape}; the model takes "
                f"{self._input.dtype} [n, ...] with {expected} in {self._order} order"
            )
        if examples.dtype == np.int32:
            check_tokens(examples, self.tokens or MOST_TOKENS)
        return examples


class TfliteRunner(Runner):
    """A .tflite model in one of its runtimes."""

    _order = "NHWC"

    def __init__(
        self, model: Path | str | bytes, runtime: Runtime = "ai-edge-litert", threads: int = 1
    ) -> None:
        """Load a model.

        Args:
            model: Path of the artifact, or the bytes of a .tflite file.
            runtime: The runtime to use; see `available_runtimes`.
            threads: Threads that the runtime may use.

        Raises:
            ExportError: The runtime is missing or refuses the model, or the artifact does not
                match its manifest.
        """
        obstacle = _obstacle(runtime)
        if obstacle:
            raise ExportError(f"runtime {runtime!r} cannot be used: {obstacle}")
        # The interpreter reads this buffer as long as it lives.
        self._content = model if isinstance(model, bytes) else read_model(Path(model))
        self._interpreter = _load(self._content, runtime, threads)
        x, outputs = (
            self._interpreter.get_input_details()[0],
            self._interpreter.get_output_details(),
        )
        self._input, self._outputs = _port(x), tuple(map(_port, outputs))
        self._reads, self._gives = x["index"], [each["index"] for each in outputs]
        # What lies in memory before would be no tokens.
        self._interpreter.set_tensor(self._reads, np.zeros(self._input.shape, self._input.dtype))

    def _classify(self, example: NDArray[Any]) -> Sequence[NDArray[Any]]:
        self._interpreter.set_tensor(self._reads, example)
        with refused("the runtime"):
            self._invoke()
        return [np.asarray(self._interpreter.get_tensor(index)) for index in self._gives]

    def _invoke(self) -> None:
        self._interpreter.invoke()


@contextmanager
def refused(runtime: str) -> Iterator[None]:
    """Turn what a runtime raises while it runs into an ExportError."""
    try:
        yield
    except Exception as error:  # its errors have no class in common
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise ExportError(f"{runtime} does not run the model on these inputs: {reason}") from error


def _alone(outputs: tuple[NDArray[Any], ...]) -> Any:
    """Return the one output there is, or all."""
    return outputs[0] if len(outputs) == 1 else outputs


def read_model(path: Path) -> bytes:
    """Read a model; one with a manifest must match it, or an ExportError is raised."""
    if artifact.manifest_path(path).exists():
        artifact.load(path)
    try:
        return read_whole(path)
    except OSError as error:
        raise ExportError(f"cannot read the model {path}: {error.strerror}") from error


def _load(content: bytes, runtime: Runtime, threads: int) -> Any:
    # tflite-runtime 2.14 trusts what it reads and crashes on a damaged file; LiteRT verifies.
    if runtime == "tflite-runtime" and _obstacle("ai-edge-litert") is None:
        _interpreter(content, "ai-edge-litert", threads)
    interpreter = _interpreter(content, runtime, threads)
    interpreter.allocate_tensors()
    return interpreter


def _interpreter(content: bytes, runtime: Runtime, threads: int) -> Any:
    module = importlib.import_module(_MODULES[runtime])
    try:
        return module.Interpreter(model_content=content, num_threads=threads)
    except (ValueError, RuntimeError) as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise ExportError(
            f"{runtime} refuses the model of {len(content)} bytes: {reason}; the file is damaged "
            f"or made for another runtime: export it again"
        ) from error


def _port(details: dict[str, Any]) -> artifact.Port:
    shape = tuple(int(size) for size in details["shape"])
    return artifact.Port(
        details["name"], np.dtype(details["dtype"]).name, shape, *details["quantization"]
    )


def _quantize(inputs: ir.Inputs, port: artifact.Port) -> NDArray[Any]:
    return inputs if port.dtype == "float32" else port.quantize(inputs)


def _dequantize(raw: NDArray[Any], port: artifact.Port) -> NDArray[np.float32]:
    return raw if port.dtype == "float32" else port.dequantize(raw)
