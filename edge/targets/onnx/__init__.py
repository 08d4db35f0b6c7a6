"""The target onnx: a file for onnxruntime."""
