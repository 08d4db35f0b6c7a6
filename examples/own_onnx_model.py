"""A float ONNX file as an int8 .tflite file, compared: python examples/own_onnx_model.py IN.onnx"""

import sys
from pathlib import Path

import numpy as np

from edge.export import export_tflite, load_onnx
from edge.targets.tflite.runner import TfliteRunner
from fedkit.graph.interpret import evaluate
from fedkit.graph.ir import to_graph_layout


def main(path: Path) -> float:
    graph = load_onnx(path)
    _, *image, channels = graph.tensors[graph.inputs[0]].shape
    shape = (100, channels, *image)  # as the file takes them; use 100 examples of your own
    inputs = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    saved = export_tflite(graph, inputs, path.with_suffix(".tflite"), {"source": path.name})
    print(f"{saved.path}: {saved.path.stat().st_size} bytes, {len(graph.ops)} ops read")
    expected = evaluate(graph, to_graph_layout(inputs))
    found = TfliteRunner(saved.path).predict(inputs)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    print(f"largest error {main(Path(sys.argv[1])):.1%} of the largest logit")
