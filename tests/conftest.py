"""Set before any test module is imported: no test talks to the network or takes every core."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import nn

from fedkit.engine import choose
from tests.captured import captured
from tests.sets import QUICK_EXAMPLES

ROOT = Path(__file__).resolve().parents[1]

os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    RAY_USAGE_STATS_ENABLED="0",
)

# Time never fails a test: a busy machine is not the code's fault.
settings.register_profile("whole set", deadline=None)
settings.register_profile("default set", deadline=None, max_examples=QUICK_EXAMPLES)


def pytest_configure(config: pytest.Config) -> None:
    """Draw fewer examples where the slow set is left out."""
    settings.load_profile("default set" if config.option.markexpr == "not slow" else "whole set")


WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder


class TorchIsAbsent(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] == "torch"
        return None if absent else super().find_spec(name, path, target)


sys.meta_path = [TorchIsAbsent if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture(scope="session")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of processes to which torch is not installed, and of all that they start."""
    folder = tmp_path_factory.mktemp("without-torch")
    (folder / "sitecustomize.py").write_text(WITHOUT_TORCH)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of one run of the tests have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def captured_once() -> Iterator[None]:
    """Engines of the same built-in model share its plan, which takes longer than a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "capture", captured)
        yield


@pytest.fixture
def seeded_single_thread() -> Iterator[None]:
    """Torch draws the same numbers in each test, and does not take every core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulations of hardware are compiled in a third of the time; each example takes longer."""
    from edge.targets.fpga import runner

    compiled = runner._compile
    monkeypatch.setattr(
        runner, "_compile", lambda folder, headers, _: compiled(folder, headers, ("-O0",))
    )


@pytest.fixture
def quick_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """C models are compiled in a fifth of the time, for any processor; examples take longer."""
    from edge.targets.c99 import runner

    monkeypatch.setattr(runner, "FLAGS", dict.fromkeys(runner.FLAGS, ("-O0", "-DEK_PLAIN")))


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module], nn.Module]:
    """Give every BatchNorm statistics and parameters as after training; set evaluation mode."""

    def apply(model: nn.Module) -> nn.Module:
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                assert layer.running_mean is not None and layer.running_var is not None
                nn.init.normal_(layer.running_mean, 0, 0.3)
                nn.init.uniform_(layer.running_var, 0.5, 2)
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, 0, 0.3)
        return model.eval()

    return apply
