"""Where torch computes: the processor, or an accelerator that this machine has.

torch is asked for the same bits run after run, as far as it can give them: with an accelerator it
uses its deterministic kernels, no autotuning and no reduced precision. Bits of one accelerator are
still not those of another, nor of the processor, so results name it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

from fedkit.core.errors import EngineError

Accelerator = Literal["auto", "cpu", "cuda", "mps"]
"""One by its name, or the first that is there, else the processor."""

CPU = torch.device("cpu")
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def found_device(wish: Accelerator) -> torch.device:
    """Return where torch is to compute.

    Raises:
        EngineError: It is not there; says which are.
    """
    there = [name for name in get_args(Accelerator)[1:] if _is_there(name)]
    if wish == "auto":
        return torch.device([*there, "cpu"][1])  # "cpu" is the first that is there
    if wish not in there:
        raise EngineError(
            f"accelerator is {wish!r}, and torch {torch.__version__} finds none here; there is: "
            f"{', '.join(there)}. Give one of these, or install a build of torch for it"
        )
    return torch.device(wish)


def describe(device: torch.device) -> str:
    """Return a device as results name it: the processor, or the accelerator with its model."""
    if device.type == "cuda":
        return f"torch on cuda ({torch.cuda.get_device_name(device)})"
    return "torch" if device == CPU else f"torch on {device.type}"


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Let torch give the same bits each time in a block, where the processor does not compute.

    An op that has no such kernel warns and runs.
    """
    if device == CPU:
        yield
        return
    os.environ.setdefault(_WORKSPACE, ":4096:8")  # what cuBLAS asks for
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        *(cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.benchmark = cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before[2:]


def _is_there(name: str) -> bool:
    if name == "cuda":
        return torch.cuda.is_available()
    return name == "cpu" or torch.backends.mps.is_available()
