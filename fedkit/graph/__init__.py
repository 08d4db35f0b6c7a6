"""The model graph: float, without any framework, read from torch modules and ONNX files."""
