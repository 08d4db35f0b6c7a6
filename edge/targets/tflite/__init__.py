"""The target tflite: a file for LiteRT and tflite-runtime."""
