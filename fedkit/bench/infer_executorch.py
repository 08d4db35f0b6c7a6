"""ExecuTorch as a baseline, where `$FEDKIT_EXECUTORCH` names a Python that has it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedkit.core.errors import BenchError

VARIABLE = "FEDKIT_EXECUTORCH"
_SPIN = 0.05  # seconds: threads of its pool spin for a while, on the core of the next in turn
_CHILD = Path(__file__).with_name("infer_executorch_child.py")


def installed() -> bool:
    """Return whether the variable names a Python."""
    return bool(os.environ.get(VARIABLE))


class ExecuTorch:
    """A float model that ExecuTorch quantises to int8 and runs by XNNPACK, in another process.

    Attributes:
        bytes: `artifact_bytes` of the compiled model, and `ram_bytes` of one more instance of it.
    """

    def __init__(self, model: nn.Module, inputs: NDArray[np.float32], folder: Path) -> None:
        """Compile a model.

        Args:
            model: In evaluation mode.
            inputs: [n, channels, height, width], for calibration; the first is what is run.
            folder: For what the other process reads.

        Raises:
            BenchError: `$FEDKIT_EXECUTORCH` cannot be run or has no ExecuTorch, or that fails.
        """
        exported, examples = folder / "model.pt2", folder / "inputs.npy"
        first = (torch.from_numpy(inputs[:1]),)
        torch.export.save(torch.export.export(model, first), exported)
        np.save(examples, inputs)
        python = os.environ[VARIABLE]
        command = [python, "-P", str(_CHILD), str(exported), str(examples)]
        self._said = (folder / "executorch.log").open("w+", encoding="utf-8")
        try:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
            )
        except OSError as error:
            self._said.close()
            raise BenchError(
                f"${VARIABLE} is {python!r}, which cannot be run: {error}; give the Python of an "
                "environment with `pip install torch==2.13.0 executorch`, or unset it"
            ) from error
        self.bytes: dict[str, int] = self._answer()

    def latency(self, repeats: int) -> dict[str, float]:
        """Return "median_us": microseconds of one run, of so many after some to warm up."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{repeats}\n")
        self._process.stdin.flush()
        answer = self._answer()
        time.sleep(_SPIN)
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            told = self._said.read().strip().splitlines()
            self.close()
            raise BenchError(
                f"ExecuTorch in ${VARIABLE} ({os.environ[VARIABLE]}) gave up: "
                f"{told[-1] if told else 'no reason given'}; its environment needs `pip install "
                "torch==2.13.0 executorch`"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def __enter__(self) -> ExecuTorch:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        self.close()
