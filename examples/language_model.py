"""A language model of texts: fedkit run --task examples.language_model:TASK --devices 4 \\
--partition natural-id --density 0.5. Each device holds the source of a module of Python."""

import argparse
import ast
import difflib
import typing
from pathlib import Path

from torch import nn

from fedkit import Examples, Task
from fedkit.nn.zoo import build_model
from fedkit.tasks import losses, metrics
from fedkit.tasks.text import TOKENS, windows

LENGTH = 48


def model() -> nn.Module:
    return build_model("char-gpt", (LENGTH,), TOKENS)


def data(test: bool) -> Examples:
    texts = {m.__name__: Path(m.__file__).read_text() for m in (argparse, ast, difflib, typing)}
    return windows(texts, LENGTH, test_share=0.1, test=test)


LOSS, METRIC = losses.CrossEntropy(), metrics.Perplexity()
TASK = Task("source", model, lambda: data(False), lambda: data(True), LOSS, METRIC)
